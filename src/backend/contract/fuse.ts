/**
 * Groups a block program's steps as the engines' kernels compute them. Norms and activation functions are computed by the
 * sites that read them, residual sums by the products before them, and what stands between a product and the cache (norms
 * of heads, rotary embedding, head transforms) by the kernel that writes the cache. What comes out is a list of few calls
 * in the program's order, with the values that each of them reads for the last time.
 */
import { PlanishError } from "../../common/errors.js";
import { carriedWidth, type CarryStep } from "./recurrent.js";
import {
  BLOCK_INPUT,
  flowOf,
  inputsOf,
  outputsOf,
  rotaryKey,
  siteNamed,
  type ActivationStep,
  type AddStep,
  type ArrangeStep,
  type AttentionStep,
  type BlockProgram,
  type CacheStep,
  type CombineStep,
  type DispatchStep,
  type Flow,
  type MultiplyStep,
  type NormStep,
  type ProductStep,
  type Rotary,
  type RouteStep,
  type ScaleStep,
  type SitePlace,
  type SiteStep,
  type SpliceStep,
  type Step,
  type TakeStep,
  type ValueName,
  type WeighStep,
} from "./program.js";

/** A block that the engines' kernels cannot compute as they are. The message is a reason. */
export class NoKernel extends PlanishError {}

/** What a site's activation is computed from. */
export type FusedInput =
  | { readonly kind: "plain"; readonly x: ValueName }
  | { readonly kind: "norm"; readonly step: NormStep }
  | { readonly kind: "activation"; readonly step: ActivationStep };

/** One of a site's products. */
export interface FusedProduct {
  readonly step: ProductStep;
  /** Output features. */
  readonly width: number;
  /** The value that holds the result: of the product, or of the sum that it computes by adding itself to `onto`. */
  readonly out: ValueName;
  /** Read for the last time; its place becomes that of `out`. */
  readonly onto?: ValueName;
}

export interface FusedSite {
  readonly op: "site";
  readonly step: SiteStep;
  readonly place: SitePlace;
  readonly input: FusedInput;
  /** Whether the input is transformed already. */
  readonly ready: boolean;
  /** All of them add themselves to something, or none does. */
  readonly products: readonly FusedProduct[];
  readonly accumulate: boolean;
  /** The gated activation that reads two products, and nothing else of them: kernels may compute it with them. */
  readonly gated?: ActivationStep;
  readonly frees: readonly ValueName[];
}

/** What stands between a product and attention. */
export interface HeadChain {
  /** The product's output, prepared where it lies. */
  readonly root: ValueName;
  readonly norm?: NormStep;
  readonly rotary?: Rotary;
}

export interface FusedCache {
  readonly op: "cache";
  readonly step: CacheStep;
  readonly attention: AttentionStep;
  readonly queries: HeadChain;
  readonly keys: HeadChain;
  readonly frees: readonly ValueName[];
}

export interface FusedAttention {
  readonly op: "attention";
  readonly step: AttentionStep;
  /** The value whose place holds the prepared queries. */
  readonly queries: ValueName;
  readonly frees: readonly ValueName[];
}

/** A norm that something else than sites reads, or of groups of a row's channels. */
export interface FusedNorm {
  readonly op: "norm";
  readonly step: NormStep;
  /** Groups that a row has. */
  readonly groups: number;
  /** 1, or as many as groups where each has its own. */
  readonly gains: number;
  /** Its input is read for the last time: the result can take its place. */
  readonly inPlace: boolean;
  readonly frees: readonly ValueName[];
}

/** A sum that no product computes. */
export interface FusedAdd {
  readonly op: "add";
  readonly step: AddStep;
  readonly width: number;
  /** The summand that is read for the last time: the result takes its place. */
  readonly onto?: ValueName;
  readonly frees: readonly ValueName[];
}

/** A product of two values, channel by channel. */
export interface FusedMultiply {
  readonly op: "multiply";
  readonly step: MultiplyStep;
  readonly width: number;
  /** The factor that is read for the last time: the result takes its place. */
  readonly onto?: ValueName;
  readonly frees: readonly ValueName[];
}

