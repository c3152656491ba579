/** What every export takes and gives. */
import type { Droppable } from "./source.js";

export interface ExportOptions {
  readonly out: string;
  /** Parts that may be left out. */
  readonly drop?: readonly Droppable[];
  readonly signal?: AbortSignal;
}

export interface ExportResult {
  readonly out: string;
  readonly format: string;
  /** Bytes of tensors. */
  readonly bytes: number;
  /** What of the artifact the layout does not hold, in words. */
  readonly dropped: readonly string[];
  /** What a user of the result should know. */
  readonly notes: readonly string[];
}
