/** Every layout that artifacts are exported to. Adding one: a folder beside this file, and a line here. */
import { exportCompressedTensors } from "./compressed-tensors/export.js";
import type { ExportOptions, ExportResult } from "./export-options.js";
import { exportFlatQuant } from "./flatquant/export.js";

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
  flatquant: {
    summary: "FlatQuant's own code (packed_int4)",
    run: exportFlatQuant,
  },
} as const satisfies Record<string, Export>;
export type ExportFormat = keyof typeof EXPORTS;
