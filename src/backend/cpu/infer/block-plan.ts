/** Prepares a block program for the CPU's engine: its fused steps (`fuse.ts`) as calls of the native kernels. */
import type { CODES } from "../../contract/abi.js";
import type { PackedKind } from "../../contract/inference-kernels.js";
import { PlanishError } from "../../../common/errors.js";
import {
  BLOCK_INPUT,
  rotaryKey,
  type BlockProgram,
  type GateClamp,
  type KeptName,
  type LinearName,
  type LinearSite,
  type NormStep,
  type ValueName,
} from "../../contract/program.js";
import { recurrenceWords, type CarryStep } from "../../contract/recurrent.js";
import type { Scheme } from "../../contract/scheme.js";
import {
  fuse,
  NoKernel,
  type FusedActivation,
  type FusedAdd,
  type FusedArrange,
  type FusedAttention,
  type FusedCache,
  type FusedCarry,
  type FusedExperts,
  type FusedInput,
  type FusedMultiply,
  type FusedNorm,
  type FusedRoute,
  type FusedScale,
  type FusedSite,
  type FusedSplice,
  type FusedStep,
  type FusedTake,
  type FusedTransform,
  type FusedWeigh,
} from "../../contract/fuse.js";
import { MOST_SETS, STEP_ROWS, type RotaryBuffers, type StepBuffers } from "./buffers.js";
import type { EngineMemory } from "./memory.js";
import {
  clipLogits,
  type PlacedBlock,
  type PlacedNorm,
  type PlacedTransform,
} from "./placed-block.js";
import type { PackedMatrix } from "./packed-matrix.js";
import { Plan, type GroupPart, type ProductPart } from "./plan.js";
import type { Slot, Slots } from "../../contract/slots.js";

/** Everything that block plans share. */
export interface PlanContext {
  readonly memory: EngineMemory;
  readonly plan: Plan;
  readonly scheme: Scheme;
  readonly kind: PackedKind;
  readonly buffers: StepBuffers;
  readonly rotary: ReadonlyMap<string, RotaryBuffers>;
  readonly slots: Slots;
  /** Where a slot lies. */
  readonly address: (slot: Slot) => bigint;
  readonly pages: bigint;
  readonly pageBytes: number;
  /** Where sequences' states begin, and numbers from one to the next. */
  readonly states: bigint;
  readonly stateStride: number;
}

/** Where a layer's part of what sequences leave behind lies. */
export interface LayerPlace {
  /** In page 0. */
  readonly cache: bigint;
  /** Numbers into a sequence's state, by step. */
  readonly states: ReadonlyMap<CarryStep, number>;
}

/** What a site's kernel reads. */
interface SiteInput {
  readonly input: (typeof CODES.SiteInput)[number];
  readonly x: bigint;
  readonly x2?: bigint;
  readonly op?: (typeof CODES.UnaryOp)[number];
  readonly norm?: PlacedNorm;
  readonly epsilon?: number;
  readonly clamp?: GateClamp;
}

/** Where a product's output goes. */
interface ProductOutput {
  readonly address: bigint;
  readonly width: number;
}

/**
 * Appends a block's calls to the plan. `input`: where the block's input lies; `place`: this layer's part of the cache.
 * Returns where its output lies.
 * @throws NoKernel naming what has no kernel.
 */
export function planBlock(
  context: PlanContext,
  program: BlockProgram,
  block: PlacedBlock,
  input: Slot,
  place: LayerPlace,
): Slot {
  return new BlockPlanner(context, block, input, place).run(program);
}

class BlockPlanner {
  private readonly slotOf = new Map<ValueName, Slot>();

  constructor(
    private readonly context: PlanContext,
    private readonly block: PlacedBlock,
    input: Slot,
    private readonly place: LayerPlace,
  ) {
    this.slotOf.set(BLOCK_INPUT, input);
  }

  run(program: BlockProgram): Slot {
    return this.steps(fuse(program), program.out);
  }

