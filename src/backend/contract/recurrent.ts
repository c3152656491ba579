/**
 * Steps of block programs that carry a state from token to token: short convolutions, and recurrences of matrices (the
 * gated delta rule, and Mamba-2's selective scan, which differ in one term). Beside keys and values, or in their place, a
 * sequence then has a state of fixed size. It stays in floats, whatever the scheme: only linears before and after it are
 * sites.
 */
/** Names as programs have them (program.ts): of values, and of tensors that are kept as they are. */
type ValueName = string;
type KeptName = string;

/**
 * A causal convolution of each channel by itself: out[t,c] = Σ_j weight[c,j]·x[t − (taps − 1) + j, c] (+ bias[c]). Its state
 * is the last taps − 1 inputs.
 */
export interface ConvStep {
  readonly op: "conv";
  /** [channels, 1, taps]. */
  readonly weight: KeptName;
  /** [channels]. */
  readonly bias?: KeptName;
  readonly channels: number;
  readonly taps: number;
  readonly x: ValueName;
  readonly out: ValueName;
}

/** Sizes of a recurrence, and where its queries, keys and values lie in the rows of one value. */
export interface RecurrenceShape {
  /** Heads of values, each with a state [keyDim, valueDim]. */
  readonly heads: number;
  /** Heads of queries and keys; each serves as many neighbouring heads of values. */
  readonly keyHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Channels of a row. */
  readonly width: number;
  /** First channels of queries, keys and values. */
  readonly at: { readonly q: number; readonly k: number; readonly v: number };
  /** Multiplies queries. */
  readonly scale: number;
  /** Queries and keys x of a head become x/√(Σx² + epsilon), before `scale`; absent: they stay. */
  readonly epsilon?: number;
  /** Bounds of the time step Δ. */
  readonly limits?: { readonly least: number; readonly most: number };
}

/**
 * Of each head, with Δ = softplus(step + bias) within its limits and γ = exp(−exp(rate)·Δ):
 *   S ← γ·S;  u = Δ·v, or with `beta` σ(beta)·(v − Sᵀk);  S ← S + k·uᵀ;  out = Sᵀq (+ skip·v).
 * Without `beta` this is the selective scan of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) with keys B, queries C and values x,
 * with it the gated delta rule (Yang et al. 2024, arXiv 2412.06464). The state is S, which begins as zeros.
 */
export interface RecurrenceStep extends RecurrenceShape {
  readonly op: "recurrence";
  /** Queries, keys and values, [rows, width]. */
  readonly x: ValueName;
  /** [rows, heads]. */
  readonly step: ValueName;
  /** [rows, heads]. */
  readonly beta?: ValueName;
  /** [heads] each. */
  readonly rate: KeptName;
  readonly bias: KeptName;
  readonly skip?: KeptName;
  readonly out: ValueName;
}

/** A step with a state. */
export type CarryStep = ConvStep | RecurrenceStep;

export function isCarry<S extends { readonly op: string }>(
  step: S,
): step is Extract<S, { readonly op: CarryStep["op"] }> {
  return step.op === "conv" || step.op === "recurrence";
}

/** Numbers of the state that a sequence has at a step. */
export function stateSize(step: CarryStep): number {
  return step.op === "conv"
    ? (step.taps - 1) * step.channels
    : step.heads * step.keyDim * step.valueDim;
}

/** Channels of what it gives. */
export function carriedWidth(step: CarryStep): number {
  return step.op === "conv" ? step.channels : step.heads * step.valueDim;
}

/** Where each step's state of a sequence begins among those of all blocks, in numbers, and how many there are. */
export interface StateLayout {
  readonly offsets: readonly ReadonlyMap<CarryStep, number>[];
  readonly size: number;
}

/** Steps of some blocks, each block's in order. */
type Blocks = readonly { readonly steps: readonly (CarryStep | { readonly op: string })[] }[];

/** `programs`: of the model's blocks in order. Places begin at multiples of 16 numbers. */
export function stateLayout(programs: Blocks): StateLayout {
  let size = 0;
  const offsets = programs.map(
    ({ steps }) =>
      new Map(
        (steps.filter(isCarry) as readonly CarryStep[]).map((step) => {
          const at = size;
          size += Math.ceil(stateSize(step) / 16) * 16;
          return [step, at] as const;
        }),
      ),
  );
  return { offsets, size };
}

/** What a recurrence says in words of the ABI. */
export function recurrenceWords({ at, epsilon, limits }: RecurrenceShape) {
  return {
    qAt: at.q,
    kAt: at.k,
    vAt: at.v,
    epsilon: epsilon ?? -1,
    least: limits?.least ?? 0,
    most: limits?.most ?? Infinity,
  };
}
