/**
 * A cache above `buffer.constants.MAX_LENGTH` of Node 20 (4 GiB): sequences whose pages lie on both sides of that
 * boundary, and across one, give the same bits as those in the first pages. Pages that nobody uses cost no memory.
 */
import { join } from "node:path";
import { expect, test } from "vitest";
import { PIECE_BYTES } from "../../../../src/backend/cpu/mapping.js";
import { packageRoot } from "../../../../src/common/package.js";
import { roundedPair } from "./support.js";

const model = join(packageRoot, "models", "tiny-llama");
const LIMIT = 2 ** 32;
const tokens = Int32Array.from({ length: 90 }, (_, i) => 100 + 7 * i);

test.skipIf(process.env.PLANISH_NO_NATIVE === "1")("pages beyond 4 GiB", async () => {
  using pair = roundedPair(model, "w4a4kv4");
  const { engine } = pair;
  const { bytesPerPage } = engine;
  const pages = Math.ceil((LIMIT + 2 ** 28) / bytesPerPage);
  engine.reserve(pages);
  const straddling = Math.floor(LIMIT / bytesPerPage);
  // So that copying a page, below, copies across a boundary.
  expect(LIMIT % bytesPerPage).not.toBe(0);
  expect(PIECE_BYTES % bytesPerPage).not.toBe(0);
  const placed = [
    [0, 1],
    [straddling, straddling + 1],
    [pages - 1, straddling - 1],
    [Math.floor(PIECE_BYTES / bytesPerPage), Math.floor((2 * PIECE_BYTES) / bytesPerPage)],
  ].map((list) => Int32Array.from(list));
  const begin = placed.map((list) => ({ tokens, start: 0, pages: list, logits: "last" as const }));
  const [first, ...others] = await engine.step(begin);
  for (const logits of others) expect(logits).toEqual(first);

  engine.copyPage(straddling, pages - 2);
  engine.copyPage(straddling + 1, 2);
  const next = async (list: Int32Array) =>
    (
      await engine.step([{ tokens: tokens.subarray(0, 5), start: 90, pages: list, logits: "all" }])
    )[0];
  const copied = await next(Int32Array.of(pages - 2, 2));
  for (const list of placed) expect(await next(list)).toEqual(copied);
});