  private steps(steps: readonly FusedStep[], out: ValueName): Slot {
    for (const step of steps) {
      this.step(step);
      for (const value of step.frees) this.context.slots.release(this.slot(value));
    }
    return this.slot(out);
  }

  private step(step: FusedStep): void {
    switch (step.op) {
      case "site":
        this.site(step);
        break;
      case "cache":
        this.cacheWrite(step);
        break;
      case "attention":
        this.attention(step);
        break;
      case "norm":
        this.norm(step);
        break;
      case "add":
      case "multiply":
        this.pair(step);
        break;
      case "activation":
        this.activation(step);
        break;
      case "carry":
        this.carry(step);
        break;
      case "transform":
        this.transform(step);
        break;
      case "route":
        this.route(step);
        break;
      case "experts":
        this.experts(step);
        break;
      case "weigh":
        this.weigh(step);
        break;
      case "arrange":
        this.arrange(step);
        break;
      case "scale":
        this.scale(step);
        break;
      case "take":
        this.columns(step);
        break;
      case "splice":
        this.splice(step);
        break;
    }
  }

  private slot(value: ValueName): Slot {
    const found = this.slotOf.get(value);
    if (found === undefined) throw new NoKernel(`the value "${value}" lies nowhere`);
    return found;
  }

  private address(value: ValueName): bigint {
    return this.context.address(this.slot(value));
  }

  private take(value: ValueName, width: number): void {
    this.slotOf.set(value, this.context.slots.take(width));
  }

  private norm({ step, groups, gains, inPlace }: FusedNorm): void {
    const { kind, width, epsilon, x, out } = step;
    const { gain, bias } = this.placedNorm(step);
    const from = this.address(x);
    if (inPlace) this.slotOf.set(out, this.slot(x));
    else this.take(out, groups * width);
    const shared = { kind, x: from, groups, cols: width, gain, epsilon, out: this.address(out) };
    const { plan } = this.context;
    if (gains === 1) plan.add("norm", { ...shared, bias });
    else if (bias === 0n) plan.add("groupedNorm", { ...shared, gains });
    else throw new NoKernel("a norm whose groups have gains and biases of their own has no kernel");
  }

  private pair({ op, step, width, onto }: FusedAdd | FusedMultiply): void {
    const [a, b] = [this.address(step.a), this.address(step.b)];
    if (onto === undefined) this.take(step.out, width);
    else this.slotOf.set(step.out, this.slot(onto));
    const out = this.address(step.out);
    this.context.plan.add("binary", {
      op: op === "add" ? "add" : "mul",
      ...{ cols: width, a, b, broadcast: "full", out },
    });
  }

  private activation({ step, width }: FusedActivation): void {
    const { plan } = this.context;
    const { activation: op, gate, x } = step;
    this.take(step.out, width);
    const out = this.address(step.out);
    plan.add("unary", { op, x: this.address(gate ?? x), length: width, out });
    if (gate === undefined) return;
    const b = this.address(x);
    plan.add("binary", { op: "mul", cols: width, a: out, b, broadcast: "full", out });
  }

  private carry({ step, width }: FusedCarry): void {
    const { plan, buffers, states, stateStride: stride } = this.context;
    const at = this.place.states.get(step);
    if (at === undefined) throw new PlanishError("a step's state lies nowhere");
    this.take(step.out, width);
    const optional = (name: KeptName | undefined) =>
      name === undefined ? undefined : this.kept(name);
    const shared = {
      table: buffers.chunks.address,
      slots: buffers.slots.address,
      state: states + BigInt(4 * at),
      stride,
      x: this.address(step.x),
      out: this.address(step.out),
    };
    if (step.op === "conv") {
      const { channels, taps, weight, bias } = step;
      const weights = { weight: this.kept(weight), bias: optional(bias) };
      plan.add("carryConv", { ...shared, channels, taps, ...weights });
      return;
    }
    const { heads, keyHeads, keyDim, valueDim, width: rowWidth, scale } = step;
    plan.add("carryRecurrence", {
      ...shared,
      ...{ heads, keyHeads, keyDim, valueDim, width: rowWidth, scale },
      ...recurrenceWords(step),
      step: this.address(step.step),
      beta: step.beta === undefined ? undefined : this.address(step.beta),
      rate: this.kept(step.rate),
      bias: this.kept(step.bias),
      skip: optional(step.skip),
    });
  }

