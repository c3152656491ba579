/**
 * A decoder block as a program: a list of typed steps over named values. An architecture lowers each layer to one
 * (`architectures/`); the tape interprets it (`interpret.ts`), a backend prepares it for inference. A step carries
 * everything that its arithmetic depends on, so that nothing downstream knows an architecture, and the order of a block's
 * operations is written in its lowering and nowhere else.
 *
 * Every value is written once. Rows are tokens: a value is [rows, width] unless its step says otherwise.
 */
import { PlanishError } from "../../common/errors.js";
import { isCarry, type ConvStep, type RecurrenceStep } from "./recurrent.js";

/** A value between two steps, named within its block. */
export type ValueName = string;
/** A linear of a block by the part it plays, such as "q" or "down"; an expert's is "experts.3.down". */
export type LinearName = string;
/** A tensor that is kept as it is, in full precision, such as a router. */
export type KeptName = string;
/** A norm of a block by the part it plays. */
export type NormName = string;
/** A place where one activation feeds linears and is transformed and quantized for them, such as "attn_in". */
export type LinearSite = string;
/** A linear site, or a place inside attention that owns a transform: "k_head" or "v_head". */
export type SiteName = string;

/** The value that enters every block. */
export const BLOCK_INPUT: ValueName = "x";

export type Activation = "silu" | "relu" | "relu2" | "gelu" | "geluTanh" | "sigmoid";

export type RopeScaling =
  | { readonly type: "default" }
  | { readonly type: "linear"; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    }
  | {
      /** Peng et al. 2023 (arXiv 2309.00071): frequencies between two numbers of turns blend into interpolated ones. */
      readonly type: "yarn";
      readonly factor: number;
      readonly originalMaxPositions: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      /** Whether the blend begins and ends at whole pairs. */
      readonly truncate: boolean;
      readonly attentionFactor: number;
    }
  | {
      /** The base grows with sequences longer than `originalMaxPositions`. */
      readonly type: "dynamic";
      readonly factor: number;
      readonly originalMaxPositions: number;
    }
  | {
      /** Ding et al. 2024 (arXiv 2402.13753): a divisor for each pair, of one list up to the original length, of another beyond. */
      readonly type: "longrope";
      readonly shortFactors: readonly number[];
      readonly longFactors: readonly number[];
      readonly originalMaxPositions: number;
      readonly attentionFactor: number;
    };

/** What queries at position p are multiplied by: 1 + beta·ln(1 + ⌊(p + first) / length⌋). */
export interface QueryGrowth {
  readonly beta: number;
  readonly length: number;
  /** The number of the first position (default 0). */
  readonly first?: number;
}

/** Rotary positions: which angles a head's pairs of channels turn by. */
export interface Rotary {
  /** A head's channels, in pairs (i, i + dims/2). */
  readonly dims: number;
  /** Channels that turn, where not all do: the pairs from turning/2 on stand still. Frequencies are those of as many. */
  readonly turning?: number;
  /** Multiplies what comes out: queries of long contexts. */
  readonly growth?: QueryGrowth;
  readonly theta: number;
  readonly scaling: RopeScaling;
  /** Checkpoints trained with frequencies rounded to bfloat16 say so (docs/decisions.md); others are exact. */
  readonly frequencyType?: "bfloat16";
}

/**
 * Normalizes groups of `width` channels: whole rows, or every head of a row. All groups share a gain where the norm's place
 * has as many channels; a place as wide as the row has one for each group.
 */
export interface NormStep {
  readonly op: "norm";
  readonly norm: NormName;
  readonly kind: "rms" | "layer";
  readonly width: number;
  readonly epsilon: number;
  readonly x: ValueName;
  readonly out: ValueName;
}

/** Transforms and quantizes an activation for the linears that read it. Its value is read by products only. */
export interface SiteStep {
  readonly op: "site";
  readonly site: LinearSite;
  /** Channels. */
  readonly width: number;
  readonly x: ValueName;
  readonly out: ValueName;
}

/** A linear, bias included. `x` is a site's value. */
export interface ProductStep {
  readonly op: "product";
  readonly linear: LinearName;
  readonly x: ValueName;
  readonly out: ValueName;
}

export interface RopeStep {
  readonly op: "rope";
  readonly rotary: Rotary;
  readonly heads: number;
  readonly headDim: number;
  readonly x: ValueName;
  readonly out: ValueName;
}

/**
 * The transform of the k_head site on keys, or its inverse transpose on queries, and what quantizes queries where a scheme
 * asks for that.
 */
