/** A short form of `npm run test:kills`: runs killed at random moments end in the bytes of one that was not. */
import { afterAll, expect, it } from "vitest";
import { killAndResume } from "../kills/kills.js";
import { temporaryDirectory } from "./artifacts.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

it("killed at random moments and resumed, ends in the same bytes and leaves nothing else", async () => {
  const { kills, runs } = await killAndResume(directory.path, 4, 7);
  expect(kills).toBe(4);
  expect(runs).toBeGreaterThan(0);
});