  /** What a site's linears read, in f32. */
  private transform({ step, input }: FusedTransform): void {
    const { site, width, out } = step;
    const from = this.siteInput(input);
    this.take(out, width);
    this.context.plan.add("site", {
      ...this.siteArguments(from, this.transformAt(site, width)),
      bits: 16,
      span: width,
      sets: 0,
      capacity: STEP_ROWS,
      out: this.address(out),
    });
  }

  /** Where a routing's weights and experts lie: one slot for both. */
  private routing(value: ValueName, chosen: number): { weights: bigint; ids: bigint } {
    const weights = this.address(value);
    return { weights, ids: weights + BigInt(4 * STEP_ROWS * chosen) };
  }

  private route({ step }: FusedRoute): void {
    const { x, width, experts, chosen, scores, normalize, factor, groups } = step;
    const from = this.address(x);
    this.take(step.out, 2 * chosen);
    this.context.plan.add("route", {
      x: from,
      width,
      router: this.kept(step.router),
      bias: step.bias === undefined ? undefined : this.kept(step.bias),
      correction: step.correction === undefined ? undefined : this.kept(step.correction),
      experts,
      chosen,
      scores,
      normalize,
      factor,
      groups: groups?.count ?? 1,
      openGroups: groups?.chosen ?? 1,
      ...this.routing(step.out, chosen),
    });
  }

  private kept(name: KeptName): bigint {
    const found = this.block.kept[name];
    if (found === undefined) throw new PlanishError(`the block's weights have no "${name}"`);
    return found;
  }

  /** Experts are plans of their own, which read the same gathered rows and use the same memory one after the other. */
  private experts({ step, route, x, width, experts, out, onto }: FusedExperts): void {
    const { memory, plan, slots } = this.context;
    // Taken first: what experts give is added to it while they work.
    if (onto === undefined) this.take(out, step.width);
    const gathered = slots.take(width);
    const table = experts.flatMap((expert) => {
      const own = new Plan(memory);
      const context = { ...this.context, plan: own };
      const planner = new BlockPlanner(context, this.block, gathered, this.place);
      const result = planner.steps(expert.steps, expert.out);
      slots.release(result);
      return [own.finish(), BigInt(own.length), this.context.address(result)];
    });
    slots.release(gathered);
    if (onto !== undefined) this.slotOf.set(out, this.slot(onto));
    const { chosen, weighInputs = false } = route;
    plan.add("experts", {
      x: this.address(x),
      width,
      experts: experts.length,
      chosen,
      weighInputs,
      ...this.routing(step.routing, chosen),
      order: memory.alloc("i32", STEP_ROWS * chosen + experts.length + 1).address,
      table: plan.table(table),
      gathered: this.context.address(gathered),
      outWidth: step.width,
      accumulate: onto !== undefined,
      out: this.address(out),
    });
  }

  private weigh({ step, width, inPlace }: FusedWeigh): void {
    const a = this.address(step.x);
    if (inPlace) this.slotOf.set(step.out, this.slot(step.x));
    else this.take(step.out, width);
    this.context.plan.add("binary", {
      op: "mul",
      cols: width,
      a,
      b: this.routing(step.routing, 1).weights,
      broadcast: "column",
      out: this.address(step.out),
    });
  }

