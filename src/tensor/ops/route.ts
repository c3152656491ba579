/**
 * Rows on their way to experts and back: each row goes to a few of them, and comes back as a weighted sum. Which ones is
 * decided on the host, whose share of the work is small: rows × experts numbers.
 */
import { PlanishError } from "../../common/errors.js";
import type { Buffer } from "../../backend/contract/training.js";
import type { Tensor } from "../tensor.js";
import { type Graph } from "../tensor.js";

export interface RouteOptions {
  readonly chosen: number;
  readonly scores: "softmax" | "sigmoid";
  /** Whether the chosen weights are divided by their sum. */
  readonly normalize: boolean;
  readonly factor: number;
  /** Added to scores where experts are chosen, [experts]. */
  readonly correction?: ArrayLike<number>;
  readonly groups?: { readonly count: number; readonly chosen: number };
  /**
   * Rows that every expert gets at least, those with its highest scores first; beyond its own they have no weight. For
   * statistics of experts that few rows choose.
   */
  readonly leastRows?: number;
  /** Weights multiply what experts read: rows beyond an expert's own have the weights that they would have had. */
  readonly weighInputs?: boolean;
}

/** Rows sorted by expert. */
export interface Routing {
  readonly rows: number;
  /** Sorted rows of each expert: the first, and one past the last. */
  readonly ranges: readonly (readonly [number, number])[];
  /** Rows that chose each expert. */
  readonly counts: Int32Array;
  /** i32: the row that stands at each sorted place. */
  readonly order: Buffer;
  /** i32 [rows] for each choice: where it stands. */
  readonly places: readonly Buffer[];
  /** Weights of sorted rows, [sorted]. */
  readonly weights: Tensor;
}

/** Keeps weights from being divided by zero, as DeepSeek's code does. */
const SMALLEST_SUM = 1e-20;

/** Chooses experts by logits, [rows, experts]. The weights have gradients, the choice has none. */
export function route(g: Graph, logits: Tensor, options: RouteOptions): Routing {
  const { rows, cols: experts } = logits;
  const { chosen, normalize, factor, leastRows = 0 } = options;
  if (chosen > experts)
    throw new PlanishError(`[route] ${chosen} of ${experts} experts cannot be chosen`);
  const given = g.read(logits);
  const scores = scoresOf(given, rows, experts, options.scores);
  const choices = new Int32Array(rows * chosen);
  for (let r = 0; r < rows; r++)
    choices.set(
      chooseExperts(scores.subarray(r * experts, (r + 1) * experts), options),
      r * chosen,
    );

  const members: number[][] = Array.from({ length: experts }, () => []);
  choices.forEach((expert, i) => members[expert].push(i));
  const order: number[] = [];
  /** Of each sorted place the choice that stands there; −1 where a row is there without having chosen the expert. */
  const choiceAt: number[] = [];
  const ranges = members.map((own, expert): [number, number] => {
    const start = order.length;
    for (const i of own) {
      order.push(Math.floor(i / chosen));
      choiceAt.push(i);
    }
    for (const row of furtherRows(
      scores,
      experts,
      expert,
      order.slice(start),
      Math.min(leastRows, rows),
    )) {
      order.push(row);
      choiceAt.push(-1);
    }
    return [start, order.length];
  });
  const places = Array.from({ length: chosen }, () => new Int32Array(rows));
  choiceAt.forEach((i, place) => {
    if (i >= 0) places[i % chosen][Math.floor(i / chosen)] = place;
  });

  const picked = Float64Array.from(
    choices,
    (expert, i) => scores[Math.floor(i / chosen) * experts + expert],
  );
  const sums = new Float64Array(rows).fill(1);
  if (normalize)
    for (let r = 0; r < rows; r++)
      sums[r] = picked
        .subarray(r * chosen, (r + 1) * chosen)
        .reduce((sum, p) => sum + p, SMALLEST_SUM);
  const weights = Float64Array.from(picked, (p, i) => (factor * p) / sums[Math.floor(i / chosen)]);
  const further = (place: number): number => {
    const expert = ranges.findIndex(([, end]) => place < end);
    return (factor * scores[order[place] * experts + expert]) / sums[order[place]];
  };
  const sorted = Float64Array.from(choiceAt, (i, place) =>
    i >= 0 ? weights[i] : options.weighInputs ? further(place) : 0,
  );
  const out = g.constant([sorted.length], sorted).buffer;

  const backward = (grad: Buffer): void => {
    const gradLogits = g.gradientFor(logits);
    if (!gradLogits) return;
    const arriving = g.backend.read(grad) as ArrayLike<number>;
    const gradScores = new Float64Array(rows * experts);
    choiceAt.forEach((i, place) => {
      if (i < 0) return;
      const row = Math.floor(i / chosen);
      gradScores[row * experts + choices[i]] += (factor * arriving[place]) / sums[row];
    });
    // Through the sum: every chosen score divides all of the row's weights.
    if (normalize)
      for (let r = 0; r < rows; r++) {
        let inner = 0;
        for (let i = r * chosen; i < (r + 1) * chosen; i++)
          inner += gradScores[r * experts + choices[i]] * picked[i];
        for (let i = r * chosen; i < (r + 1) * chosen; i++)
          gradScores[r * experts + choices[i]] -= inner / sums[r];
      }
    g.backend.write(gradLogits, throughScores(gradScores, scores, rows, experts, options.scores));
    g.accumulate(logits, gradLogits);
  };
  return {
    rows,
    ranges,
    counts: Int32Array.from(members, ({ length }) => length),
    order: g.indices(Int32Array.from(order)),
    places: places.map((each) => g.indices(each)),
    weights: g.result([sorted.length], out, [logits], backward),
  };
}