export interface HeadStep {
  readonly op: "head";
  readonly part: "query" | "key";
  readonly heads: number;
  readonly headDim: number;
  readonly x: ValueName;
  readonly out: ValueName;
}

/** Keys and values on their way into the cache; what comes out is what attention reads of them. */
export interface CacheStep {
  readonly op: "cache";
  /** KV heads. */
  readonly heads: number;
  readonly headDim: number;
  readonly k: ValueName;
  readonly v: ValueName;
  readonly outK: ValueName;
  readonly outV: ValueName;
}

/** Causal attention over the cache, [rows, heads·headDim]. */
export interface AttentionStep {
  readonly op: "attention";
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Multiplies the scores. */
  readonly scale: number;
  /** Scores s become cap·tanh(s/cap). */
  readonly softcap?: number;
  /** Positions that a query sees, itself included; absent: all before it. */
  readonly window?: number;
  /** Positions in chunks of so many: a query sees keys of its own chunk only. */
  readonly chunk?: number;
  /** Of each head: what a score gains with every position that its key stands later (ALiBi). */
  readonly slopes?: readonly number[];
  /** A score of each head that takes part in softmax and mixes nothing, [heads]. */
  readonly sinks?: KeptName;
  readonly q: ValueName;
  readonly k: ValueName;
  readonly v: ValueName;
  readonly out: ValueName;
}

export interface GateClamp {
  readonly alpha: number;
  readonly limit: number;
}

/** act(x), or act(gate)·x. */
export interface ActivationStep {
  readonly op: "activation";
  readonly activation: Activation;
  /** (x + 1)·gate·σ(alpha·gate) instead, with gate at most `limit` and x within ±limit. */
  readonly clamp?: GateClamp;
  readonly gate?: ValueName;
  readonly x: ValueName;
  readonly out: ValueName;
}

/**
 * Heads made of parts: channel c of every head is channel order[c] of what lies side by side in the parts, of which each has
 * as many heads or one for all; below zero: 0.
 */
export interface ArrangeStep {
  readonly op: "arrange";
  readonly heads: number;
  readonly headDim: number;
  /** One or two. */
  readonly parts: readonly {
    readonly x: ValueName;
    readonly heads: number;
    readonly dim: number;
  }[];
  readonly order: readonly number[];
  readonly out: ValueName;
}

export interface AddStep {
  readonly op: "add";
  readonly a: ValueName;
  readonly b: ValueName;
  readonly out: ValueName;
}

/** a·b, channel by channel. */
export interface MultiplyStep {
  readonly op: "multiply";
  readonly a: ValueName;
  readonly b: ValueName;
  readonly out: ValueName;
}

/** x · factor, or x times a stored number, [1]. */
export interface ScaleStep {
  readonly op: "scale";
  readonly factor: number | KeptName;
  readonly x: ValueName;
  readonly out: ValueName;
}

/** Columns `from` … `from + width` of rows of `of` columns. */
export interface TakeStep {
  readonly op: "take";
  readonly from: number;
  readonly width: number;
  readonly of: number;
  readonly x: ValueName;
  readonly out: ValueName;
}

/** x, [rows, width], with columns from `at` on replaced by a part's. */
export interface SpliceStep {
  readonly op: "splice";
  readonly width: number;
  readonly parts: readonly {
    readonly x: ValueName;
    readonly at: number;
    readonly width: number;
  }[];
  readonly x: ValueName;
  readonly out: ValueName;
}

/**
 * Chooses experts for every row: its value is a routing, which only `dispatch`, `combine` and `weigh` read. Scores are those
 * of the router's logits, x·routerᵀ (+ bias); the `chosen` highest win, ties to the lower number, and their scores become
 * weights.
 */
export interface RouteStep {
  readonly op: "route";
  /** [experts, width]. */
  readonly router: KeptName;
  /** Added to logits, [experts]. */
  readonly bias?: KeptName;
  /** Added to scores where experts are chosen, and nowhere else, [experts]. */
  readonly correction?: KeptName;
  readonly width: number;
  readonly experts: number;
  readonly chosen: number;
  /** Softmax over all experts, or a sigmoid of each. */
  readonly scores: "softmax" | "sigmoid";
  /** Whether the chosen weights are divided by their sum. */
  readonly normalize: boolean;
  /** Multiplies the weights. */
  readonly factor: number;
  /** Weights multiply what experts read instead of what they give. */
  readonly weighInputs?: boolean;
  /**
   * Experts stand in groups of equal size; only those of the `chosen` best groups can win. A group is as good as the sum of
   * its two highest scores.
   */
  readonly groups?: { readonly count: number; readonly chosen: number };
  readonly x: ValueName;
  readonly out: ValueName;
}

