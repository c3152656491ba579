/** What executors refuse before a step: pages that are not reserved, chunks that do not fit, tokens that do not exist. */
import { PlanishError } from "../common/errors.js";
import type { ModelConfig } from "../models/config.js";
import type { Chunk } from "./executor.js";

/** @throws PlanishError unless `page` is one of the `reserved` pages (undefined: none are yet). */
export function checkPage(page: number, reserved: number | undefined): void {
  if (reserved === undefined)
    throw new PlanishError("no cache pages are reserved; call reserve first");
  if (!Number.isInteger(page) || page < 0 || page >= reserved)
    throw new PlanishError(
      `page ${page} does not exist; ${reserved} are reserved, numbered from 0`,
    );
}

/** @throws PlanishError for a chunk that its pages, the `reserved` pages or the model cannot take. */
export function checkChunk(
  { tokens, start, pages }: Chunk,
  config: ModelConfig,
  pageTokens: number,
  reserved: number | undefined,
): void {
  const end = start + tokens.length;
  if (tokens.length === 0) throw new PlanishError("a chunk holds no tokens; give at least one");
  if (!Number.isSafeInteger(start) || start < 0)
    throw new PlanishError(`a chunk starts at position ${start}`);
  if (pages.length * pageTokens < end)
    throw new PlanishError(
      `${pages.length} pages hold ${pages.length * pageTokens} positions; the chunk ends at ${end}`,
    );
  if (config.positions.kind === "learned" && end > config.maxPositions)
    throw new PlanishError(
      `position ${end} is past the model's ${config.maxPositions} learned positions`,
    );
  for (const token of tokens)
    if (token < 0 || token >= config.vocabSize)
      throw new PlanishError(`token id ${token} is outside the vocabulary of ${config.vocabSize}`);
  for (const page of pages.subarray(0, Math.ceil(end / pageTokens))) checkPage(page, reserved);
}
