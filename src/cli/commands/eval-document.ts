/** The JSON document of `planish eval`. */
import type { DivergenceResult } from "../../evaluate/divergence.js";
import type { PerplexityResult } from "../../evaluate/perplexity.js";
import type { ZeroShotResult } from "../../evaluate/zero-shot.js";
import type { ClipSummary } from "../../quantize/block/clip-counts.js";

/** What was measured of one model. */
export interface ModelScore extends Partial<PerplexityResult> {
  readonly model: string;
  /** What the model's weights, activations and KV cache are kept in. */
  readonly scheme: string;
  readonly method?: string;
  readonly zeroShot?: ZeroShotResult;
}

/** The command's JSON document. */
export interface EvalDocument extends ModelScore {
  /** Where perplexity was measured. */
  readonly text?: string;
  /** The model of `--against`. */
  readonly against?: ModelScore;
  /** With `--simulated`: what the artifact was packed from. */
  readonly simulated?: ModelScore;
  /** Perplexity of the artifact over that of its simulated model. */
  readonly simulatedRatio?: number;
  /** With `--engine`: the text through the engine, and its perplexity over the simulated one. */
  readonly engine?: PerplexityResult & { readonly ratio: number };
  /** How far the model is from that of `--against` or its simulated model, on the text. */
  readonly divergence?: Pick<DivergenceResult, "kl" | "topAgreement" | "blockErrors">;
  /** For an artifact with static grids: activations beyond their reach, in all that was scored. */
  readonly clipping?: ClipSummary;
  /** `--limit`: only the first windows and items were scored. */
  readonly limit?: number;
}