/** An activation function that something else than sites reads. */
export interface FusedActivation {
  readonly op: "activation";
  readonly step: ActivationStep;
  readonly width: number;
  readonly frees: readonly ValueName[];
}

/** A step that carries a state from row to row. */
export interface FusedCarry {
  readonly op: "carry";
  readonly step: CarryStep;
  readonly width: number;
  readonly frees: readonly ValueName[];
}

/** A site's transform alone: what experts read, and linears beside them. */
export interface FusedTransform {
  readonly op: "transform";
  readonly step: SiteStep;
  readonly input: FusedInput;
  readonly frees: readonly ValueName[];
}

export interface FusedRoute {
  readonly op: "route";
  readonly step: RouteStep;
  readonly frees: readonly ValueName[];
}

/** One expert on its rows: its steps read `BLOCK_INPUT`, which they leave where it lies. */
export interface FusedExpert {
  readonly steps: readonly FusedStep[];
  readonly out: ValueName;
}

/** All experts, and the sum of what they give. */
export interface FusedExperts {
  readonly op: "experts";
  readonly step: CombineStep;
  readonly route: RouteStep;
  /** What experts read, and its channels. */
  readonly x: ValueName;
  readonly width: number;
  /** By number. */
  readonly experts: readonly FusedExpert[];
  readonly out: ValueName;
  /** Read for the last time; what experts give is added to it, and its place becomes that of `out`. */
  readonly onto?: ValueName;
  readonly frees: readonly ValueName[];
}

/** x times a weight for each row. */
export interface FusedWeigh {
  readonly op: "weigh";
  readonly step: WeighStep;
  readonly width: number;
  /** Its input is read for the last time: the result takes its place. */
  readonly inPlace: boolean;
  readonly frees: readonly ValueName[];
}

/** x times a number. */
export interface FusedScale {
  readonly op: "scale";
  readonly step: ScaleStep;
  readonly width: number;
  /** Its input is read for the last time: the result takes its place. */
  readonly inPlace: boolean;
  readonly frees: readonly ValueName[];
}

/** Columns out of a value. */
export interface FusedTake {
  readonly op: "take";
  readonly step: TakeStep;
  readonly frees: readonly ValueName[];
}

/** Columns into a value. */
export interface FusedSplice {
  readonly op: "splice";
  readonly step: SpliceStep;
  /** Its input is read for the last time: the result takes its place. */
  readonly inPlace: boolean;
  readonly frees: readonly ValueName[];
}

/** Heads made of parts. */
export interface FusedArrange {
  readonly op: "arrange";
  readonly step: ArrangeStep;
  readonly frees: readonly ValueName[];
}

export type FusedStep =
  | FusedArrange
  | FusedSite
  | FusedCache
  | FusedAttention
  | FusedNorm
  | FusedAdd
  | FusedMultiply
  | FusedActivation
  | FusedCarry
  | FusedTransform
  | FusedRoute
  | FusedExperts
  | FusedWeigh
  | FusedScale
  | FusedTake
  | FusedSplice;

const FUSED = new WeakMap<BlockProgram, readonly FusedStep[]>();

/** @throws NoKernel naming what cannot be grouped. */
export function fuse(program: BlockProgram): readonly FusedStep[] {
  const known = FUSED.get(program);
  if (known) return known;
  const fused = new Fusion(program).run();
  FUSED.set(program, fused);
  return fused;
}

class Fusion {
  private readonly flow: Flow;
  private readonly steps: FusedStep[] = [];
  /** Values that lie somewhere. */
  private readonly present = new Set<ValueName>([BLOCK_INPUT]);
  /** Values whose step is computed by those that read it. */
  private readonly deferred = new Map<ValueName, Step>();
  /** Reads that are still to come. */
  private readonly reads = new Map<ValueName, number>();
  /** Steps that another one computes with it. */
  private readonly done = new Set<Step>();
  /** Where prepared queries lie. */
  private readonly prepared = new Map<ValueName, ValueName>();
  /** Steps of experts on their way to `combine`, by number. */
  private readonly experts = new Map<number, Step[]>();
  private readonly ofExpert = new Map<ValueName, number>();
  private frees: ValueName[] = [];

