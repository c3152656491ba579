/** Guide threads from the sources, which a loader must translate. */
import { Worker } from "node:worker_threads";
import type { LaunchGuideThread } from "../../../src/engine/constraint/thread.js";

const FILE = new URL("../../../src/engine/constraint/worker.ts", import.meta.url);

export const launchGuides: LaunchGuideThread = (workerData) =>
  new Worker(
    `import("tsx/esm/api").then(({ register }) => { register(); return import(${JSON.stringify(FILE.href)}); })`,
    {
      eval: true,
      workerData,
    },
  );
