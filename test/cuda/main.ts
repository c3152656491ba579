/**
 * The GPU lane (`npm run test:cuda`): compiles every kernel, runs the conformance suite, the block goldens and the
 * engine's kernel checks and executor on the GPU. It fails where there is no GPU, so that a skipped run cannot look like a
 * passed one. `--only TEXT` runs the tests with that in their names; `--verbose` prints each as it begins.
 */
import { createCudaBackend } from "../../src/backend/cuda/backend.js";
import { describeConformance } from "../backend/conformance-suite.js";
import { registerEngineChecks, registerExecutor } from "../engine/cuda/register.js";
import { registerBlockGoldens } from "./blocks.js";
import { registerLayerTests } from "./layer.js";
import { runRegistered } from "./vitest-shim.js";

const print = (line: string) => process.stdout.write(`${line}\n`);

const at = process.argv.indexOf("--only");
const only = at > 0 ? process.argv[at + 1] : "";

try {
  const backend = createCudaBackend();
  print(`GPU: ${backend.description}`);
  registerLayerTests(backend);
  describeConformance("cuda", () => backend);
  registerBlockGoldens(backend, print);
  registerEngineChecks();
  registerExecutor(print);
  const start = performance.now();
  const { passed, failed } = await runRegistered(print, only, process.argv.includes("--verbose"));
  const { compiled, cached } = backend.compiler.counts;
  print(
    `${passed} passed, ${failed} failed in ${((performance.now() - start) / 1000).toFixed(1)} s; ` +
      `${compiled} kernel sources compiled, ${cached} from the cache`,
  );
  if (failed > 0 || passed === 0) process.exitCode = 1;
} catch (error) {
  print(`FAIL: ${(error as Error).message}`);
  process.exitCode = 1;
}
