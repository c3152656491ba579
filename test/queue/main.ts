/** `npm run test:queue [-- --runs N --seed N --store directory|s3]`: runs on a queue to which everything happens. */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { root } from "../cli/run-program.js";
import { chaos, type ChaosStore } from "./chaos.js";

const { values } = parseArgs({
  options: {
    runs: { type: "string", default: "30" },
    seed: { type: "string", default: String(Date.now() % 1e6) },
    blocks: { type: "string", default: "4" },
  },
});
const [runs, seed, blocks] = [values.runs, values.seed, values.blocks].map(Number);
if (![runs, seed, blocks].every(Number.isInteger) || runs < 1) {
  process.stderr.write("give --runs, --seed and --blocks as integers, at least one run\n");
  process.exit(2);
}
const print = (line: string): void => void process.stdout.write(`${line}\n`);
const directory = mkdtempSync(join(tmpdir(), "planish-queue-"));
const place = join(directory, "store");
mkdirSync(place);

/** A file system of its own, which can be full; it takes the right to mount one. */
function smallFileSystem(): ChaosStore["refuse"] {
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=256m", "tmpfs", place], { stdio: "ignore" });
  } catch {
    print("no right to mount a file system: the store is never full");
    return undefined;
  }
  return async (milliseconds) => {
    const filler = join(place, "filler");
    const { bavail, bsize } = statfsSync(place);
    try {
      writeFileSync(filler, new Uint8Array(bavail * bsize));
    } catch {
      // Others have written meanwhile: it is as full as it can be.
    }
    await sleep(milliseconds);
    rmSync(filler, { force: true });
  };
}

const refuse = smallFileSystem();
try {
  print(`${runs} runs, seed ${seed}`);
  const model = join(directory, "model");
  await writeFirstBlocks(join(root, "models/tiny-llama"), model, blocks);
  const { happened, errors } = await chaos({
    directory,
    model,
    store: { address: place, env: {}, files: join(place, "blobs"), refuse },
    runs,
    seed,
    away: 10_000,
    log: print,
  });
  print(`${runs} runs, all ended in the same bytes`);
  for (const [what, count] of Object.entries(happened)) print(`  ${count} × ${what}`);
  for (const error of errors) print(`  first ended with: ${error}`);
} finally {
  if (refuse) execFileSync("umount", [place]);
  rmSync(directory, { recursive: true, force: true });
}