/** The rows that were routed to an expert, in their order. All steps until `combine` see these rows only. */
export interface DispatchStep {
  readonly op: "dispatch";
  readonly expert: number;
  readonly routing: ValueName;
  readonly x: ValueName;
  readonly out: ValueName;
}

/** Every row's sum of what its experts gave, times their weights, [rows, width]. */
export interface CombineStep {
  readonly op: "combine";
  readonly routing: ValueName;
  readonly width: number;
  /** By expert. */
  readonly parts: readonly ValueName[];
  readonly out: ValueName;
}

/** x times the weight of each row's only expert: a gate of one number. */
export interface WeighStep {
  readonly op: "weigh";
  readonly routing: ValueName;
  readonly x: ValueName;
  readonly out: ValueName;
}

export type Step =
  | NormStep
  | SiteStep
  | ProductStep
  | RopeStep
  | HeadStep
  | CacheStep
  | AttentionStep
  | ActivationStep
  | ArrangeStep
  | ConvStep
  | RecurrenceStep
  | AddStep
  | MultiplyStep
  | ScaleStep
  | TakeStep
  | SpliceStep
  | RouteStep
  | DispatchStep
  | CombineStep
  | WeighStep;

/** A tensor, or a matrix of a stack of them, whose rows are all or some of a linear's or norm's. */
export interface StoredPart {
  readonly path: string;
  readonly rows: number;
  /** The tensor's name inside the block, where it is not `<path>.weight`. */
  readonly name?: string;
  /** Stored as [in, out]. */
  readonly transposed?: boolean;
  /** Where it is one of `count` in tensors of these names inside the block. */
  readonly stack?: {
    readonly index: number;
    readonly count: number;
    readonly weight: string;
    readonly bias: string;
  };
}

/** Where a checkpoint keeps what the program has as one linear or norm, if that is no tensor of its own in the same order. */
export interface StoredRows {
  /** Tensors whose rows (of a norm: channels) follow one another. */
  readonly parts: readonly StoredPart[];
  /** Which of these rows, in the program's order; absent: all. */
  readonly order?: readonly number[];
}

/**
 * A linear, and how its checkpoint stores it. A stored path or name that begins with a slash is one of the whole checkpoint, not
 * inside the block. Artifacts store linears and norms as the program has them.
 */
export interface LinearPlace {
  /** Path inside the block, such as "self_attn.q_proj"; its tensors are `<path>.weight` and, where stored, `<path>.bias`. */
  readonly path: string;
  /** [out, in]. */
  readonly shape: readonly [number, number];
  readonly stored?: StoredRows;
  /** Multiplies weights and bias when they are read from a checkpoint. */
  readonly factor?: number;
  /** Multiplies rows and their biases, one for each of the program's rows. */
  readonly rowFactors?: readonly number[];
  /** A number of a stored list that does too. */
  readonly scaledBy?: { readonly name: string; readonly length: number; readonly index: number };
}

export interface NormPlace {
  readonly path: string;
  readonly width: number;
  readonly stored?: StoredRows;
  /** Added to the stored gain: checkpoints that hold its difference from 1. */
  readonly offset?: number;
  /** Multiplies the gain, what was added included. */
  readonly factor?: number;
  /** Stored nowhere: the gain is 1 everywhere. */
  readonly unit?: boolean;
}

/** A tensor that is neither a linear of a site nor a norm: never transformed nor quantized. */
export interface KeptPlace {
  /** Name inside the block, such as "mlp.gate.weight". */
  readonly path: string;
  readonly shape: readonly number[];
}

export interface BlockProgram {
  readonly steps: readonly Step[];
  /** The value that leaves the block. */
  readonly out: ValueName;
  readonly linears: Readonly<Record<LinearName, LinearPlace>>;
  readonly norms: Readonly<Record<NormName, NormPlace>>;
  readonly kept: Readonly<Record<KeptName, KeptPlace>>;
}

/** Where a positive factor per channel of a site's activation can go instead: into what computes that activation. */
export type Upstream =
  /** A norm that feeds this site alone: its gain and bias. */
  | { readonly kind: "norm"; readonly norm: NormName }
  /** Output rows of the linear that the activation function lets them through to: ReLU, or a gated MLP's linear half. */
  | { readonly kind: "rows"; readonly linear: LinearName }
  /** Rows of the values' linear, through attention: those of a KV head, where its query heads agree. */
  | { readonly kind: "values"; readonly linear: LinearName };

