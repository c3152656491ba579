/** `planish/engine`: running models and nothing else; no server, no reports, no quantization. */

export { resolveModel, SHORT_NAMES, type ResolveOptions } from "../checkpoint/hub.js";
export { InterruptedError, PlanishError, UsageError } from "../common/errors.js";
export { setPaths, type Paths } from "../common/paths.js";
export { silentProgress, type ProgressSink, type ProgressTask } from "../common/progress.js";
export {
  collect,
  Engine,
  type Choice,
  type Completion,
  type Embedding,
  type EngineOptions,
} from "./engine.js";
export type { EngineInfo, EngineStats } from "./protocol.js";
export {
  EngineError,
  type ChatMessage,
  type ChatRequest,
  type EmbedRequest,
  type EngineErrorCode,
  type FinishReason,
  type GenerateEvent,
  type GenerateRequest,
  type TokenizeRequest,
  type Tool,
  type ToolCall,
  type Usage,
} from "./request.js";