function scoresOf(
  logits: ArrayLike<number>,
  rows: number,
  experts: number,
  kind: RouteOptions["scores"],
): Float64Array {
  const scores = Float64Array.from(logits);
  if (kind === "sigmoid") return scores.map((x) => 1 / (1 + Math.exp(-x)));
  for (let r = 0; r < rows; r++) {
    const row = scores.subarray(r * experts, (r + 1) * experts);
    const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
    let sum = 0;
    for (let e = 0; e < experts; e++) sum += row[e] = Math.exp(row[e] - most);
    for (let e = 0; e < experts; e++) row[e] /= sum;
  }
  return scores;
}

function throughScores(
  grad: Float64Array,
  scores: Float64Array,
  rows: number,
  experts: number,
  kind: RouteOptions["scores"],
): Float64Array {
  if (kind === "sigmoid") return grad.map((x, i) => x * scores[i] * (1 - scores[i]));
  for (let r = 0; r < rows; r++) {
    const [own, of] = [grad, scores].map((values) =>
      values.subarray(r * experts, (r + 1) * experts),
    );
    const inner = own.reduce((sum, x, e) => sum + x * of[e], 0);
    for (let e = 0; e < experts; e++) own[e] = of[e] * (own[e] - inner);
  }
  return grad;
}

/** Numbers of the best experts, best first; of equal ones the first. */
function chooseExperts(
  scores: Float64Array,
  { chosen, correction, groups }: Pick<RouteOptions, "chosen" | "correction" | "groups">,
): number[] {
  const choice = correction ? scores.map((score, e) => score + correction[e]) : scores;
  const best = (values: ArrayLike<number>, among: readonly number[], count: number): number[] =>
    [...among].sort((a, b) => values[b] - values[a] || a - b).slice(0, count);
  const all = Array.from(scores, (_, e) => e);
  if (!groups) return best(choice, all, chosen);
  const size = scores.length / groups.count;
  const members = Array.from({ length: groups.count }, (_, group) =>
    all.slice(group * size, (group + 1) * size),
  );
  const worth = members.map((own) => best(choice, own, 2).reduce((sum, e) => sum + choice[e], 0));
  const open = best(worth, [...members.keys()], groups.chosen).flatMap((group) => members[group]);
  return best(
    choice,
    open.sort((a, b) => a - b),
    chosen,
  );
}

