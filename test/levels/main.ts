/**
 * The lane of the processor's instruction sets (`npm run test:levels`), as one bundled file for a machine that has
 * another processor than the one at hand, a compiler and Node.js, but no packages: the kernels' own tests at every level
 * that the machine has, and the conformance suite at its highest (or at PLANISH_ISA). `--need LEVEL` fails where the machine
 * lacks that level, so that a skipped level cannot look like a passed one.
 */
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { describeConformance } from "../backend/conformance-suite.js";
import "../backend/cpu-matmul.test.js";
import "../backend/cpu/infer/kernels.test.js";
import { runRegistered } from "../cuda/registered-tests.js";

const print = (line: string) => process.stdout.write(`${line}\n`);

const library = loadNativeLibrary();
print(`levels: ${library.levels().join(", ")}; running ${library.description()}`);
const at = process.argv.indexOf("--need");
const needed = at < 0 ? undefined : process.argv[at + 1];
if (needed !== undefined && !library.levels().includes(needed)) {
  print(`FAIL: this machine has no level ${needed}`);
  process.exitCode = 1;
} else {
  describeConformance(`cpu ${library.level()}`, () => createCpuBackend());
  const { passed, failed } = await runRegistered(print);
  print(`${passed} passed, ${failed} failed`);
  if (failed > 0 || passed === 0) process.exitCode = 1;
}