/** A linear site of a block, as methods see it. */
export interface SitePlace {
  readonly site: LinearSite;
  readonly width: number;
  /** The linears that read it, in the block's order. */
  readonly linears: readonly LinearName[];
  readonly upstream: Upstream | undefined;
  /** Where the activation is attention's output of a linear's values: its heads, and that linear. */
  readonly attention?: AttentionPlace;
  /** Of an expert's own sites: which one it is. */
  readonly expert?: number;
}

/** Attention as its sites see it. */
export interface AttentionPlace {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** The linear whose output the values are. */
  readonly values: LinearName;
}

/** Names of the values that a step reads. */
export function inputsOf(step: Step): readonly ValueName[] {
  switch (step.op) {
    case "cache":
      return [step.k, step.v];
    case "attention":
      return [step.q, step.k, step.v];
    case "activation":
      return step.gate === undefined ? [step.x] : [step.gate, step.x];
    case "recurrence":
      return step.beta === undefined ? [step.x, step.step] : [step.x, step.step, step.beta];
    case "add":
    case "multiply":
      return [step.a, step.b];
    case "arrange":
      return step.parts.map(({ x }) => x);
    case "dispatch":
    case "weigh":
      return [step.routing, step.x];
    case "combine":
      return [step.routing, ...step.parts];
    case "splice":
      return [step.x, ...step.parts.map(({ x }) => x)];
    case "route":
    case "norm":
    case "site":
    case "product":
    case "rope":
    case "head":
    case "conv":
    case "scale":
    case "take":
      return [step.x];
  }
}

/** Names of the values that a step writes. */
export function outputsOf(step: Step): readonly ValueName[] {
  return step.op === "cache" ? [step.outK, step.outV] : [step.out];
}

/** What a program's values come from and go to. */
export interface Flow {
  /** The step that wrote a value; undefined for the block's input. */
  producer(value: ValueName): Step | undefined;
  consumers(value: ValueName): readonly Step[];
}

const FLOWS = new WeakMap<BlockProgram, Flow>();

/** @throws PlanishError where a value is written twice or read before it is written: the lowering is wrong. */
export function flowOf(program: BlockProgram): Flow {
  const known = FLOWS.get(program);
  if (known) return known;
  const producers = new Map<ValueName, Step | undefined>([[BLOCK_INPUT, undefined]]);
  const consumers = new Map<ValueName, Step[]>();
  for (const step of program.steps) {
    for (const value of inputsOf(step)) {
      if (!producers.has(value))
        throw new PlanishError(
          `block program: ${step.op} reads "${value}", which no step before it writes`,
        );
      const list = consumers.get(value) ?? [];
      if (!list.includes(step)) consumers.set(value, [...list, step]);
    }
    for (const value of outputsOf(step)) {
      if (producers.has(value))
        throw new PlanishError(`block program: "${value}" is written twice`);
      producers.set(value, step);
    }
  }
  if (!producers.has(program.out))
    throw new PlanishError(`block program: no step writes its output "${program.out}"`);
  const flow: Flow = {
    producer: (value) => producers.get(value),
    consumers: (value) => consumers.get(value) ?? [],
  };
  FLOWS.set(program, flow);
  return flow;
}

const SITES = new WeakMap<BlockProgram, readonly SitePlace[]>();

/** The linear sites of a block in its order. */
export function sitesOf(program: BlockProgram): readonly SitePlace[] {
  const known = SITES.get(program);
  if (known) return known;
  const flow = flowOf(program);
  const places = program.steps.flatMap((step): SitePlace[] => {
    if (step.op !== "site") return [];
    const linears = productsOf(flow, step).map(({ linear }) => linear);
    const source = flow.producer(step.x);
    return [
      {
        site: step.site,
        width: step.width,
        linears,
        upstream: upstreamOf(flow, step),
        attention: source?.op === "attention" ? attentionPlace(flow, source) : undefined,
        expert: expertOf(flow, step.x),
      },
    ];
  });
  SITES.set(program, places);
  return places;
}

/** The products that read a site, those of experts included. */
function productsOf(flow: Flow, { site, out }: SiteStep): ProductStep[] {
  const read = (value: ValueName): ProductStep[] =>
    flow.consumers(value).flatMap((reader) => {
      if (reader.op === "product") return [reader];
      if (reader.op === "dispatch" && value === out) return read(reader.out);
      throw new PlanishError(
        `block program: ${reader.op} reads the site ${site}; only products and experts can`,
      );
    });
  return read(out);
}