/** Rows beyond an expert's own that it gets so as to have `least`: those with its highest scores. */
function furtherRows(
  scores: Float64Array,
  experts: number,
  expert: number,
  own: readonly number[],
  least: number,
): number[] {
  if (own.length >= least) return [];
  const taken = new Set(own);
  const others = Array.from({ length: scores.length / experts }, (_, row) => row).filter(
    (row) => !taken.has(row),
  );
  const score = (row: number): number => scores[row * experts + expert];
  return others.sort((a, b) => score(b) - score(a) || a - b).slice(0, least - own.length);
}

function gathered(g: Graph, values: Buffer, cols: number, ids: Buffer): Buffer {
  const out = g.real(ids.length * cols);
  g.kernels.gatherRows({ table: values, cols, ids, rows: ids.length, out });
  return out;
}

/** Σ over choices of the rows at their places, [rows, cols]. */
function collected(g: Graph, values: Buffer, cols: number, { rows, places }: Routing): Buffer {
  let sum: Buffer | undefined;
  for (const place of places) {
    const part = gathered(g, values, cols, place);
    if (sum)
      g.kernels.binary({ op: "add", rows, cols, a: sum, b: part, broadcast: "full", out: part });
    sum = part;
  }
  if (!sum) throw new PlanishError("[route] no expert is chosen");
  return sum;
}

/** Rows sorted by expert, [sorted, cols]; x: [rows, cols]. */
export function spreadRows(g: Graph, x: Tensor, routing: Routing): Tensor {
  const { cols } = x;
  const out = gathered(g, g.values(x), cols, routing.order);
  return g.result([routing.order.length, cols], out, [x], (grad) => {
    g.accumulate(x, collected(g, grad, cols, routing));
  });
}

/** Every row's sum over its choices, [rows, cols]; x: [sorted, cols]. */
export function collectRows(g: Graph, x: Tensor, routing: Routing): Tensor {
  const { cols } = x;
  const out = collected(g, g.values(x), cols, routing);
  return g.result([routing.rows, cols], out, [x], (grad) => {
    const gradX = gathered(g, grad, cols, routing.order);
    // Rows without a choice have no weight; what comes back to them is multiplied by it.
    g.accumulate(x, gradX);
  });
}

/** Consecutive rows of x, each range a tensor; undefined for ranges without rows. */
export function splitRows(
  g: Graph,
  x: Tensor,
  ranges: readonly (readonly [number, number])[],
): (Tensor | undefined)[] {
  const { cols } = x;
  const values = g.values(x);
  // Made first, so that its turn in the backward pass comes last, when every part has left its gradient in it.
  const whole = g.result(x.shape, values, [x], (grad) => {
    g.accumulate(x, grad);
  });
  return ranges.map(([start, end]) => {
    const size = (end - start) * cols;
    if (size === 0) return undefined;
    const out = g.real(size);
    g.backend.copy(values, out, size, start * cols);
    return g.result([end - start, cols], out, [whole], (grad) => {
      if (!whole.grad) {
        whole.grad = g.real(x.size);
        g.backend.fill(whole.grad, 0);
      }
      g.backend.copy(grad, whole.grad, size, 0, start * cols);
    });
  });
}

/** Tensors of the same width below one another. */
export function joinRows(g: Graph, parts: readonly Tensor[]): Tensor {
  const { cols } = parts[0];
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const out = g.real(rows * cols);
  let at = 0;
  const starts = parts.map((part) => {
    const start = at;
    g.backend.copy(g.values(part), out, part.size, 0, start);
    at += part.size;
    return start;
  });
  return g.result([rows, cols], out, parts, (grad) => {
    parts.forEach((part, i) => {
      const own = g.gradientFor(part);
      if (own) g.backend.copy(grad, own, part.size, starts[i]);
      g.accumulate(part, own);
    });
  });
}
