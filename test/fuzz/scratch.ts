/** Where cases put the files that readers open: in memory where the system has such a place. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Names the directory in which a process of the lane makes its own; whoever set it removes it, also after kills. */
export const PARENT_VARIABLE = "PLANISH_FUZZ_DIRECTORY";

/** A new directory, in memory where that can be. */
export function makeDirectory(): string {
  const parent = process.env[PARENT_VARIABLE] ?? (existsSync("/dev/shm") ? "/dev/shm" : tmpdir());
  return mkdtempSync(join(parent, "planish-fuzz-"));
}

let directory: string | undefined;

/** A directory of this process, removed when it ends by itself. */
export function scratch(): string {
  if (directory === undefined) {
    const made = makeDirectory();
    process.on("exit", removeScratch);
    directory = made;
  }
  return directory;
}

/** Removes it now, for processes that are ended from outside. */
export function removeScratch(): void {
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
  directory = undefined;
}

/** Writes a file of the process's directory and returns its path. */
export function scratchFile(name: string, bytes: Uint8Array | string): string {
  const path = join(scratch(), name);
  writeFileSync(path, bytes);
  return path;
}
