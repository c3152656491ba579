/** Where cases put the files that readers open: in memory where the system has such a place. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

let directory: string | undefined;

/** A directory of this process, removed when it ends. */
export function scratch(): string {
  if (directory === undefined) {
    const made = mkdtempSync(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "planish-fuzz-"));
    process.on("exit", () => {
      rmSync(made, { recursive: true, force: true });
    });
    directory = made;
  }
  return directory;
}

/** Writes a file of the process's directory and returns its path. */
export function scratchFile(name: string, bytes: Uint8Array | string): string {
  const path = join(scratch(), name);
  writeFileSync(path, bytes);
  return path;
}
