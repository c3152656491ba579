/** What a sweep finds: its document, and what is kept of every point. */
import { z } from "zod";

export const pointSchema = z.object({
  name: z.string(),
  values: z.record(z.string(), z.union([z.number(), z.string(), z.boolean()])),
  perplexity: z.number(),
  /** KL(full precision ‖ this) of next-token distributions on the same windows, nats per token. */
  kl: z.number(),
  /** Bytes of the artifact's tensors. */
  bytes: z.number(),
  /** Where the method decides bits by linear: share of multiply-adds at 4 bits, and K'/K. */
  fourBitShare: z.number().optional(),
  expansion: z.number().optional(),
  /** Share of activations beyond the static grids' reach. */
  clippedShare: z.number().optional(),
  /** Prompt tokens per second in the integer engine; absent where it has no kernels for the scheme. */
  tokensPerSecond: z.number().optional(),
  quantizeSeconds: z.number(),
});
export type SweepPoint = z.infer<typeof pointSchema>;

/** The model as it is. */
export const fullSchema = z.object({
  perplexity: z.number(),
  windows: z.number(),
  seqLen: z.number(),
  bytes: z.number(),
  tokensPerSecond: z.number().optional(),
});

export interface Sweep {
  readonly model: string;
  readonly method: string;
  readonly preset: string;
  readonly scheme: string;
  /** What every point shares; the grid's fields replace it. */
  readonly recipe: Readonly<Record<string, unknown>>;
  readonly seed: number;
  readonly calibration: string;
  readonly text: { readonly name: string; readonly windows: number; readonly seqLen: number };
  /** The model as it is. */
  readonly fullPrecision: Omit<z.infer<typeof fullSchema>, "windows" | "seqLen">;
  readonly points: readonly SweepPoint[];
}