  private arrange({ step }: FusedArrange): void {
    const { parts, heads, headDim, order, out } = step;
    const [a, b] = parts.map(({ x, ...shape }) => ({ ...shape, address: this.address(x) }));
    this.take(out, heads * headDim);
    const { memory, plan } = this.context;
    plan.add("arrange", {
      a: a.address,
      aHeads: a.heads,
      aDim: a.dim,
      b: b?.address,
      bHeads: b?.heads ?? 0,
      bDim: b?.dim ?? 0,
      heads,
      headDim,
      order: memory.integers(order).address,
      out: this.address(out),
    });
  }

  private scale({ step, width, inPlace }: FusedScale): void {
    const { x, factor, out } = step;
    const from = this.address(x);
    if (inPlace) this.slotOf.set(out, this.slot(x));
    else this.take(out, width);
    const { plan } = this.context;
    const to = this.address(out);
    if (typeof factor === "number")
      plan.add("scale", { x: from, length: width, alpha: factor, accumulate: false, out: to });
    else {
      const b = this.kept(factor);
      plan.add("binary", { op: "mul", cols: width, a: from, b, broadcast: "scalar", out: to });
    }
  }

  private columns({ step: { x, from, width, of, out } }: FusedTake): void {
    const address = this.address(x) + BigInt(4 * from);
    this.take(out, width);
    this.context.plan.add("columns", {
      x: address,
      cols: width,
      xStride: of,
      out: this.address(out),
      outStride: width,
    });
  }

  private splice({ step: { x, width, parts, out }, inPlace }: FusedSplice): void {
    const { plan } = this.context;
    const from = this.address(x);
    if (inPlace) this.slotOf.set(out, this.slot(x));
    else {
      this.take(out, width);
      const whole = { cols: width, xStride: width, outStride: width };
      plan.add("columns", { x: from, ...whole, out: this.address(out) });
    }
    for (const part of parts)
      plan.add("columns", {
        x: this.address(part.x),
        cols: part.width,
        xStride: part.width,
        out: this.address(out) + BigInt(4 * part.at),
        outStride: width,
      });
  }

  private placedNorm({ norm }: NormStep): PlacedNorm {
    const found = this.block.norms[norm];
    if (!found) throw new PlanishError(`the block's weights have no norm "${norm}"`);
    return found;
  }

  private cacheWrite({ step, attention, queries: q, keys: k }: FusedCache): void {
    const { plan, scheme, buffers, rotary: tables } = this.context;
    const turned = k.rotary && tables.get(rotaryKey(k.rotary));
    const grown = q.rotary?.growth && tables.get(rotaryKey(q.rotary));
    plan.add("cacheWrite", {
      table: buffers.chunks.address,
      pages: this.context.pages,
      heads: attention.heads,
      kvHeads: step.heads,
      headDim: step.headDim,
      q: this.address(q.root),
      k: this.address(k.root),
      v: this.address(step.v),
      qGain: q.norm && this.placedNorm(q.norm).gain,
      kGain: k.norm && this.placedNorm(k.norm).gain,
      epsilon: (q.norm ?? k.norm)?.epsilon ?? 0,
      cosine: turned?.cosine.address,
      sine: turned?.sine.address,
      qMatrix: this.block.queryMatrix,
      kMatrix: this.block.keyMatrix,
      kDiag: this.block.keyDiag,
      kShift: this.block.keyShift,
      queryBits: scheme.queryBits ?? 16,
      bits: scheme.kvBits,
      clips: this.block.cacheClips,
      cache: this.place.cache,
      pageBytes: this.context.pageBytes,
      qScale: grown?.growth?.address,
    });
  }

  private attention({ step, queries }: FusedAttention): void {
    const { memory, plan, scheme, buffers, pages, pageBytes } = this.context;
    const { heads, kvHeads, headDim, window, chunk, scale, softcap, sinks, slopes, out } = step;
    this.take(out, heads * headDim);
    plan.add("pagedAttention", {
      table: buffers.chunks.address,
      pages,
      heads,
      kvHeads,
      headDim,
      window: window ?? 0,
      chunk: chunk ?? 0,
      scale,
      softcap: softcap ?? 0,
      q: this.address(queries),
      bits: scheme.kvBits,
      cache: this.place.cache,
      pageBytes,
      out: this.address(out),
      sinks: sinks === undefined ? undefined : this.kept(sinks),
      slopes: slopes && memory.floats([...slopes]).address,
    });
  }

