/**
 * Runs a block program on the tape: for training and scoring, in full precision or simulated. `BlockHooks` are asked for
 * whatever a quantizer may change: what a site's linears read and give, and queries, keys and values on their way into
 * attention. Plain hooks compute the original model; methods and packed artifacts bring their own.
 */
import { PlanishError } from "../common/errors.js";
import type { Buffer } from "../backend/contract/training.js";
import {
  add,
  attention,
  binary,
  gatherRows,
  linear,
  norm,
  rope,
  scale,
  siluMul,
  unary,
  type RopeTables,
} from "../tensor/ops/index.js";
import type { Graph, Tensor } from "../tensor/tensor.js";
import {
  BLOCK_INPUT,
  flowOf,
  outputsOf,
  rotaryKey,
  type ActivationStep,
  type AttentionStep,
  type BlockProgram,
  type HeadStep,
  type LinearName,
  type LinearSite,
  type NormStep,
  type SiteStep,
  type Step,
  type ValueName,
} from "../backend/contract/program.js";
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
}

/** How many heads lie side by side, and the channels of each. */
export type HeadShape = Pick<HeadStep, "heads" | "headDim">;

export interface BlockHooks {
  /** Outputs of the site's linears in the order of `linears`; x: [rows, in]. */
  linears(g: Graph, site: LinearSite, x: Tensor, linears: readonly LinearName[]): Tensor[];
  /** Queries after RoPE, [rows, heads·headDim]. */
  queries?(g: Graph, q: Tensor, heads: HeadShape): Tensor;
  /** Keys after RoPE, [rows, kvHeads·headDim]; what comes out is what a cache would hold. */
  keys?(g: Graph, k: Tensor, heads: HeadShape): Tensor;
  values?(g: Graph, v: Tensor, heads: HeadShape): Tensor;
}

/** Past keys and values of one sequence; `extend` appends and returns all of them. */
export interface KeyValueCache {
  readonly length: number;
  extend(g: Graph, layer: number, k: Tensor, v: Tensor): { k: Tensor; v: Tensor };
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
  readonly cache?: KeyValueCache;
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
  ) => Tensor;
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
      // A site's products are computed with it, as the hooks want them.
      if (step.op === "product") continue;
      if (step.op === "site") this.site(step);
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
    const products = flowOf(this.program)
      .consumers(out)
      .filter((step) => step.op === "product");
    const names = products.map((product) => product.linear);
    const outputs = this.hooks.linears(this.g, site, this.value(x), names);
    products.forEach((product, i) => this.values.set(product.out, outputs[i]));
  }

  private step(step: Exclude<Step, { readonly op: "site" | "product" }>): readonly Tensor[] {
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
      case "activation":
        return [this.activation(step)];
      case "add":
        return [add(g, this.value(step.a), this.value(step.b))];
      case "scale":
        return [scale(g, this.value(step.x), step.factor)];
    }
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
    if (attend) return attend(g, layer, step, q, k, v);
    if (cache) ({ k, v } = cache.extend(g, layer, k, v));
    if (shared) [q, k, v] = [q, k, v].map((rows) => gatherRows(g, rows, shared.spread));
    const mixed = attention(g, q, k, v, { ...step, batch: shared?.sequences ?? batch });
    return shared ? gatherRows(g, mixed, shared.collect) : mixed;
  }

  private activation({ activation, gate, x }: ActivationStep): Tensor {
    const { g } = this;
    const value = this.value(x);
    if (gate === undefined) return unary(g, activation, value);
    const factor = this.value(gate);
    return activation === "silu"
      ? siluMul(g, factor, value)
      : binary(g, "mul", unary(g, activation, factor), value);
  }
}
