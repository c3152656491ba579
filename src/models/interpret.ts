/**
 * Runs a block program on the tape: for training and scoring, in full precision or simulated. `BlockHooks` are asked for
 * whatever a quantizer may change: what a site's linears read and give, and queries, keys and values on their way into
 * attention. Plain hooks compute the original model; methods and packed artifacts bring their own.
 */
import { PlanishError } from "../common/errors.js";
import type { Buffer } from "../backend/contract/training.js";
import {
  add,
  arrange,
  attention,
  binary,
  clampedGate,
  collectRows,
  gatherRows,
  joinRows,
  linear,
  norm,
  rope,
  route,
  scale,
  siluMul,
  spliceColumns,
  splitRows,
  spreadRows,
  takeColumns,
  unary,
  type RopeTables,
  type Routing,
} from "../tensor/ops/index.js";
import type { Graph, Tensor } from "../tensor/tensor.js";
import {
  BLOCK_INPUT,
  flowOf,
  inputsOf,
  outputsOf,
  rotaryKey,
  type ActivationStep,
  type AttentionStep,
  type BlockProgram,
  type CombineStep,
  type DispatchStep,
  type HeadStep,
  type KeptName,
  type LinearName,
  type LinearSite,
  type NormStep,
  type RouteStep,
  type ScaleStep,
  type SiteStep,
  type Step,
  type ValueName,
} from "../backend/contract/program.js";
import type { CarryStep } from "../backend/contract/recurrent.js";
import { carriedStep, runShared, type RunCarried } from "./carry.js";
import { rotaryTables, type RotaryTables } from "./rope.js";

export interface LinearWeights {
  /** [out, in]; may carry integer codes instead of values. */
  readonly weight: Tensor;
  readonly bias?: Tensor;
}

export interface NormWeights {
  readonly gain: Tensor;
  readonly bias?: Tensor;
}

/** A block's weights on a device, by the names that its program gives them. */
export interface BlockWeights {
  readonly norms: Readonly<Record<string, NormWeights>>;
  readonly linears: Readonly<Record<LinearName, LinearWeights>>;
  readonly kept: Readonly<Record<KeptName, Tensor>>;
}

/** How many heads lie side by side, and the channels of each. */
export type HeadShape = Pick<HeadStep, "heads" | "headDim">;

export interface BlockHooks {
  /** The site's transform of x, [rows, in]; what comes out is not quantized yet. */
  transform?(g: Graph, site: LinearSite, x: Tensor): Tensor;
  /**
   * Outputs of some of the site's linears in the order of `linears`. x: [rows, in], transformed; for the linears of an expert
   * the rows that were routed to it.
   */
  linears(g: Graph, site: LinearSite, x: Tensor, linears: readonly LinearName[]): Tensor[];
  /** Queries after RoPE, [rows, heads·headDim]. */
  queries?(g: Graph, q: Tensor, heads: HeadShape): Tensor;
  /** Keys after RoPE, [rows, kvHeads·headDim]; what comes out is what a cache would hold. */
  keys?(g: Graph, k: Tensor, heads: HeadShape): Tensor;
  values?(g: Graph, v: Tensor, heads: HeadShape): Tensor;
}

/** What one sequence leaves behind. */
export interface SequenceCache {
  /** Tokens that every block has seen. */
  readonly length: number;
  /** Appends keys and values of these tokens in a block, and returns all of them. */
  extend(g: Graph, layer: number, k: Tensor, v: Tensor): { k: Tensor; v: Tensor };
  /** The state of a step that carries one, replaced as it runs. */
  state(layer: number, step: CarryStep): Buffer;
  /** So many tokens have gone through all blocks. */
  advance(tokens: number): void;
}

/**
 * How rows stand to sequences where sequences share rows (a common beginning, computed once): everything but
 * attention works on rows, and attention sees `sequences` of equal length, padded at the right, where causality
 * hides the padding.
 */
export interface SharedRows {
  readonly sequences: number;
  /** i32 [sequences·time]: the row at each position; any row at padding. */
  readonly spread: Buffer;
  /** i32 [rows]: for each row one place of `spread` that holds it. */
  readonly collect: Buffer;
}

export interface BlockContext {
  readonly layer: number;
  readonly batch: number;
  /** Of the rows' positions; by default those of `batch` sequences from their beginnings. */
  readonly rotary?: RotaryTables;
  readonly cache?: SequenceCache;
  /** Replaces `batch`. */
  readonly shared?: SharedRows;
  /**
   * Replaces attention: rows of queries, keys and values of this step, as the hooks left them, to mixed values
   * [rows, heads·headDim]. For caches that hold several sequences.
   */
  readonly attend?: (
    g: Graph,
    layer: number,
    step: AttentionStep,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks?: Tensor,
  ) => Tensor;
  /** Replaces a step that carries a state, where `attend` replaces attention: `run` computes it on a sequence's rows. */
  readonly carry?: (
    g: Graph,
    layer: number,
    step: CarryStep,
    inputs: readonly Tensor[],
    run: RunCarried,
  ) => Tensor;
  /** Rows that every expert sees at least, without weight beyond its own: for statistics. */
  readonly leastRows?: number;
  /** Hears how many rows chose each expert. */
  readonly onRouted?: (step: RouteStep, rows: Int32Array) => void;
}

