/**
 * Second moments of what each linear of a block reads once it is quantized: transformed, clipped and rounded
 * activations of the full-precision prefix. One matrix per distinct activation; activations themselves are never kept.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend } from "../../backend/contract/training.js";
import { InterruptedError } from "../../common/errors.js";
import { runBlock, type BlockWeights } from "../../models/interpret.js";
import type { LinearName } from "../../backend/contract/program.js";
import { norm } from "../../tensor/ops/index.js";
import { frozen, freeTensor, Graph, type Tensor } from "../../tensor/tensor.js";
import { leastRows } from "../calibration/experts.js";
import { sampleRange, type Activations } from "../schema/windows.js";
import type { ParameterValues } from "../schema/parameters.js";
import { bindSimulated, type BlockDescription } from "./simulated-block.js";

/** Keeps rows of zeros from being divided by zero; far below any activation's mean square. */
const SMALLEST_POWER = 1e-30;

export interface SecondMoment {
  /** Linears that read this activation. */
  readonly roles: readonly LinearName[];
  readonly cols: number;
  /** Σ x·xᵀ over all tokens, [cols, cols], float64; of x scaled to a mean square of 1 where tokens count alike. */
  readonly sum: Float64Array;
}

export interface MomentJob {
  readonly backend: Backend;
  readonly block: BlockDescription;
  readonly weights: BlockWeights;
  /** As the artifact will hold them (`settleParameters`). */
  readonly parameters: ParameterValues;
  readonly inputs: Activations;
  readonly layer: number;
  /** Scale every token's activation to the same norm first. */
  readonly equalTokens: boolean;
  readonly signal?: AbortSignal;
}

/**
 * Runs the block over the calibration set with its activations and caches on their grids and its weights transformed
 * but not rounded. Products of one window are formed on the backend in float32 and summed in float64.
 */
export async function collectMoments(job: MomentJob): Promise<SecondMoment[]> {
  const { backend, block, weights, inputs, layer, equalTokens, signal } = job;
  const { program } = block;
  const params = new Map<string, Tensor>();
  for (const [name, { shape, data }] of job.parameters)
    params.set(name, frozen(backend, shape, data));
  const unrounded = { ...block, scheme: { ...block.scheme, weightBits: 16 as const } };
  const moments = new Map<string, SecondMoment>();
  using arena = backend.arena();
  for (let s = 0; s < inputs.samples; s++) {
    if (signal?.aborted) throw new InterruptedError(`stopped in the rounding of block ${layer}`);
    using g = new Graph(backend, { arena });
    const hooks = bindSimulated(g, unrounded, weights, params, (activations, roles) => {
      for (const activation of new Set(activations)) {
        const readers = roles.filter((_, i) => activations[i] === activation);
        addProduct(g, moments, equalTokens ? withUnitTokens(g, activation) : activation, readers);
      }
    });
    const x = g.constant([inputs.time, inputs.hidden], sampleRange(inputs, s, 1));
    runBlock(g, program, weights, hooks, x, {
      layer,
      batch: 1,
      leastRows: leastRows(program, inputs.time),
    });
    await nextTurn();
  }
  for (const p of params.values()) freeTensor(backend, p);
  return [...moments.values()];
}

/** Every row at a mean square of 1; rows of zeros stay. */
function withUnitTokens(g: Graph, x: Tensor): Tensor {
  const gain = g.constant([x.cols], new Float32Array(x.cols).fill(1));
  return norm(g, x, { kind: "rms", gain, epsilon: SMALLEST_POWER });
}

function addProduct(
  g: Graph,
  moments: Map<string, SecondMoment>,
  x: Tensor,
  roles: readonly LinearName[],
): void {
  const { cols, rows } = x;
  const key = roles.join();
  let moment = moments.get(key);
  if (!moment) moments.set(key, (moment = { roles, cols, sum: new Float64Array(cols * cols) }));
  const buffer = g.values(x);
  const out = g.real(cols * cols);
  g.kernels.matmul({
    m: cols,
    n: cols,
    k: rows,
    a: { buffer, transposed: true },
    b: { buffer },
    out: { buffer: out },
    precision: "f32",
  });
  const product = g.backend.read(out) as Float32Array | Float64Array;
  const { sum } = moment;
  for (let i = 0; i < sum.length; i++) sum[i] += product[i];
}
