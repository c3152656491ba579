/**
 * The lane of the engine's executor (`scripts/test-arm64.mjs`), as one bundled file in out/…/: its suite at the level that
 * PLANISH_ISA names, on a machine whose Node.js runs the repository's models but not its test runner.
 */
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import "../backend/cpu/infer/executor.test.js";
import "../backend/cpu/infer/flattened.test.js";
import { runRegistered } from "../cuda/registered-tests.js";

const print = (line: string) => process.stdout.write(`${line}\n`);

print(`engine on ${loadNativeLibrary().description()}`);
const { passed, failed } = await runRegistered(print);
print(`${passed} passed, ${failed} failed`);
if (failed > 0 || passed === 0) process.exitCode = 1;