  /** A site: its activation, then its linears. */
  private site(fused: FusedSite): void {
    const { plan, scheme, buffers, memory } = this.context;
    const { width, site } = fused.step;
    const from = this.siteInput(fused.input);
    const roles = fused.products.map(({ step }) => step.linear);
    const transform = fused.ready ? untransformed(width) : this.transformAt(site, width);
    const gridded = roles.some((role) => this.block.grids[role]);
    const real = scheme.activationBits >= 16 || gridded;

    // Linears without clips of their own share one set of codes.
    const clips: [number, number][] = [];
    let shared: number | undefined;
    const setOf = roles.map((role) => {
      const clip = this.block.clips[role];
      if (!clip && shared !== undefined) return shared;
      clips.push(clipLogits(clip));
      if (!clip) shared = clips.length - 1;
      return clips.length - 1;
    });
    const span = scheme.activationGroup ?? width;
    if (clips.length > MOST_SETS) throw new RangeError(`${clips.length} sets of codes at ${site}`);

    const untouched = real && from.input === "plain" && !transform.left && !transform.right;
    if (!untouched)
      plan.add("site", {
        ...this.siteArguments(from, transform),
        bits: real ? 16 : (this.block.activationBits[site] ?? scheme.activationBits),
        span,
        sets: clips.length,
        capacity: STEP_ROWS,
        clips: memory.floats(clips.flat()).address,
        codes: buffers.codes.address,
        scale: buffers.scales.address,
        offset: buffers.offsets?.address,
        out: buffers.reals.address,
      });
    const x = untouched ? from.x : buffers.reals.address;
    const outputs = this.outputs(fused);
    const { accumulate } = fused;
    if (gridded) {
      this.gridProducts(roles, { x, width }, outputs, accumulate);
      return;
    }
    this.product(width, roles, outputs, accumulate, (role) => {
      if (real) return { a: x, aScale: 0n, aOffset: 0n };
      const set = setOf[roles.indexOf(role)];
      const scales = BigInt(((set * STEP_ROWS * width) / span) * 4);
      return {
        a: buffers.codes.address + BigInt(set * STEP_ROWS * width),
        aScale: buffers.scales.address + scales,
        aOffset: buffers.offsets ? buffers.offsets.address + scales : 0n,
      };
    });
  }

  private transformAt(site: LinearSite, width: number): PlacedTransform {
    return this.block.transforms[site] ?? untransformed(width);
  }

  private siteArguments(from: SiteInput, { nLeft, nRight, left, right }: PlacedTransform) {
    return {
      input: from.input,
      // Read by inputs with an activation only.
      op: from.op ?? "sigmoid",
      x: from.x,
      x2: from.x2,
      nLeft,
      nRight,
      gain: from.norm?.gain,
      bias: from.norm?.bias,
      epsilon: from.epsilon ?? 0,
      left,
      right,
      alpha: from.clamp?.alpha ?? 0,
      limit: from.clamp?.limit ?? 0,
    };
  }

  private siteInput(input: FusedInput): SiteInput {
    if (input.kind === "plain") return { input: "plain", x: this.address(input.x) };
    if (input.kind === "norm") {
      const { kind, x, epsilon } = input.step;
      return { input: kind, x: this.address(x), norm: this.placedNorm(input.step), epsilon };
    }
    const { activation, clamp, gate, x } = input.step;
    const op = activation;
    if (clamp && gate !== undefined)
      return { input: "clamped", x: this.address(gate), x2: this.address(x), clamp };
    return gate === undefined
      ? { input: "activation", x: this.address(x), op }
      : { input: "gated", x: this.address(gate), x2: this.address(x), op };
  }

