/** Every layout that artifacts are exported to. Adding one: a folder beside this file, and a line here. */
import {
  exportCompressedTensors,
  type ExportOptions,
  type ExportResult,
} from "./compressed-tensors/export.js";

export type { ExportOptions, ExportResult };

export interface Export {
  readonly summary: string;
  /** Writes the artifact at `path`. @throws PlanishError naming what the layout cannot hold. */
  run(path: string, options: ExportOptions): Promise<ExportResult>;
}

export const EXPORTS = {
  "compressed-tensors": {
    summary: "vLLM, transformers",
    run: exportCompressedTensors,
  },
} as const satisfies Record<string, Export>;
export type ExportFormat = keyof typeof EXPORTS;
