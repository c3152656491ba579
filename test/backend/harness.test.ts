/** The conformance suite notices small faults: each mutant below differs from the reference by one line and must fail. */

import { describe, expect, test } from "vitest";
import type { Backend, Buffer, Kernels } from "../../src/backend/contract/training.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { caseGroups } from "./conformance-suite.js";
import { checkCase } from "./harness.js";

const truth = createReferenceBackend({ realType: "f64" });
const device = createReferenceBackend({ realType: "f32" });

/** The float32 reference with some kernels replaced. */
function mutant(replace: (kernels: Kernels) => Partial<Kernels>): Backend {
  return { ...bindBackend(device), kernels: { ...device.kernels, ...replace(device.kernels) } };
}

function bindBackend(backend: Backend): Backend {
  return {
    ...{ name: "mutant", description: "", realType: backend.realType, kernels: backend.kernels },
    ...{
      arena: () => backend.arena(),
      alloc: (t, n) => backend.alloc(t, n),
      free: (b) => backend.free(b),
    },
    ...{ write: (b, d, o) => backend.write(b, d, o), read: (b, o, n) => backend.read(b, o, n) },
    ...{
      copy: (s, t, n, so, to) => backend.copy(s, t, n, so, to),
      fill: (b, v) => backend.fill(b, v),
    },
    [Symbol.dispose]: () => {},
  };
}

/** Adds `delta` to one element after a kernel ran. */
function nudge(buffer: Buffer, index: number, delta: (value: number) => number): void {
  const [value] = device.read(buffer, index, 1);
  device.write(buffer, Float64Array.of(value + delta(value)), index);
}

const mutants: Record<
  string,
  { kernel: keyof Kernels; replace: (k: Kernels) => Partial<Kernels> }
> = {
  "matmul leaves out the last term of its sums": {
    kernel: "matmul",
    replace: (k) => ({ matmul: (args) => k.matmul({ ...args, k: args.k - 1 }) }),
  },
  "matmul forgets the bias": {
    kernel: "matmul",
    replace: (k) => ({ matmul: (args) => k.matmul({ ...args, bias: undefined }) }),
  },
  "matmul takes the rows' gap for part of the row": {
    kernel: "matmul",
    replace: (k) => ({
      matmul: (args) => {
        k.matmul(args);
        if (args.out.stride && args.m > 1)
          nudge(args.out.buffer, (args.out.offset ?? 0) + args.n, () => 1);
      },
    }),
  },
  "intMatmul saturates its sum at 2^15": {
    kernel: "intMatmul",
    replace: (k) => ({
      intMatmul: (args) => {
        k.intMatmul(args);
        const cell = device.read(args.aScale, 0, 1)[0] * device.read(args.bScale, 0, 1)[0];
        nudge(args.out, 0, (v) => (Math.abs(v) > 32767 * cell ? -v / 2 : 0));
      },
    }),
  },
  "quantizeRows is one code off away from ties": {
    kernel: "quantizeRows",
    replace: (k) => ({
      quantizeRows: (args) => {
        k.quantizeRows(args);
        nudge(args.codes, 0, (code) => (code > 0 ? -1 : 1));
      },
    }),
  },
  "quantizeRows rounds ties up": {
    kernel: "quantizeRows",
    replace: (k) => ({
      quantizeRows: (args) => {
        k.quantizeRows(args);
        const [x, offset] = [device.read(args.x), args.offset && device.read(args.offset)];
        const scale = device.read(args.scale);
        for (let i = 0; i < args.rows * args.cols; i++) {
          const argument = x[i] / scale[Math.floor(i / args.cols)] + (offset ? offset[i] : 0);
          const top = 2 ** (args.bits - 1) - 1;
          const code = Math.max(-top - 1, Math.min(top, Math.floor(argument + 0.5)));
          device.write(args.codes, Int8Array.of(code), i);
        }
      },
    }),
  },
  "fakeQuantizeAsym is one level off in one place": {
    kernel: "fakeQuantizeAsym",
    replace: (k) => ({
      fakeQuantizeAsym: (args) => {
        k.fakeQuantizeAsym(args);
        nudge(args.out, 1, (v) => v * 2e-3 + 1e-3);
      },
    }),
  },
  "attention sees one key too few": {
    kernel: "attention",
    replace: (k) => ({
      attention: (args) =>
        k.attention({ ...args, window: args.window ? args.window - 1 : args.keyLength - 1 }),
    }),
  },
  "attentionBackward forgets the scale": {
    kernel: "attentionBackward",
    replace: (k) => ({ attentionBackward: (args) => k.attentionBackward({ ...args, scale: 1 }) }),
  },
  "norm has another epsilon": {
    kernel: "norm",
    replace: (k) => ({ norm: (args) => k.norm({ ...args, epsilon: 1e-6 }) }),
  },
  "kronecker uses left untransposed": {
    kernel: "kronecker",
    replace: (k) => ({
      kronecker: (args) => {
        const n = args.nLeft;
        const values = device.read(args.left ?? args.x, 0, n * n);
        const transposed = device.alloc("f32", n * n);
        device.write(
          transposed,
          Float64Array.from(values, (_, i) => values[(i % n) * n + Math.floor(i / n)]),
        );
        k.kronecker({ ...args, left: args.left && transposed });
      },
    }),
  },
  "adamW computes 1 − β₂ᵗ in float32": {
    kernel: "adamW",
    replace: (k) => ({ adamW: (args) => k.adamW({ ...args, beta2: Math.fround(args.beta2) }) }),
  },
  "softmaxKl has its operands exchanged": {
    kernel: "softmaxKl",
    replace: (k) => ({
      softmaxKl: (args) => k.softmaxKl({ ...args, teacher: args.student, student: args.teacher }),
    }),
  },
  "siluMul writes past its end": {
    kernel: "siluMul",
    replace: (k) => ({
      siluMul: (args) => {
        k.siluMul(args);
        nudge(args.out, args.length, () => 1);
      },
    }),
  },
};

describe("mutants of reference-f32 fail a case of their kernel", () => {
  test.each(Object.entries(mutants))("%s", (_title, { kernel, replace }) => {
    const backend = mutant(replace);
    const cases = caseGroups
      .flatMap((group) => group.cases)
      .filter((item) => item.kernel === kernel);
    const noticed = cases.some((item) => {
      try {
        checkCase(backend, truth, item);
        return false;
      } catch (error) {
        // Only a failed assertion counts: a mutant that crashes has shown nothing.
        expect((error as Error).name).toBe("AssertionError");
        return true;
      }
    });
    expect(noticed, `noticed by one of ${cases.length} cases`).toBe(true);
  });
});
