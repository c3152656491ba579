/** A text as one vector: what the head reads of its tokens, taken together while they are computed. */
import { Sequence, type FailureSink, type SequenceParts } from "./sequence.js";

/** Which tokens a text's vector is made of: the mean over all, or the last one. */
export type Pooling = "mean" | "last";

export interface EmbeddingSink extends FailureSink {
  /** The vector, of length 1 (or 0, where everything is). */
  done(vector: Float32Array): void;
}

/** Its text is computed whole: no beginning is taken from the cache, since that has no more than keys and values. */
export class EmbeddingSequence extends Sequence {
  private sum: Float64Array | undefined;

  constructor(
    parts: Omit<SequenceParts, "choice" | "root">,
    private readonly pooling: Pooling,
    override readonly sink: EmbeddingSink,
  ) {
    // A beginning that is nobody's.
    super({ ...parts, choice: 0, root: `embedding:${parts.request}` });
  }

  override get wants(): "hidden" {
    return "hidden";
  }

  /** Takes rows of consecutive tokens, [tokens, width]; a sequence that was set back begins anew. */
  take(rows: Float32Array, tokens: number): void {
    const width = rows.length / tokens;
    if (this.computed === 0 || !this.sum) this.sum = new Float64Array(width);
    const first = this.pooling === "last" ? tokens - 1 : 0;
    if (this.pooling === "last") this.sum.fill(0);
    for (let row = first; row < tokens; row++)
      for (let i = 0; i < width; i++) this.sum[i] += rows[row * width + i];
  }

  override advance(): boolean {
    // The mean's divisor goes with its length.
    const { sum = new Float64Array() } = this;
    const length = Math.hypot(...sum);
    this.sink.done(Float32Array.from(sum, (value) => (length > 0 ? value / length : 0)));
    return true;
  }
}