  /** `ready`: sites that are transformed already where the program begins. */
  constructor(
    private readonly program: BlockProgram,
    private readonly ready: ReadonlySet<ValueName> = new Set(),
  ) {
    this.flow = flowOf(program);
  }

  run(): readonly FusedStep[] {
    for (const step of this.program.steps) if (!this.done.has(step)) this.step(step);
    if (!this.present.has(this.program.out))
      throw new NoKernel(`the value "${this.program.out}" leaves the block`);
    return this.steps;
  }

  private step(step: Step): void {
    const expert = step.op === "dispatch" ? step.expert : this.expertReadBy(step);
    if (expert !== undefined && step.op !== "combine") {
      this.experts.set(expert, [...(this.experts.get(expert) ?? []), step]);
      for (const value of outputsOf(step)) this.ofExpert.set(value, expert);
      return;
    }
    switch (step.op) {
      case "norm":
        if (this.isPart(step)) this.deferred.set(step.out, step);
        else this.norm(step);
        return;
      case "rope":
        if (step.rotary.dims !== step.headDim)
          throw new NoKernel(
            `rotary embedding of ${step.rotary.dims} of a head's ${step.headDim} channels has no kernel`,
          );
        this.deferred.set(step.out, step);
        return;
      case "head":
        this.deferred.set(step.out, step);
        return;
      case "activation":
        if (this.flow.consumers(step.out).every(({ op }) => op === "site"))
          this.deferred.set(step.out, step);
        else this.activation(step);
        return;
      case "site":
        this.site(step);
        return;
      case "cache":
        this.cache(step);
        return;
      case "attention":
        this.attention(step);
        return;
      case "product":
        throw new NoKernel(`the linear ${step.linear} reads something else than a site`);
      case "add":
        this.steps.push({ op: "add", step, ...this.pair(step) });
        return;
      case "multiply":
        this.steps.push({ op: "multiply", step, ...this.pair(step) });
        return;
      case "conv":
      case "recurrence":
        this.carry(step);
        return;
      case "scale":
        this.scale(step);
        return;
      case "take":
        this.require(step.x);
        this.present.add(step.out);
        this.release(step.x);
        this.steps.push({ op: "take", step, frees: this.freed() });
        return;
      case "splice":
        this.splice(step);
        return;
      case "arrange":
        this.arrange(step);
        return;
      case "route":
        this.require(step.x);
        this.present.add(step.out);
        this.release(step.x);
        this.steps.push({ op: "route", step, frees: this.freed() });
        return;
      case "combine":
        this.combine(step);
        return;
      case "weigh":
        this.weigh(step);
        return;
      case "dispatch":
        return;
    }
  }

  private expertReadBy(step: Step): number | undefined {
    return inputsOf(step)
      .map((value) => this.ofExpert.get(value))
      .find((expert) => expert !== undefined);
  }

  /** Whether a norm is computed by the steps that read it: sites, or the cache's kernel for norms of heads. */
  private isPart(step: NormStep): boolean {
    if (step.out === this.program.out) return false;
    const readers = this.flow.consumers(step.out);
    return (
      (readers.every(({ op }) => op === "site") && this.isWholeRow(step)) ||
      readers.every(
        (reader) => (reader.op === "rope" || reader.op === "head") && reader.headDim === step.width,
      )
    );
  }

  private isWholeRow({ norm, width, x }: NormStep): boolean {
    return (this.width(x) ?? width) === width && this.program.norms[norm].width === width;
  }

  private left(value: ValueName): number {
    const known = this.reads.get(value);
    if (known !== undefined) return known;
    return this.flow.consumers(value).length + (value === this.program.out ? 1 : 0);
  }

  /** One reader of a value is done; the last one frees its place, or reads what it is computed from. */
  private release(value: ValueName): void {
    const left = this.left(value) - 1;
    this.reads.set(value, left);
    if (left > 0) return;
    const step = this.deferred.get(value);
    if (step) for (const input of inputsOf(step)) this.release(input);
    else this.frees.push(this.require(value));
  }