/** The unquantized block. */
export function plainHooks(weights: BlockWeights): BlockHooks {
  return {
    linears: (g, _site, x, names) =>
      names.map((name) => {
        const { weight, bias } = requireLinear(weights, name);
        return linear(g, x, weight, bias);
      }),
  };
}

export function requireLinear(weights: BlockWeights, name: LinearName): LinearWeights {
  const found = weights.linears[name];
  if (!found) throw new PlanishError(`block has no "${name}" linear`);
  return found;
}

/** One block. x: [batch·time, hidden]. */
export function runBlock(
  g: Graph,
  program: BlockProgram,
  weights: BlockWeights,
  hooks: BlockHooks,
  x: Tensor,
  context: BlockContext,
): Tensor {
  const rotary = context.rotary ?? rotaryTables(g, [program], 0, x.rows / context.batch);
  const run = new BlockRun(g, program, weights, hooks, { ...context, rotary });
  return run.through(x);
}

class BlockRun {
  private readonly values = new Map<ValueName, Tensor>();
  private readonly routings = new Map<ValueName, Routing>();
  /** Rows of experts by what they were taken from. */
  private readonly dispatched = new Map<ValueName, readonly (Tensor | undefined)[]>();
  /** Values of experts that no row chose. */
  private readonly empty = new Set<ValueName>();

  constructor(
    private readonly g: Graph,
    private readonly program: BlockProgram,
    private readonly weights: BlockWeights,
    private readonly hooks: BlockHooks,
    private readonly context: BlockContext & { readonly rotary: RotaryTables },
  ) {}

  through(x: Tensor): Tensor {
    this.values.set(BLOCK_INPUT, x);
    for (const step of this.program.steps) {
      if (step.op !== "combine" && inputsOf(step).some((name) => this.empty.has(name)))
        for (const name of outputsOf(step)) this.empty.add(name);
      // Products are computed with what they read, as the hooks want them.
      else if (step.op === "product") continue;
      else if (step.op === "site") this.site(step);
      else if (step.op === "route") this.routings.set(step.out, this.route(step));
      else if (step.op === "dispatch") this.dispatch(step);
      else {
        const results = this.step(step);
        outputsOf(step).forEach((name, i) => this.values.set(name, results[i]));
      }
    }
    return this.value(this.program.out);
  }

  private value(name: ValueName): Tensor {
    const found = this.values.get(name);
    if (!found) throw new PlanishError(`block program: "${name}" is read before it is written`);
    return found;
  }

  private site({ site, x, out }: SiteStep): void {
    const { g, hooks } = this;
    const input = this.value(x);
    const read = hooks.transform ? hooks.transform(g, site, input) : input;
    this.values.set(out, read);
    this.products(site, out, read);
  }

  /** The products that read a value of a site. */
  private products(site: LinearSite, value: ValueName, read: Tensor): void {
    const products = flowOf(this.program)
      .consumers(value)
      .filter((step) => step.op === "product");
    if (products.length === 0) return;
    const names = products.map((product) => product.linear);
    const outputs = this.hooks.linears(this.g, site, read, names);
    products.forEach((product, i) => this.values.set(product.out, outputs[i]));
  }

  private route(step: RouteStep): Routing {
    const { g, context } = this;
    const { router, bias, correction } = step;
    const logits = linear(
      g,
      this.value(step.x),
      this.kept(router),
      bias === undefined ? undefined : this.kept(bias),
    );
    const routing = route(g, logits, {
      ...step,
      correction: correction === undefined ? undefined : g.read(this.kept(correction)),
      leastRows: context.leastRows,
    });
    context.onRouted?.(step, routing.counts);
    return routing;
  }

  private kept(name: KeptName): Tensor {
    const found = this.weights.kept[name];
    if (!found) throw new PlanishError(`block has no "${name}"`);
    return found;
  }

  private routing(name: ValueName): Routing {
    const found = this.routings.get(name);
    if (!found) throw new PlanishError(`block program: "${name}" is no routing`);
    return found;
  }

  private dispatch({ expert, routing: name, x, out }: DispatchStep): void {
    const { g } = this;
    let parts = this.dispatched.get(x);
    if (!parts) {
      const routing = this.routing(name);
      const rows = spreadRows(g, this.value(x), routing);
      const read = this.weighsInputs(name)
        ? binary(g, "mul", rows, routing.weights, "column")
        : rows;
      parts = splitRows(g, read, routing.ranges);
      this.dispatched.set(x, parts);
    }
    const part = parts[expert];
    if (!part) {
      this.empty.add(out);
      return;
    }
    this.values.set(out, part);
    const source = flowOf(this.program).producer(x);
    if (source?.op === "site") this.products(source.site, out, part);
  }

