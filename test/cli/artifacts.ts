/** Temporary directories, and small runs of `planish quantize` for tests. */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createHash } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface TemporaryDirectory extends Disposable {
  readonly path: string;
  file(name: string): string;
}

export function temporaryDirectory(): TemporaryDirectory {
  const path = mkdtempSync(join(tmpdir(), "planish-cli-"));
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  };
}

/** A short text that does not change: tokenizing the embedded ones would take most of a small run's time. */
export const SHORT_TEXT = "LICENSE";

/** FlatQuant at a size that takes seconds: 8 blocks, two steps each. One thread, since test files run side by side. */
export const SMALL_RUN =
  `--samples 4 --seq-len 64 --epochs 1 --batch 2 --threads 1 --calibration ${SHORT_TEXT}`.split(
    " ",
  );

/** SHA-256 of every file of a directory, by name. */
export function fileHashes(directory: string): Record<string, string> {
  const hash = (name: string): string =>
    createHash("sha256")
      .update(readFileSync(join(directory, name)))
      .digest("hex");
  return Object.fromEntries(
    readdirSync(directory)
      .sort()
      .map((name) => [name, hash(name)]),
  );
}
