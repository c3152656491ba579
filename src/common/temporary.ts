/**
 * Files and directories on their way: written under a name that holds the process and chance, then renamed, so that what
 * has its final name is complete and two processes never write one file. Only what carries our mark is ever deleted.
 */
import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { processSchema, processState, thisProcess } from "./process-identity.js";
import { readUserJson } from "./read-file.js";

const MARK = "planish temporary directory";
const MARKER_FILE = ".planish-temporary.json";
/** Larger files are no markers. */
const MAX_MARKER_BYTES = 4096;
const markerSchema = processSchema.extend({ temporary: z.literal(MARK) });

/** What the longest temporary name adds to a final one, bytes. */
export const TEMPORARY_SUFFIX_BYTES = 40;

/** `final` with the process and chance at its end: nobody else's name. */
export function temporaryName(final: string): string {
  return `${final}.partial-${process.pid}-${randomBytes(4).toString("hex")}`;
}

/** Writes a small file so that it appears complete or not at all. */
export function writeAtomically(path: string, content: string | Uint8Array): void {
  replaceFile(path, (file) => {
    writeFileSync(file, content);
    fsyncSync(file);
  });
}

/** Gives a file what `write` puts into the one that takes its place, once it is complete. */
export function replaceFile(path: string, write: (file: number) => void): void {
  const partial = temporaryName(path);
  try {
    const file = openSync(partial, "wx");
    try {
      write(file);
    } finally {
      closeSync(file);
    }
    renameSync(partial, path);
  } catch (error) {
    rmSync(partial, { force: true });
    throw error;
  }
}

/** A directory beside its final place. It goes away when disposed of, with everything in it that was not moved out. */
export interface WorkDirectory extends Disposable {
  /** Where to write; renamed as a whole when it is finished. */
  readonly content: string;
}

/**
 * Makes a directory for what will be `final`. What ended processes have left of earlier ones is removed; what has no
 * marker of ours stays, whatever its name.
 */
export function makeWorkDirectory(final: string): WorkDirectory {
  removeAbandoned(final);
  const directory = temporaryName(final);
  mkdirSync(directory);
  // The marker lies outside of the content, so that the content can be renamed while the marker is still there.
  const marker = { temporary: MARK, ...thisProcess() };
  const content = join(directory, basename(final));
  const remove = (): void => rmSync(directory, { recursive: true, force: true });
  try {
    writeFileSync(join(directory, MARKER_FILE), `${JSON.stringify(marker)}\n`);
    mkdirSync(content);
  } catch (error) {
    remove();
    throw error;
  }
  return { content, [Symbol.dispose]: remove };
}

function removeAbandoned(final: string): void {
  const parent = dirname(final);
  const prefix = `${basename(final)}.partial-`;
  for (const name of readdirSync(parent)) {
    const path = join(parent, name);
    if (name.startsWith(prefix) && isAbandoned(path))
      rmSync(path, { recursive: true, force: true });
  }
}

/** Whether `path` is a directory of ours whose process has ended. */
function isAbandoned(path: string): boolean {
  const marker = join(path, MARKER_FILE);
  if (!lstatSync(path).isDirectory() || !existsSync(marker) || !lstatSync(marker).isFile())
    return false;
  try {
    const found = markerSchema.safeParse(readUserJson(marker, { most: MAX_MARKER_BYTES }));
    return found.success && processState(found.data) === "ended";
  } catch {
    return false;
  }
}
