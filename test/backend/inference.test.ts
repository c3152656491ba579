/** Every executor that runs here takes the inference contract's suite. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";
import type { Backend } from "../../src/backend/contract/training.js";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../../src/backend/cpu/library.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { cudaExecutorOf } from "../../src/engine/gpu.js";
import { IntegerExecutor } from "../../src/engine/processor.js";
import { SimulatedExecutor } from "../../src/engine/simulated-executor.js";
import { roundedModel } from "../engine/rounded.js";
import { LLAMA_VARIANTS, writeRandomLlama } from "./cpu/infer/random-llama.js";
import { EmulatedDevice } from "./cuda/infer/emulated-device.js";
import { describeInference, type InferenceSubject } from "./inference-suite.js";

const directory = mkdtempSync(join(tmpdir(), "planish-inference-"));
beforeAll(() =>
  writeRandomLlama(directory, { ...LLAMA_VARIANTS["mistral, a window of 70"], head_dim: 32 }, 5),
);
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const ids = Int32Array.from({ length: 160 }, (_, i) => (i * i * 7 + 3 * i + 5) % 61);
const common: Pick<InferenceSubject, "model" | "text" | "oracle"> = {
  model: () => roundedModel(directory, "w4a4kv4"),
  text: () => ids,
  oracle: () => createReferenceBackend({ realType: "f64" }),
};

/** The simulated executor on a backend; both end together. */
const simulatedOn =
  (create: () => Backend): InferenceSubject["open"] =>
  (model) =>
    new SimulatedExecutor(model.simulated(create()), "w4a4kv4, simulated");

describeInference({
  ...common,
  name: "reference",
  open: simulatedOn(() => createReferenceBackend({ realType: "f32" })),
});
describeInference({
  ...common,
  name: "simulated on the processor",
  open: simulatedOn(() => createCpuBackend()),
});
describeInference({
  ...common,
  name: "cpu",
  open: ({ source }) => {
    const library = loadNativeLibrary();
    return new IntegerExecutor(library, library.threads(), source);
  },
});
describeInference({
  ...common,
  name: "cuda, emulated",
  open: ({ source }) => cudaExecutorOf(source, new EmulatedDevice()),
});
