/**
 * The GPU lane (`npm run test:cuda`): compiles every kernel, runs the conformance suite, the block goldens and the
 * engine's kernel checks and executor on the GPU. It fails where there is no GPU, so that a skipped run cannot look like a
 * passed one. `--only TEXT` runs the tests with that in their names; `--verbose` prints each as it begins; `--serial` runs
 * all in this process, one after another and without limits, as sanitizers and debuggers want it.
 */
import { createCudaBackend } from "../../src/backend/cuda/train/backend.js";
import { REFUSED_KERNELS } from "../../src/backend/cuda/train/kernels/recurrent.js";
import { describeConformance } from "../backend/conformance-suite.js";
import { registerEngineChecks, registerExecutor } from "../backend/cuda/infer/register.js";
import { registerBlockGoldens } from "./blocks.js";
import { isLaneWorker, runLane, serveLane } from "./lane.js";
import { LAYER_GROUP, registerLayerTests } from "./layer.js";
import { runRegistered } from "./registered-tests.js";

const print = (line: string) => process.stdout.write(`${line}\n`);

const at = process.argv.indexOf("--only");
const only = at > 0 ? process.argv[at + 1] : "";
const verbose = process.argv.includes("--verbose");

try {
  const backend = createCudaBackend();
  registerLayerTests(backend);
  describeConformance("cuda", () => backend, REFUSED_KERNELS);
  registerBlockGoldens(backend, print);
  registerEngineChecks();
  registerExecutor(print);
  if (isLaneWorker()) await serveLane();
  else {
    print(`GPU: ${backend.description}`);
    const start = performance.now();
    const alone = (name: string) => name.startsWith(LAYER_GROUP);
    const { passed, failed } = process.argv.includes("--serial")
      ? await runRegistered(print, only, verbose)
      : await runLane({ only, verbose, alone, print });
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    print(`${passed} passed, ${failed} failed in ${seconds} s`);
    if (failed > 0 || passed === 0) process.exitCode = 1;
  }
} catch (error) {
  print(`FAIL: ${(error as Error).message}`);
  process.exitCode = 1;
}
