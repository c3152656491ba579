/** The engine's executor alone of the GPU lane: `node scripts/bundle-lane.mjs executor`. */
import { registerEngineChecks, registerExecutor } from "../backend/cuda/infer/register.js";
import { runRegistered } from "./registered-tests.js";

const print = (line: string) => process.stdout.write(`${line}\n`);
registerEngineChecks();
registerExecutor(print);
const start = performance.now();
const { passed, failed } = await runRegistered(print, "CUDA executor");
print(`${passed} passed, ${failed} failed in ${((performance.now() - start) / 1000).toFixed(1)} s`);
if (failed > 0 || passed === 0) process.exitCode = 1;