  private require(value: ValueName): ValueName {
    const place = this.prepared.get(value) ?? value;
    if (!this.present.has(place))
      throw new NoKernel(`the value "${value}" has no place where it is read`);
    return place;
  }

  private freed(): readonly ValueName[] {
    const { frees } = this;
    for (const value of frees) this.present.delete(value);
    this.frees = [];
    return frees;
  }

  private norm(step: NormStep): void {
    this.require(step.x);
    const inPlace = this.overwrites(step.x);
    this.present.add(step.out);
    const groups = (this.width(step.x) ?? step.width) / step.width;
    const gains = this.program.norms[step.norm].width / step.width;
    this.steps.push({ op: "norm", step, groups, gains, inPlace, frees: this.freed() });
  }

  /** Whether the step that reads a value now is its last reader, whose result can take its place; its reading is done. */
  private overwrites(value: ValueName): boolean {
    const last = this.left(value) === 1;
    if (last) {
      this.reads.set(value, 0);
      this.present.delete(value);
    } else this.release(value);
    return last;
  }

  private scale(step: ScaleStep): void {
    this.require(step.x);
    const width = this.width(step.x);
    if (width === undefined)
      throw new NoKernel("scaling a value whose width no step says has no kernel");
    const inPlace = this.overwrites(step.x);
    this.present.add(step.out);
    this.steps.push({ op: "scale", step, width, inPlace, frees: this.freed() });
  }

  private splice(step: SpliceStep): void {
    for (const value of inputsOf(step)) this.require(value);
    const inPlace = this.overwrites(step.x);
    this.present.add(step.out);
    for (const { x } of step.parts) this.release(x);
    this.steps.push({ op: "splice", step, inPlace, frees: this.freed() });
  }

  private activation(step: ActivationStep): void {
    if (step.clamp)
      throw new NoKernel("a clamped gate that something else than a site reads has no kernel");
    const width = this.width(step.x);
    if (width === undefined)
      throw new NoKernel(
        "an activation function of a value whose width no step says has no kernel",
      );
    for (const value of inputsOf(step)) this.require(value);
    this.present.add(step.out);
    for (const value of inputsOf(step)) this.release(value);
    this.steps.push({ op: "activation", step, width, frees: this.freed() });
  }

  private carry(step: CarryStep): void {
    for (const value of inputsOf(step)) this.require(value);
    this.present.add(step.out);
    for (const value of inputsOf(step)) this.release(value);
    this.steps.push({ op: "carry", step, width: carriedWidth(step), frees: this.freed() });
  }

  /** A sum or product of two values, in the place of one that is read for the last time. */
  private pair(
    step: AddStep | MultiplyStep,
  ): Pick<FusedAdd | FusedMultiply, "width" | "onto" | "frees"> {
    const values = step.a === step.b ? [step.a] : [step.a, step.b];
    for (const value of values) this.require(value);
    const onto = values.find((value) => this.left(value) === 1 && !this.prepared.has(value));
    for (const value of values) {
      if (value !== onto) this.release(value);
      else {
        this.reads.set(value, 0);
        this.present.delete(value);
      }
    }
    const width = this.width(step.out);
    if (width === undefined)
      throw new NoKernel(
        `a ${step.op === "add" ? "sum" : "product"} of values whose width no step says has no kernel`,
      );
    this.present.add(step.out);
    return { width, onto, frees: this.freed() };
  }

  /** Channels of a value's rows, where the steps that lead to it say. */
  private width(value: ValueName): number | undefined {
    const step = this.flow.producer(value);
    switch (step?.op) {
      case "product":
        return this.program.linears[step.linear].shape[0];
      case "rope":
      case "head":
      case "attention":
      case "arrange":
        return step.heads * step.headDim;
      case "add":
      case "multiply":
        return this.width(step.a) ?? this.width(step.b);
      case "conv":
      case "recurrence":
        return carriedWidth(step);
      case "norm":
      case "scale":
      case "activation":
      case "weigh":
        return this.width(step.x);
      case "combine":
      case "take":
      case "splice":
        return step.width;
      default:
        return undefined;
    }
  }

