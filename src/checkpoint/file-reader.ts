/**
 * Positioned reads from a file of weights, and small JSON files beside it; every failure is a one-line
 * PlanishError that names the file. Nothing here keeps more than the bytes asked for.
 */

import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { shown, type JsonLimits } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import {
  MAX_JSON_BYTES,
  describeFsError,
  readUserFile,
  readUserJson,
} from "../common/read-file.js";
import { foreignKind } from "./foreign-file.js";

export { describeFsError } from "../common/read-file.js";

/** Largest single read; Node refuses reads of 2 GiB and more. */
const MAX_READ = 1 << 30;

/** As many first bytes tell what a file is. */
const SIGNATURE_BYTES = 64;
/** Keys of an error that a server sends in place of a file: its text, a code, an address. */
const MOST_ERROR_KEYS = 4;

/** A regular file open for positioned reads. */
export class FileReader implements Disposable {
  readonly path: string;
  /** Size in bytes when it was opened. */
  readonly size: number;
  #fd: number;

  /** Opens `path`. Throws PlanishError when it cannot be read or is no regular file. */
  constructor(path: string) {
    this.path = path;
    try {
      // Checked before opening: opening a FIFO would block until somebody writes to it.
      if (!statSync(path).isFile())
        throw new PlanishError(`cannot read ${path}: not a regular file`);
      this.#fd = openSync(path, "r");
    } catch (error) {
      if (error instanceof PlanishError) throw error;
      throw new PlanishError(`cannot read ${path}: ${describeFsError(error)}`, { cause: error });
    }
    this.size = fstatSync(this.#fd).size;
  }

  /**
   * Fills `target` from byte `position`. `what` names the content in the error when the file ends early
   * or the disk fails.
   */
  readInto(target: Uint8Array, position: number, what: string): void {
    if (this.#fd < 0) throw new PlanishError(`cannot read ${what} from ${this.path}: it is closed`);
    let done = 0;
    while (done < target.byteLength) {
      const want = Math.min(MAX_READ, target.byteLength - done);
      let got: number;
      try {
        got = readSync(this.#fd, target, done, want, position + done);
      } catch (error) {
        throw new PlanishError(`cannot read ${what} from ${this.path}: ${describeFsError(error)}`, {
          cause: error,
        });
      }
      if (got === 0) {
        throw new PlanishError(
          `${this.path} is truncated: ${what} ends at byte ${position + target.byteLength}, ` +
            `the file at ${position + done}; fetch it again`,
        );
      }
      done += got;
    }
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** True for an object that came from `{…}` in JSON. */
export function isJsonObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Parses a JSON file that must hold an object. Throws PlanishError naming the file, or what lies in its place.
 * `python`: whether it may hold numbers as Python's json writes them.
 */
export function readJsonObject(
  path: string,
  { python }: Pick<JsonLimits, "python"> = {},
): Record<string, unknown> {
  const limit = { most: MAX_JSON_BYTES, python };
  const foreign = (): string | undefined =>
    foreignKind(readUserFile(path, limit).subarray(0, SIGNATURE_BYTES));
  let value: unknown;
  try {
    value = readUserJson(path, limit);
  } catch (error) {
    const kind = foreign();
    if (kind === undefined) throw error;
    throw new PlanishError(`${path} is ${kind}`, { cause: error });
  }
  // A server's error is an object as well, of a few keys.
  if (isJsonObject(value) && Object.keys(value).length <= MOST_ERROR_KEYS) {
    const kind = foreign();
    if (kind !== undefined) throw new PlanishError(`${path} is ${kind}`);
  }
  if (!isJsonObject(value))
    throw new PlanishError(
      `${path} must hold a JSON object, not ${Array.isArray(value) ? "an array" : shown(value)}`,
    );
  return value;
}