  private outputs({ products }: FusedSite): ReadonlyMap<LinearName, ProductOutput> {
    return new Map(
      products.map(({ step, width, out, onto }) => {
        if (onto === undefined) this.take(out, width);
        else this.slotOf.set(out, this.slot(onto));
        return [step.linear, { address: this.address(out), width }];
      }),
    );
  }

  /**
   * Linears with static grids of their own: each quantizes the activation its way and multiplies at its own width; linears
   * whose grids are the same share both, where their weights have the same width too.
   */
  private gridProducts(
    roles: readonly LinearName[],
    from: { readonly x: bigint; readonly width: number },
    outputs: ReadonlyMap<LinearName, ProductOutput>,
    accumulate: boolean,
  ): void {
    const { plan, buffers } = this.context;
    const groups = new Map<string, LinearName[]>();
    for (const role of roles) {
      const grid = this.block.grids[role];
      const matrix = this.block.linears[role];
      if (!grid || !matrix)
        throw new PlanishError(`linear "${role}" has no static grid, and others of its site do`);
      const key = `${matrix.kind} ${grid.key}`;
      groups.set(key, [...(groups.get(key) ?? []), role]);
    }
    for (const members of groups.values()) {
      const grid = this.block.grids[members[0]];
      const first = this.block.linears[members[0]];
      if (!grid || !first) continue;
      const columns = first.shape[1];
      plan.add("flattenRows", {
        x: from.x,
        cols: from.width,
        bits: grid.bits,
        step: grid.step,
        factor: grid.factor,
        extras: grid.extras,
        channel: grid.channel,
        part: grid.part,
        stride: columns,
        codes: buffers.codes.address,
        scale: buffers.scales.address,
      });
      const codes = { a: buffers.codes.address, aScale: buffers.scales.address, aOffset: 0n };
      this.product(columns, members, outputs, accumulate, () => codes);
    }
  }

  /** Products of linears whose activations have `columns` columns: one call for all whose weights are kept alike. */
  private product(
    columns: number,
    roles: readonly LinearName[],
    outputs: ReadonlyMap<LinearName, ProductOutput>,
    accumulate: boolean,
    activationOf: (role: LinearName) => Pick<GroupPart, "a" | "aScale" | "aOffset">,
  ): void {
    const { plan, scheme } = this.context;
    const alike = new Map<string, { part: GroupPart & ProductPart; matrix: PackedMatrix }[]>();
    for (const role of roles) {
      const matrix = this.block.linears[role];
      const out = outputs.get(role);
      if (!matrix || !out) continue;
      const { groups } = matrix;
      const part = {
        n: matrix.shape[0],
        ...activationOf(role),
        packed: matrix.address,
        bScale: matrix.scale,
        bias: matrix.bias,
        form: groups?.form ?? 0,
        out: out.address,
        outStride: out.width,
      };
      const key = groups ? `${matrix.kind} ${groups.size}` : matrix.kind;
      alike.set(key, [...(alike.get(key) ?? []), { part, matrix }]);
    }
    for (const members of alike.values()) {
      const parts = members.map(({ part }) => part);
      const [{ matrix }] = members;
      if (matrix.groups) {
        plan.add("groupMatmulParts", {
          kind: matrix.kind,
          k: columns,
          group: matrix.groups.size,
          span: scheme.activationGroup ?? columns,
          parts: parts.length,
          table: plan.groupParts(parts),
          accumulate,
        });
        continue;
      }
      plan.add("packedMatmulParts", {
        kind: matrix.kind,
        k: columns,
        parts: parts.length,
        table: plan.parts(parts),
        accumulate,
      });
    }
  }
}

function untransformed(width: number): PlacedTransform {
  return { nLeft: 1, nRight: width, left: 0n, right: 0n };
}
