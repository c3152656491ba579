/**
 * What a quantized model is worth, in short: how far its next-token distributions are from the original's on a little held
 * back text, its size, an answer of both, and a warning with a better scheme where that is far.
 */
import type { Backend } from "../backend/contract/training.js";
import type { BlockProgram } from "../backend/contract/program.js";
import { formatScheme, parseScheme, type Scheme } from "../backend/contract/scheme.js";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { loadTokenizer } from "../checkpoint/tokenizer.js";
import type { ProgressSink } from "../common/progress.js";
import { generate } from "../engine/generate.js";
import { evaluateDivergence } from "../evaluate/divergence.js";
import { blockPrograms } from "../models/architectures/index.js";
import { defaultSequenceLength } from "../models/config.js";
import { LanguageModel } from "../models/language-model.js";
import { loadModel } from "../quantize/artifact/load.js";
import { readDocuments, tokenizeCorpus } from "../quantize/calibration/text.js";

/** Windows of the held-back text, and tokens in each at most. */
const WINDOWS = 10;
const WINDOW_TOKENS = 512;
/** Characters of the text that are tokenized: more than enough for the windows, whatever the tokenizer. */
const CHARACTERS = 120_000;
/** The mean divergence, in nats a token, above which people notice: half of the likeliest tokens' margin is gone. */
export const WORRYING_KL = 0.2;
export const PROMPT = "The capital of France is";
export const ANSWER_TOKENS = 24;

export interface Verdict {
  /** Mean KL(original ‖ quantized) in nats a token, and the share of tokens whose likeliest next one is the same. */
  readonly kl: number;
  readonly topAgreement: number;
  readonly perplexity: number;
  readonly originalPerplexity: number;
  readonly windows: number;
  readonly seqLen: number;
  readonly prompt: string;
  /** What each model continues the prompt with, its likeliest token every time. */
  readonly answer: string;
  readonly originalAnswer: string;
  /** Set where the divergence is worrying: the next scheme up, unless there is none. */
  readonly warning?: { readonly nextScheme?: string };
}

export interface VerdictOptions {
  readonly backend: Backend;
  /** The open original, and the artifact that was made from it. */
  readonly source: Checkpoint;
  readonly artifact: string;
  readonly progress: ProgressSink;
  readonly signal?: AbortSignal;
}

/**
 * Runs both models on the beginning of WikiText-2's test split, which no calibration text contains.
 * @throws PlanishError when the text is not on this machine, InterruptedError on the signal.
 */
export async function giveVerdict(options: VerdictOptions): Promise<Verdict> {
  const { backend, source, artifact, progress, signal } = options;
  const documents = readDocuments("wikitext2").map((text) => text.slice(0, CHARACTERS));
  const tokenizer = loadTokenizer(source);
  const tokens = tokenizeCorpus(tokenizer, documents);
  using original = LanguageModel.load(backend, source);
  using quantized = loadModel(backend, artifact);
  const { kl, topAgreement, model, reference, windows, seqLen } = await evaluateDivergence(
    quantized.model,
    original,
    tokens,
    {
      seqLen: Math.min(WINDOW_TOKENS, defaultSequenceLength(original.config)),
      limit: WINDOWS,
      progress,
      signal,
      label: "comparing with the original",
    },
  );
  const answerOf = async (of: LanguageModel): Promise<string> => {
    const request = { prompt: PROMPT, maxTokens: ANSWER_TOKENS, temperature: 0, signal };
    return (await generate(of, tokenizer, request)).text;
  };
  const scheme = parseScheme(quantized.info?.scheme ?? "w16a16");
  const next = nextScheme(scheme, blockPrograms(original.config));
  return {
    kl: kl.value,
    topAgreement: topAgreement.value,
    perplexity: model.perplexity,
    originalPerplexity: reference.perplexity,
    windows,
    seqLen,
    prompt: PROMPT,
    answer: await answerOf(quantized.model),
    originalAnswer: await answerOf(original),
    ...(kl.value > WORRYING_KL && {
      warning: next ? { nextScheme: formatScheme(next) } : {},
    }),
  };
}

/**
 * The scheme to try where one loses too much: widens what usually loses most, one step. Activations of few bits first, then
 * weights without groups, small tables, the cache; groups are of 64 or 32, whichever divides every width.
 */
export function nextScheme(scheme: Scheme, programs: readonly BlockProgram[]): Scheme | undefined {
  const { weightBits, weightGroup, weightOffset, activationBits, activationGroup, kvBits } = scheme;
  const widths = programs.flatMap(({ linears }) =>
    Object.values(linears).map(({ shape }) => shape[1]),
  );
  const group = ([64, 32] as const).find((size) => widths.every((width) => width % size === 0));
  if (activationBits < 8)
    return activationGroup || !group
      ? { ...withoutActivationGroups(scheme), activationBits: 8 }
      : { ...scheme, activationGroup: group };
  if (weightBits < 6 && !weightGroup && group) return { ...scheme, weightGroup: group };
  if (weightBits < 4) return { ...scheme, weightBits: 4 };
  if (weightBits < 6 && weightGroup && !weightOffset && group)
    return { ...scheme, weightGroup: 32, weightOffset: true };
  if (scheme.tableBits && scheme.tableBits < 8)
    return { ...scheme, tableBits: scheme.tableBits === 4 ? 6 : 8 };
  if (kvBits < 8) return { ...scheme, kvBits: 8 };
  if (weightBits < 8) return { ...withoutWeightOffsets(scheme), weightBits: 8 };
  return undefined;
}

function withoutActivationGroups(scheme: Scheme): Scheme {
  const { activationGroup: _group, activationOffset: _offset, ...rest } = scheme;
  return rest;
}

function withoutWeightOffsets(scheme: Scheme): Scheme {
  const { weightOffset: _offset, ...rest } = scheme;
  return rest;
}