  private combine({ routing: name, parts }: CombineStep): Tensor {
    const { g } = this;
    const routing = this.routing(name);
    const joined = joinRows(
      g,
      parts.filter((part) => !this.empty.has(part)).map((part) => this.value(part)),
    );
    if (this.weighsInputs(name)) return collectRows(g, joined, routing);
    return collectRows(g, binary(g, "mul", joined, routing.weights, "column"), routing);
  }

  private weighsInputs(routing: ValueName): boolean {
    const step = flowOf(this.program).producer(routing);
    return step?.op === "route" && step.weighInputs === true;
  }

  private step(
    step: Exclude<Step, { readonly op: "site" | "product" | "route" | "dispatch" }>,
  ): readonly Tensor[] {
    const { g, hooks } = this;
    switch (step.op) {
      case "norm":
        return [this.norm(step)];
      case "rope":
        return [rope(g, this.value(step.x), step.headDim, this.tables(step.rotary))];
      case "head": {
        const x = this.value(step.x);
        const hook = step.part === "query" ? hooks.queries?.bind(hooks) : hooks.keys?.bind(hooks);
        return [hook ? hook(g, x, step) : x];
      }
      case "cache": {
        const v = this.value(step.v);
        return [this.value(step.k), hooks.values ? hooks.values(g, v, step) : v];
      }
      case "attention":
        return [this.attention(step)];
      case "conv":
      case "recurrence":
        return [this.carry(step)];
      case "activation":
        return [this.activation(step)];
      case "add":
        return [add(g, this.value(step.a), this.value(step.b))];
      case "multiply":
        return [binary(g, "mul", this.value(step.a), this.value(step.b))];
      case "scale":
        return [this.scaled(step)];
      case "take":
        return [takeColumns(g, this.value(step.x), step.from, step.width)];
      case "splice": {
        const parts = step.parts.map(({ x, at }) => ({ x: this.value(x), at }));
        return [spliceColumns(g, this.value(step.x), parts)];
      }
      case "arrange": {
        const { headDim, order } = step;
        const parts = step.parts.map(({ x, heads, dim }) => ({ x: this.value(x), heads, dim }));
        return [arrange(g, parts, { heads: step.heads, headDim, order })];
      }
      case "combine":
        return [this.combine(step)];
      case "weigh":
        return [binary(g, "mul", this.value(step.x), this.routing(step.routing).weights, "column")];
    }
  }

  private scaled({ x, factor }: ScaleStep): Tensor {
    const { g } = this;
    return typeof factor === "number"
      ? scale(g, this.value(x), factor)
      : binary(g, "mul", this.value(x), this.kept(factor), "scalar");
  }

  private norm({ norm: name, kind, width, epsilon, x }: NormStep): Tensor {
    const { g } = this;
    const { gain, bias } = this.normWeights(name);
    if (gain.size === width) return norm(g, this.value(x), { kind, epsilon, gain, bias });
    const ones = g.constant([width], new Float64Array(width).fill(1));
    const scaled = binary(
      g,
      "mul",
      norm(g, this.value(x), { kind, epsilon, gain: ones }),
      gain,
      "row",
    );
    return bias ? binary(g, "add", scaled, bias, "row") : scaled;
  }

  private normWeights(name: string): NormWeights {
    const found = this.weights.norms[name];
    if (!found) throw new PlanishError(`block has no "${name}" norm`);
    return found;
  }

  private tables(rotary: Parameters<typeof rotaryKey>[0]): RopeTables {
    const found = this.context.rotary.get(rotaryKey(rotary));
    if (!found)
      throw new PlanishError("block program: no tables were made for its rotary positions");
    return found;
  }

  private attention(step: AttentionStep): Tensor {
    const { g, context } = this;
    const { layer, batch, cache, shared, attend } = context;
    let [q, k, v] = [step.q, step.k, step.v].map((name) => this.value(name));
    const sinks = step.sinks === undefined ? undefined : this.kept(step.sinks);
    if (attend) return attend(g, layer, step, q, k, v, sinks);
    if (cache) ({ k, v } = cache.extend(g, layer, k, v));
    if (shared) [q, k, v] = [q, k, v].map((rows) => gatherRows(g, rows, shared.spread));
    const mixed = attention(g, q, k, v, { ...step, sinks, batch: shared?.sequences ?? batch });
    return shared ? gatherRows(g, mixed, shared.collect) : mixed;
  }

  private carry(step: CarryStep): Tensor {
    const { g, context } = this;
    const { layer, batch, cache, shared, carry } = context;
    const inputs = inputsOf(step).map((name) => this.value(name));
    const run = carriedStep(step, (name) => this.kept(name));
    if (carry) return carry(g, layer, step, inputs, run);
    if (shared) return runShared(g, run, inputs, shared);
    return run(g, inputs, { batch, state: cache?.state(layer, step) });
  }

  private activation({ activation, clamp, gate, x }: ActivationStep): Tensor {
    const { g } = this;
    const value = this.value(x);
    if (gate === undefined) return unary(g, activation, value);
    const factor = this.value(gate);
    if (clamp) return clampedGate(g, factor, value, clamp);
    return activation === "silu"
      ? siluMul(g, factor, value)
      : binary(g, "mul", unary(g, activation, factor), value);
  }
}
