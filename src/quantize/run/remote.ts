/** What the pipeline knows of blocks that are calibrated elsewhere: by whom, and how they come back, is not its business. */
import type { QuantizationInfo } from "../artifact/quantization-info.js";
import type { TokenWindows } from "../schema/windows.js";
import type { BlockSettings } from "./block-unit.js";
import type { WorkerJob } from "./workers.js";

/** A run whose blocks are wanted, as its own process knows it. */
export interface RemoteJob extends WorkerJob, BlockSettings {
  /** What makes two runs the same run. */
  readonly settings: RemoteSettings;
  /** Where the artifact will be. */
  readonly out: string;
}

export type RemoteSettings = Pick<
  QuantizationInfo,
  "planishVersion" | "method" | "preset" | "scheme" | "recipe" | "seed" | "source" | "machine"
>;

export interface RemoteBlocks {
  /** @throws PlanishError when those who calibrate cannot be reached: asked before any work. */
  ready(): Promise<void>;
  /**
   * Resolves when every block is in the journal. @throws PlanishError, resumable, when one cannot be had;
   * InterruptedError on the job's signal. What came back before is in the journal.
   */
  calibrate(job: RemoteJob, windows: TokenWindows): Promise<void>;
}
