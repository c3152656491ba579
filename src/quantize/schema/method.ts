/**
 * What a quantization method is to the pipeline. A method says what its recipe looks like, and how the parameters
 * of a block are found; the pipeline feeds it blocks and activations, keeps the journal, folds and packs.
 * Methods never name an architecture and never import one another (docs/contributing/methods.md).
 */
import type { z } from "zod";
import type { PackedBlock } from "../../backend/contract/packed.js";
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import type { ProgressTask } from "../../common/progress.js";
import type { BlockWeights } from "../../models/interpret.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import type { EndLayerWeights } from "../../models/language-model.js";
import type { HostBlock } from "../../models/weights.js";
import type { BlockProgram, SiteName } from "../../backend/contract/program.js";
import type { Activations, TokenWindows } from "./windows.js";
import type { ParameterValues } from "./parameters.js";
import type { GptqSettings } from "./gptq-settings.js";
import type { Scheme } from "../../backend/contract/scheme.js";

/** What calibration a recipe asks for; none for methods that look at weights only. */
export interface CalibrationNeed {
  readonly samples: number;
  readonly seqLen: number;
  /** Optimisation steps per block, for estimates and progress; 0: blocks need no stage of their own. */
  readonly stepsPerBlock: number;
  /** Sequences per step, for memory estimates. */
  readonly batch: number;
  /** End-to-end steps after the blocks. */
  readonly refineSteps: number;
  readonly refineBatch: number;
  /** What the end-to-end stage is called while it runs (default "distilling"). */
  readonly refineLabel?: string;
  /** The end-to-end stage has one block in memory at a time. */
  readonly refineStreams?: boolean;
  /** Second moments of every linear's activations are collected after all learning. */
  readonly secondMoments?: boolean;
}

/** How one block fared. Errors are mean squared errors of its output on the first calibration windows. */
export interface BlockReport {
  /** Plain rounding to nearest. */
  readonly errorRounded: number;
  /** With the method's starting parameters. */
  readonly errorInitial: number;
  readonly errorFinal: number;
  /** Mean loss of each epoch, in order. */
  readonly epochLoss: readonly number[];
  /** Relative change of each parameter, ‖final − initial‖ / ‖initial‖ (or ‖final‖ when it starts at zero). */
  readonly moved: Readonly<Record<string, number>>;
  /** Fallbacks and remarks. */
  readonly notes: readonly string[];
  /** What the method found out about each linear, by its path; in the order and under the names to be shown. */
  readonly linears?: Readonly<Record<string, LinearFacts>>;
  /** The same of another way to round each linear, between which the end-to-end stage decides. */
  readonly alternatives?: Readonly<Record<string, LinearFacts>>;
  /** Calibration tokens that chose each expert. */
  readonly expertTokens?: readonly number[];
  /** What computed this block, in a run that takes any device. */
  readonly machine?: MachineFacts;
}

/** Device, instruction set or GPU, and threads (`quantization.json`'s `machine`). */
export interface MachineFacts {
  readonly device: string;
  readonly level?: string;
  readonly threads?: number;
  readonly packingThreads?: number;
}

/** Facts about one linear by name, in camel case: tables show them as columns. */
export type LinearFacts = Readonly<Record<string, number | string>>;

export interface BlockJob<Recipe> {
  readonly backend: Backend;
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  readonly recipe: Recipe;
  readonly layer: number;
  readonly program: BlockProgram;
  readonly seed: number;
  readonly block: HostBlock;
  /** The same block on the backend. */
  readonly weights: BlockWeights;
  /** Full-precision inputs and outputs of the block over the calibration set. */
  readonly inputs: Activations;
  readonly targets: Activations;
  /** Calibration tokens that chose each expert; absent in blocks without experts. */
  readonly expertTokens?: readonly number[];
  readonly progress: ProgressTask;
  readonly signal?: AbortSignal;
}

export interface BlockOutcome {
  readonly parameters: ParameterValues;
  readonly report: BlockReport;
}

/** Everything an end-to-end stage needs; blocks are read again one by one. */
export interface RefineJob<Recipe> {
  readonly backend: Backend;
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  readonly recipe: Recipe;
  readonly seed: number;
  readonly endLayers: EndLayerWeights;
  readonly readBlock: (layer: number) => HostBlock;
  /** Parameters of every block as the block stage left them. */
  readonly parameters: readonly ParameterValues[];
  /** What the block stage reported of each. */
  readonly reports: readonly BlockReport[];
  readonly windows: TokenWindows;
  /** Full-precision hidden states after the last block, before the final norm. */
  readonly teacher: Activations;
  readonly progress: ProgressTask;
  readonly signal?: AbortSignal;
  /** State of an earlier, interrupted stage, and where to keep it now and then. */
  readonly resume?: RefineState;
  readonly keep: (state: RefineState) => Promise<void>;
}

/** A refine stage between two steps: enough to go on exactly. */
export interface RefineState {
  readonly step: number;
  /** By block: parameter values, and optimiser moments under `<name>#1`, `<name>#2`. */
  readonly tensors: readonly ParameterValues[];
  readonly losses: readonly number[];
}

export interface RefineOutcome {
  readonly parameters: readonly ParameterValues[];
  readonly losses: readonly number[];
  /** By block: facts that replace those of the block stage. */
  readonly linears?: readonly Readonly<Record<string, LinearFacts>>[];
}

/** The transform of one site. */
export interface SitePlan {
  /** Sizes of its square matrices: two of a Kronecker pair (left, right), one, or none. */
  readonly factors: readonly number[];
  readonly diag: boolean;
}

/** What a method would do to each block, from sizes alone. */
export interface BlockPlan {
  /** Sites that get a transform. */
  readonly transforms: Readonly<Partial<Record<SiteName, SitePlan>>>;
  /** Shapes of the parameters by name, as a run's `quantization.json` will list them. */
  readonly parameters: Readonly<Record<string, readonly number[]>>;
}

/** A source with what its configuration says. */
export interface OpenModel {
  readonly source: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
}

/** A source taken as it is. */
export interface KeptModel {
  /** That its own grids amount to, with each block's and table's. */
  readonly scheme: Scheme;
  /** `parameters`: what `calibrateBlock` found, where the method has one and it was asked. */
  readonly block: (layer: number, parameters?: ParameterValues) => PackedBlock;
}

export interface Method<Recipe = unknown> {
  readonly name: string;
  /** One line for `--help`. */
  readonly summary: string;
  /** Strict: unknown keys are refused. */
  readonly recipe: z.ZodType<Recipe>;
  readonly presets: Readonly<Record<string, Recipe>>;
  readonly defaultPreset: string;
  calibration(recipe: Recipe): CalibrationNeed | undefined;
  /** How the pipeline shall round folded weights, when not to nearest; the recipe then asks for calibration too. */
  gptq?(recipe: Recipe): GptqSettings | undefined;
  /** Refuses what cannot work, before any calibration. @throws PlanishError listing every unfit layer. */
  check?(programs: readonly BlockProgram[], scheme: Scheme, recipe: Recipe): void;
  /** For `planish inspect`. Absent: the method has no parameters. */
  plan?(program: BlockProgram, scheme: Scheme, recipe: Recipe): BlockPlan;
  /**
   * Methods that keep a source's own codes: the scheme follows from it, and nothing of the following is asked.
   * @throws UsageError where the source has none.
   */
  keep?(model: OpenModel, recipe: Recipe): KeptModel;
  calibrateBlock?(job: BlockJob<Recipe>): Promise<BlockOutcome>;
  refine?(job: RefineJob<Recipe>): Promise<RefineOutcome>;
}
