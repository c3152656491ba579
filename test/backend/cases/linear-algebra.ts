/** Conformance cases of the small float64 algebra: Cayley and the inverse. */

import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import {
  evaluate,
  output,
  Random,
  real,
  U,
  type CaseGroup,
  type ConformanceCase,
} from "../harness.js";

const truthBackend = createReferenceBackend({ realType: "f64" });
/** Error of a float64 solve of these sizes and conditions, far above n²·κ·2⁻⁵³ for n ≤ 130 and κ ≤ 1e4. */
const SOLVE = 1e-9;

const largest = (values: Float64Array) => values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
/** Computed in float64, stored with one rounding. */
function stored(values: Float64Array): Float64Array {
  const absolute = SOLVE * largest(values);
  return values.map((v) => 1.01 * U * Math.abs(v) + absolute);
}

function cayleyCase(n: number, size: number): ConformanceCase {
  const title = `n ${n}, seed of size ${size.toPrecision(2)}`;
  return {
    kernel: "cayley",
    title,
    buffers: { seed: real(new Random(`cayley ${title}`).normals(n * n, size)), out: output(n * n) },
    outputs: ["out"],
    run: (kernels, { seed, out }) => kernels.cayley({ seed, n, out }),
    bounds: ({ out }) => ({ out: stored(out) }),
  };
}

function cayleyBackwardCase(n: number, size: number): ConformanceCase {
  const title = `n ${n}, seed of size ${size.toPrecision(2)}`;
  const random = new Random(`cayleyBackward ${title}`);
  const seed = real(random.normals(n * n, size));
  const forward = evaluate(truthBackend, { seed, out: output(n * n) }, (kernels, b) =>
    kernels.cayley({ seed: b.seed, n, out: b.out }),
  );
  return {
    kernel: "cayleyBackward",
    title,
    buffers: {
      seed,
      out: real(forward.out),
      grad: real(random.normals(n * n)),
      gradSeed: output(n * n),
    },
    outputs: ["gradSeed"],
    run: (kernels, b) =>
      kernels.cayleyBackward({ seed: b.seed, n, out: b.out, grad: b.grad, gradSeed: b.gradSeed }),
    bounds: ({ gradSeed }) => ({
      gradSeed: stored(gradSeed).map((v, i) => (i % n >= Math.floor(i / n) ? 0 : v)),
    }),
  };
}

function inverseCase(n: number, permuted: boolean): ConformanceCase {
  const title = `n ${n}${permuted ? ", zero pivots" : ""}`;
  const random = new Random(`inverse ${title}`);
  const x = random.normals(n * n, 0.3 / Math.sqrt(n));
  // A shifted diagonal of ones keeps it well conditioned and makes LU without pivoting divide by small numbers.
  for (let i = 0; i < n; i++) x[i * n + ((i + (permuted ? 1 : 0)) % n)] += 1;
  if (permuted && n > 1) for (let i = 0; i < n; i++) x[i * n + i] = 0;
  return {
    kernel: "inverse",
    title,
    buffers: { x: real(x), out: output(n * n) },
    outputs: ["out"],
    run: (kernels, { x: given, out }) => kernels.inverse({ x: given, n, out }),
    bounds: ({ out }) => ({ out: stored(out) }),
  };
}

const SIZES = [1, 2, 7, 16, 33, 64, 130] as const;

export const linearAlgebraGroups: CaseGroup[] = [
  {
    bound: "cayley: float64 inside, one rounding to store",
    cases: SIZES.flatMap((n) => [cayleyCase(n, 1 / Math.sqrt(n)), cayleyCase(n, 2)]),
  },
  {
    bound:
      "cayleyBackward: float64 inside, one rounding to store; exactly 0 on and above the diagonal",
    cases: SIZES.map((n) => cayleyBackwardCase(n, 1 / Math.sqrt(n))),
  },
  {
    bound: "inverse: float64 inside, one rounding to store",
    cases: SIZES.flatMap((n) => [inverseCase(n, false), inverseCase(n, true)]),
  },
];
