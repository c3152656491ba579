/**
 * How fast this machine reads weights of each kind when one token is decoded: what a model's size is worth in time. Measured
 * in a moment, and kept for the user's later runs on the same machine.
 */
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { engineKernels } from "../backend/cpu/infer/kernels.js";
import { loadNativeLibrary } from "../backend/cpu/library.js";
import { planishCacheDir } from "../common/cache.js";
import { packageVersion } from "../common/package.js";
import { writeAtomically } from "../common/temporary.js";

/** Bytes of packed weights per second, of a product with one row. */
export interface DecodeRates {
  readonly int4: number;
  readonly int8: number;
  readonly bf16: number;
}

const rate = z.number().positive();
const kept = z.strictObject({
  machine: z.string(),
  rates: z.strictObject({ int4: rate, int8: rate, bf16: rate }),
});

/** Bytes of weights that a sample reads: more than caches of two cores hold. */
const BYTES = 48 << 20;
const COLUMNS = 4096;
const ROUNDS = 5;

/** The rates of this machine with its threads: those of an earlier run, or measured now. */
export function decodeRates(threads?: number): DecodeRates {
  const library = loadNativeLibrary();
  const count = library.setThreads(threads ?? 0);
  const machine = `${library.description()}, ${count} threads, planish ${packageVersion()}`;
  const file = join(planishCacheDir(), "decode-rates.json");
  const known = readKept(file);
  if (known?.machine === machine) return known.rates;
  const rates = measure();
  try {
    mkdirSync(dirname(file), { recursive: true });
    writeAtomically(file, `${JSON.stringify({ machine, rates }, undefined, 2)}\n`);
  } catch {
    // A place that cannot be written costs a second the next time.
  }
  return rates;
}

function readKept(file: string): z.infer<typeof kept> | undefined {
  if (!existsSync(file)) return undefined;
  try {
    return kept.safeParse(JSON.parse(readFileSync(file, "utf8"))).data;
  } catch {
    return undefined;
  }
}

function measure(): DecodeRates {
  const kernels = engineKernels();
  const rateOf = (kind: "int4" | "int8" | "bf16Bf16", bytesPerWeight: number): number => {
    const n = Math.floor(BYTES / bytesPerWeight / COLUMNS);
    const codes =
      kind === "bf16Bf16"
        ? new Float32Array(n * COLUMNS).fill(1)
        : new Int8Array(n * COLUMNS).fill(1);
    const weights = kernels.packWeights(kind, n, COLUMNS, codes);
    const a = kind === "bf16Bf16" ? new Float32Array(COLUMNS) : new Int8Array(COLUMNS).fill(1);
    // Products of values have no scales.
    const scale = kind === "bf16Bf16" ? undefined : new Float32Array(n).fill(1);
    const out = new Float32Array(n);
    const seconds = (): number => {
      const started = performance.now();
      kernels.packedProduct({ m: 1, a, aScale: scale, weights, bScale: scale, out });
      return (performance.now() - started) / 1000;
    };
    seconds();
    // The fastest: whatever else runs only takes away.
    return weights.bytes.length / Math.min(...Array.from({ length: ROUNDS }, seconds));
  };
  return { int4: rateOf("int4", 0.5), int8: rateOf("int8", 1), bf16: rateOf("bf16Bf16", 2) };
}