  private arrange(step: ArrangeStep): void {
    for (const { x } of step.parts) this.require(x);
    this.present.add(step.out);
    for (const { x } of step.parts) this.release(x);
    this.steps.push({ op: "arrange", step, frees: this.freed() });
  }

  private checkGain({ norm, width }: NormStep): void {
    if (this.program.norms[norm].width !== width)
      throw new NoKernel(`the norm ${norm}, whose groups have gains of their own, has no kernel`);
  }

  private site(step: SiteStep): void {
    const place = siteNamed(this.program, step.site);
    let input = this.input(step.x);
    const consumers = this.flow.consumers(step.out);
    const readers = consumers.filter((reader) => reader.op === "product");
    const routed = readers.length < consumers.length;
    if (routed) {
      this.release(step.x);
      this.present.add(step.out);
      this.steps.push({ op: "transform", step, input, frees: this.freed() });
      if (readers.length === 0) return;
      input = { kind: "plain", x: step.out };
    }
    const sums = readers.map((product) => this.sumOf(product));
    const accumulate = sums.every((sum) => sum !== undefined);
    const products = readers.map((product, i): FusedProduct => {
      this.done.add(product);
      const [width] = this.program.linears[product.linear].shape;
      const sum = accumulate ? sums[i] : undefined;
      if (!sum) return { step: product, width, out: product.out };
      this.done.add(sum.step);
      this.reads.set(sum.onto, 0);
      this.present.delete(sum.onto);
      return { step: product, width, out: sum.step.out, onto: sum.onto };
    });
    for (const { out } of products) this.present.add(out);
    // Products may read the site's input itself, so it is given back after them.
    if (routed) for (const _ of readers) this.release(step.out);
    else this.release(step.x);
    const gated = this.gatedBy(readers);
    this.steps.push({
      op: "site",
      step,
      place,
      input,
      ready: routed || this.ready.has(step.out),
      products,
      accumulate,
      gated,
      frees: this.freed(),
    });
  }

  private combine(step: CombineStep): void {
    const route = this.flow.producer(step.routing);
    const dispatches = this.program.steps.filter(
      (each): each is DispatchStep => each.op === "dispatch" && each.routing === step.routing,
    );
    const [first] = dispatches;
    const source = first && this.flow.producer(first.x);
    if (route?.op !== "route" || source?.op !== "site" || dispatches.some(({ x }) => x !== first.x))
      throw new NoKernel("experts that read something else than one site have no kernel");
    const experts = step.parts.map((part, expert) =>
      this.expert(source, this.experts.get(expert) ?? [], part),
    );
    const sum = this.sumOf(step);
    if (sum) {
      this.done.add(sum.step);
      this.reads.set(sum.onto, 0);
      this.present.delete(sum.onto);
    }
    const out = sum?.step.out ?? step.out;
    this.present.add(out);
    for (const { x } of dispatches) {
      this.release(x);
      this.release(step.routing);
    }
    this.release(step.routing);
    this.steps.push({
      op: "experts",
      step,
      route,
      x: first.x,
      width: source.width,
      experts,
      out,
      onto: sum?.onto,
      frees: this.freed(),
    });
  }

  /** An expert's steps as a program of their own, which begins with what its rows of the site hold. */
  private expert(site: SiteStep, steps: readonly Step[], out: ValueName): FusedExpert {
    const [dispatch, ...own] = steps;
    if (dispatch?.op !== "dispatch")
      throw new NoKernel("an expert that reads nothing has no kernel");
    const begin: SiteStep = { ...site, x: BLOCK_INPUT, out: dispatch.out };
    const program = { ...this.program, steps: [begin, ...own], out };
    const fused = new Fusion(program, new Set([begin.out])).run();
    // What the rows were gathered into serves the next expert too.
    const kept = fused.map((each) => ({
      ...each,
      frees: each.frees.filter((value) => value !== BLOCK_INPUT),
    }));
    return { steps: kept, out };
  }

