/** Every layout that models are exported to. Adding one: a folder beside this file, and a line here. */
import { exportCompressedTensors } from "./compressed-tensors/export.js";
import type { ExportOptions, ExportResult } from "./export-options.js";
import { exportFlatQuant } from "./flatquant/export.js";
import { exportGguf } from "./gguf/from-artifact.js";

export interface Export {
  readonly summary: string;
  /** What it writes. */
  readonly writes: "directory" | "file";
  /** Writes the artifact at `path`. @throws PlanishError naming what the layout cannot hold. */
  run(path: string, options: ExportOptions): Promise<ExportResult>;
}

export const EXPORTS = {
  "compressed-tensors": {
    summary: "vLLM, transformers",
    writes: "directory",
    run: exportCompressedTensors,
  },
  flatquant: {
    summary: "FlatQuant's own code (packed_int4)",
    writes: "directory",
    run: exportFlatQuant,
  },
  gguf: {
    summary: "llama.cpp",
    writes: "file",
    run: exportGguf,
  },
} as const satisfies Record<string, Export>;
export type ExportFormat = keyof typeof EXPORTS;
