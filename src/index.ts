/** The library: what the commands are made of. Arguments, results and errors are described where they are defined. */

export { openBackend, DEVICES, type Device, type OpenBackendOptions } from "./backend/open.js";
export type { Backend } from "./backend/contract/training.js";
export type { Checkpoint, StoredTensor, TokenizerFiles } from "./checkpoint/checkpoint.js";
export { resolveModel, SHORT_NAMES, type ResolveOptions } from "./checkpoint/hub.js";
export { openCheckpoint } from "./checkpoint/open.js";
export { createTokenizer, loadTokenizer, type Tokenizer } from "./checkpoint/tokenizer.js";
export { InterruptedError, PlanishError, UsageError } from "./common/errors.js";
export { setPaths, type Paths } from "./common/paths.js";
export { silentProgress, type ProgressSink, type ProgressTask } from "./common/progress.js";
export {
  collect,
  Engine,
  type Choice,
  type Completion,
  type EngineOptions,
  type Generation,
} from "./engine/engine.js";
export type { Constraint } from "./engine/constraint/contract.js";
export type { EngineInfo, EngineStats } from "./engine/protocol.js";
export {
  EngineError,
  type ChatMessage,
  type ChatRequest,
  type EngineErrorCode,
  type FinishReason,
  type GenerateEvent,
  type GenerateRequest,
  type Usage,
} from "./engine/request.js";
export { generate, type GenerateOptions, type GenerateResult } from "./engine/generate.js";
export {
  evaluateDivergence,
  type DivergenceOptions,
  type DivergenceResult,
} from "./evaluate/divergence.js";
export {
  evaluatePerplexity,
  type PerplexityOptions,
  type PerplexityResult,
} from "./evaluate/perplexity.js";
export {
  captureReference,
  type CaptureOptions,
  type ReferenceStates,
} from "./evaluate/reference.js";
export type { Measure } from "./evaluate/statistics.js";
export { parseTasks, readTask, type TaskData, type TaskSource } from "./evaluate/tasks/index.js";
export {
  evaluateTasks,
  type ItemResult,
  type TaskResult,
  type ZeroShotOptions,
  type ZeroShotResult,
} from "./evaluate/zero-shot.js";
export type { ModelConfig } from "./models/config.js";
export { inspectModel, type ModelDescription } from "./models/inspect.js";
export type { LanguageModel } from "./models/language-model.js";
export {
  isArtifact,
  readQuantizationInfo,
  type QuantizationInfo,
} from "./quantize/artifact/artifact.js";
export { readDocuments, tokenizeCorpus } from "./quantize/calibration/text.js";
export { quantize, type QuantizeOptions, type QuantizeResult } from "./quantize/run/pipeline.js";
export {
  loadModel,
  loadRounded,
  loadSimulated,
  type LoadedModel,
} from "./quantize/artifact/load.js";
export { planRun, type PlanOptions, type RunPlan } from "./quantize/run/preview.js";
export { formatScheme, parseScheme, type Bits, type Scheme } from "./backend/contract/scheme.js";
export { compare, type CompareOptions } from "./experiments/compare/compare.js";
export { readComparison } from "./experiments/compare/directory.js";
export type { Comparison, MethodResult } from "./experiments/compare/result.js";
export { comparisonMarkdown, comparisonText } from "./experiments/compare/table.js";
export { report, type ReportOptions } from "./experiments/page/report.js";