  private weigh(step: WeighStep): void {
    this.require(step.x);
    const width = this.width(step.x);
    if (width === undefined)
      throw new NoKernel("weighing a value whose width no step says has no kernel");
    const inPlace = this.overwrites(step.x);
    this.present.add(step.out);
    this.release(step.routing);
    this.steps.push({ op: "weigh", step, width, inPlace, frees: this.freed() });
  }

  private input(x: ValueName): FusedInput {
    const step = this.deferred.get(x);
    if (!step) return { kind: "plain", x: this.require(x) };
    for (const input of inputsOf(step)) this.require(input);
    if (step.op === "norm") return { kind: "norm", step };
    if (step.op === "activation") return { kind: "activation", step };
    throw new NoKernel(`a site that reads ${step.op} has no kernel`);
  }

  /** The sum that a product can add itself to: nothing else reads the product, nor the other summand afterwards. */
  private sumOf({
    out,
  }: ProductStep | CombineStep): { readonly step: AddStep; readonly onto: ValueName } | undefined {
    const [step, ...others] = this.flow.consumers(out);
    if (step?.op !== "add" || others.length > 0 || out === this.program.out) return undefined;
    const onto = step.a === out ? step.b : step.a;
    if (onto === out || !this.present.has(onto) || this.left(onto) !== 1) return undefined;
    return { step, onto };
  }

  private gatedBy(products: readonly ProductStep[]): ActivationStep | undefined {
    if (products.length !== 2) return undefined;
    const [gate, up] = products;
    const readers = products.flatMap(({ out }) => this.flow.consumers(out));
    const [reader] = readers;
    if (reader?.op !== "activation" || readers.some((each) => each !== reader)) return undefined;
    return reader.gate === gate.out && reader.x === up.out ? reader : undefined;
  }

  /** Norms of heads, rotary embedding and head transform of queries or keys, and where the product left them. */
  private chain(value: ValueName): HeadChain {
    const step = this.deferred.get(value);
    if (!step) return { root: this.require(value) };
    if (step.op === "head") return this.chain(step.x);
    if (step.op !== "rope" && step.op !== "norm")
      throw new NoKernel(`${step.op} between a linear and attention has no kernel`);
    const before = this.chain(step.x);
    if (before.rotary || (step.op === "norm" && before.norm))
      throw new NoKernel(`${step.op} after rotary embedding has no kernel`);
    return step.op === "rope" ? { ...before, rotary: step.rotary } : { ...before, norm: step };
  }

  private cache(step: CacheStep): void {
    const attention = this.flow.consumers(step.outK).find((reader) => reader.op === "attention");
    if (!attention || this.deferred.get(attention.q)?.op !== "head")
      throw new NoKernel("a cache whose attention has no prepared queries has no kernel");
    const [queries, keys] = [this.chain(attention.q), this.chain(step.k)];
    for (const { norm } of [queries, keys]) {
      if (!norm) continue;
      if (norm.kind !== "rms") throw new NoKernel("a layer norm of heads has no kernel");
      this.checkGain(norm);
    }
    // Growth of queries is a factor beside their angles.
    const [a, b] = [queries, keys].map(
      ({ rotary }) => rotary && rotaryKey({ ...rotary, growth: undefined }),
    );
    if (a !== b || keys.rotary?.growth)
      throw new NoKernel("queries and keys that turn by different angles have no kernel");
    if (queries.norm && keys.norm && queries.norm.epsilon !== keys.norm.epsilon)
      throw new NoKernel("norms of queries and keys with different epsilons have no kernel");
    // Queries are prepared now, and attention reads them where they lie.
    this.prepared.set(attention.q, queries.root);
    this.deferred.delete(attention.q);
    this.require(step.v);
    this.release(step.k);
    if (this.left(keys.root) > 0)
      throw new NoKernel(
        "keys that something else reads after they were prepared where they lie have no kernel",
      );
    this.release(step.v);
    this.steps.push({ op: "cache", step, attention, queries, keys, frees: this.freed() });
  }

  private attention(step: AttentionStep): void {
    const queries = this.require(step.q);
    this.present.add(step.out);
    this.release(step.q);
    this.steps.push({ op: "attention", step, queries, frees: this.freed() });
  }
}
