/** The formats of the fuzz lane. */
import type { Target } from "../target.js";
import { configTarget } from "./config.js";
import { ggufTarget } from "./gguf.js";
import { journalTarget } from "./journal.js";
import { quantizationTarget } from "./quantization.js";
import { recipeTarget } from "./recipes.js";
import { requestTarget } from "./requests.js";
import { safetensorsIndexTarget, safetensorsTarget } from "./safetensors.js";
import { samplerTarget } from "./sampler.js";
import { templateTarget } from "./templates.js";
import { tokenizerTarget, tokenSettingsTarget } from "./tokenizer.js";

export const TARGETS: readonly Target[] = [
  safetensorsTarget,
  safetensorsIndexTarget,
  ggufTarget,
  configTarget,
  tokenizerTarget,
  tokenSettingsTarget,
  quantizationTarget,
  journalTarget,
  recipeTarget,
  requestTarget,
  samplerTarget,
  templateTarget,
];
