/** What an artifact gains over its original: size, and speed in the engine, measured side by side in a moment. */
import { PlanishError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { parseSource } from "../../models/source.js";
import { measureSpeed, type Speed } from "../compare/speed.js";

export interface Gain {
  readonly bytes: number;
  readonly sourceBytes: number;
  /** Absent where the engine runs one of the two simulated only. */
  readonly speed?: Speed;
}

/** Short: a prompt of 128 tokens, 16 after it, three rounds in turns with the original's 16-bit weights. */
const MEASURED = { promptTokens: 128, decodedTokens: 16, rounds: 3 } as const;

/** @throws PlanishError when one of the two is gone or damaged. */
export async function gainOf(
  artifact: string,
  original: string,
  sizes: Pick<Gain, "bytes" | "sourceBytes">,
  threads?: number,
): Promise<Gain> {
  const { bytes, sourceBytes } = sizes;
  try {
    const speed = await measureSpeed(artifact, original, someTokens(original), {
      ...MEASURED,
      threads,
    });
    return { bytes, sourceBytes, speed };
  } catch (error) {
    if (error instanceof PlanishError) return { bytes, sourceBytes };
    throw error;
  }
}

/** Speed does not depend on which tokens they are. */
function someTokens(original: string): Int32Array {
  using source = openCheckpoint(original);
  const { vocabSize } = parseSource(source).config;
  const length = MEASURED.promptTokens + MEASURED.decodedTokens;
  return Int32Array.from({ length }, (_, i) => (i * 7919) % vocabSize);
}

export function gainText({ bytes, sourceBytes, speed }: Gain): string {
  const size = `gain: ${formatBytes(bytes)} instead of ${formatBytes(sourceBytes)}`;
  if (!speed) return size;
  const { prefillRatio, decodeRatio, prefill, decode } = speed;
  return (
    `${size}; beside the original in 16 bits ${prefillRatio.toFixed(1)}× at a prompt (${prefill.median.toFixed(0)} tokens/s) ` +
    `and ${decodeRatio.toFixed(1)}× at decoding (${decode.median.toFixed(0)} tokens/s)`
  );
}