/** The expert whose rows a value has; undefined for a value of all rows. */
export function expertOf(flow: Flow, value: ValueName): number | undefined {
  const step = flow.producer(value);
  if (!step || step.op === "combine" || step.op === "attention" || isCarry(step)) return undefined;
  if (step.op === "dispatch") return step.expert;
  return inputsOf(step)
    .map((input) => expertOf(flow, input))
    .find((expert) => expert !== undefined);
}

/** The experts' choice of a block; undefined in blocks without experts. */
export function routingOf(program: BlockProgram): RouteStep | undefined {
  const combined = program.steps.find((step) => step.op === "combine");
  return program.steps.find(
    (step): step is RouteStep => step.op === "route" && step.out === combined?.routing,
  );
}

function upstreamOf(flow: Flow, step: SiteStep): Upstream | undefined {
  const source = flow.producer(step.x);
  const alone = flow.consumers(step.x).length === 1;
  if (!source || !alone) return undefined;
  if (source.op === "norm") return { kind: "norm", norm: source.norm };
  if (source.op === "attention") {
    const values = attentionPlace(flow, source)?.values;
    return values === undefined ? undefined : { kind: "values", linear: values };
  }
  if (source.op !== "activation" || (source.gate === undefined && source.activation !== "relu"))
    return undefined;
  const linear = flow.producer(source.x);
  if (linear?.op !== "product" || flow.consumers(source.x).length !== 1) return undefined;
  return { kind: "rows", linear: linear.linear };
}

/** Undefined where values are something else than a linear's output: normed, or of another block. */
function attentionPlace(
  flow: Flow,
  { heads, kvHeads, headDim, v }: AttentionStep,
): AttentionPlace | undefined {
  const cache = flow.producer(v);
  const product = cache?.op === "cache" ? flow.producer(cache.v) : undefined;
  if (product?.op !== "product") return undefined;
  return { heads, kvHeads, headDim, values: product.linear };
}

/** @throws PlanishError when the block has no such site. */
export function siteNamed(program: BlockProgram, site: LinearSite): SitePlace {
  const found = sitesOf(program).find((place) => place.site === site);
  if (!found)
    throw new PlanishError(
      `the block has no site "${site}"; it has ${sitesOf(program)
        .map((s) => s.site)
        .join(", ")}`,
    );
  return found;
}

/** The site whose activation a linear reads. @throws PlanishError when the block has no such linear. */
export function siteOfLinear(program: BlockProgram, linear: LinearName): SitePlace {
  const found = sitesOf(program).find(({ linears }) => linears.includes(linear));
  if (!found)
    throw new PlanishError(
      `the block has no linear "${linear}"; it has ${Object.keys(program.linears).join(", ")}`,
    );
  return found;
}

/** The block's attention steps. */
export function attentionsOf(program: BlockProgram): readonly AttentionStep[] {
  return program.steps.filter((step) => step.op === "attention");
}

/**
 * KV heads and their channels that a token leaves in a block's cache; undefined for a block without attention.
 * @throws PlanishError when it has several caches.
 */
export function cacheOf(program: BlockProgram): Pick<CacheStep, "heads" | "headDim"> | undefined {
  const caches = program.steps.filter((step) => step.op === "cache");
  if (caches.length > 1)
    throw new PlanishError(
      `a block with ${caches.length} caches cannot be run with one; at most 1 is accepted`,
    );
  return caches.at(0);
}

/** The same of a block that has attention. @throws PlanishError when it has none. */
export function cacheShape(program: BlockProgram): Pick<CacheStep, "heads" | "headDim"> {
  const cache = cacheOf(program);
  if (!cache) throw new PlanishError("a block without attention has no cache of keys and values");
  return cache;
}

/** Channels of keys (and of values) that a token leaves in a block's cache; 0 for a block without attention. */
export function cacheWidth(program: BlockProgram): number {
  const { heads, headDim } = cacheOf(program) ?? { heads: 0, headDim: 0 };
  return heads * headDim;
}

/** The different rotary positions of some blocks. */
export function rotariesOf(programs: readonly BlockProgram[]): readonly Rotary[] {
  const found = new Map<string, Rotary>();
  for (const { steps } of programs)
    for (const step of steps)
      if (step.op === "rope") found.set(rotaryKey(step.rotary), step.rotary);
  return [...found.values()];
}

/** Equal for equal tables. */
export function rotaryKey(rotary: Rotary): string {
  const { dims, turning, theta, scaling, frequencyType, growth } = rotary;
  return JSON.stringify([
    dims,
    turning ?? dims,
    theta,
    scaling,
    frequencyType ?? null,
    growth ?? null,
  ]);
}
