/** `npm run test:kills [-- --count N --seed N]`: many kills of a short run, for minutes; prints each. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { killAndResume } from "./kills.js";

const { values } = parseArgs({
  options: {
    count: { type: "string", default: "60" },
    seed: { type: "string", default: String(Date.now() % 1e6) },
  },
});
const [count, seed] = [Number(values.count), Number(values.seed)];
if (!Number.isInteger(count) || count < 1 || !Number.isInteger(seed)) {
  process.stderr.write("give --count and --seed as integers, at least one kill\n");
  process.exit(2);
}
const print = (line: string): void => void process.stdout.write(`${line}\n`);
const directory = mkdtempSync(join(tmpdir(), "planish-kills-"));
try {
  print(`${count} kills, seed ${seed}`);
  const report = await killAndResume(directory, count, seed, print);
  print(`${report.kills} kills in ${report.runs} runs, all ended in the same bytes`);
  for (const [moment, kills] of Object.entries(report.moments)) print(`  ${kills} ${moment}`);
} finally {
  rmSync(directory, { recursive: true, force: true });
}
