/** What the scheduler runs: tokens, what of them is in the cache, and what becomes of what a step gives. */
import type { Guide } from "./constraint/contract.js";
import type { LookUp } from "./look-up.js";
import type { OutputToken, TextOutput } from "./text-output.js";
import { logProbabilities, type LogProbability, type Sampler } from "./sampling.js";
import { ROOT, type PrefixNode } from "./pages.js";
import type { FinishReason } from "./request.js";
import { maskTokens } from "./token-texts.js";

export interface TokenExtra {
  readonly logprob?: number;
  readonly top?: readonly LogProbability[];
}

/** Who is told that a sequence cannot go on; called from within a step, and must not throw. */
export interface FailureSink {
  fail(error: Error): void;
}

/** Where a text goes; called from within a step, and must not throw. */
export interface SequenceSink extends FailureSink {
  tokens(choice: number, tokens: readonly OutputToken<TokenExtra>[]): void;
  finish(choice: number, reason: FinishReason, sequence: TextSequence): void;
}

export interface SequenceLimits {
  readonly maxTokens: number;
  /** Positions that may be computed. */
  readonly contextTokens: number;
  /** Ids that end the text. */
  readonly endTokens: readonly number[];
  /** Log-probabilities to report: undefined for none, otherwise how many of the likeliest besides the chosen one's. */
  readonly logprobs?: number;
  /** Ids below it have a spelling; probabilities are over these. */
  readonly candidates: number;
  /** Of them, ids that must never be chosen. */
  readonly impossible: readonly number[];
}

export interface SequenceParts {
  /** Sequences of one request share it. */
  readonly request: number;
  readonly choice: number;
  readonly prompt: readonly number[];
  /** Where its beginnings are known from (default: where all are). */
  readonly root?: PrefixNode;
}

export interface TextParts extends SequenceParts {
  readonly sampler: Sampler;
  readonly output: TextOutput<TokenExtra>;
  readonly limits: SequenceLimits;
  readonly sink: SequenceSink;
  /** What holds the text to its form. */
  readonly guide?: Guide;
  /** What guesses what comes next (default: nothing does). */
  readonly lookUp?: LookUp;
}

export abstract class Sequence {
  readonly request: number;
  readonly choice: number;
  readonly promptTokens: number;
  /** Prompt, then what was generated. */
  readonly tokens: number[];
  /** How many of them have their keys and values in `pages`. */
  computed = 0;
  pages: number[] = [];
  /** Which of the executor's states it has, in models with recurrent layers, while it runs. */
  state: number | undefined;
  /** Leading pages that the pool knows, and the node of the beginning that they hold. */
  knownPages = 0;
  node: PrefixNode = ROOT;
  /** Prompt tokens that were found in the prefix cache when the sequence first ran. */
  cachedTokens: number | undefined;
  /** Its reader does not keep up: it keeps its place but takes no part in steps. */
  paused = false;
  /** Logits from which the next token is to be chosen as soon as its guide knows which ones may come. */
  held: Float32Array | undefined;
  /** Further choices of the request, which start from this one's prompt. */
  siblings: Sequence[] = [];
  readonly root: PrefixNode;

  constructor({ request, choice, prompt, root = ROOT }: SequenceParts) {
    this.request = request;
    this.choice = choice;
    this.tokens = [...prompt];
    this.promptTokens = prompt.length;
    this.root = root;
  }

  get generated(): number {
    return this.tokens.length - this.promptTokens;
  }

  /** Tokens that must be computed before the next one can be chosen. */
  get pending(): number {
    return this.tokens.length - this.computed;
  }

  abstract get sink(): FailureSink;

  /** What is wanted of each step: the last token's logits, or what the head reads of every token. */
  get wants(): "last" | "hidden" {
    return "last";
  }

  /** What holds the text to its form, if something does. */
  get guide(): Guide | undefined {
    return undefined;
  }

  /** Tokens that may come next, to be computed with the last one; see look-up.ts. */
  guess(_most: number): readonly number[] {
    return [];
  }

  /** How many tokens of a guess proved right. */
  learn(_guessed: number, _right: number): void {
    // Nothing guesses.
  }

  /** Frees what the sequence holds outside the engine's thread. */
  dispose(): void {
    this.guide?.[Symbol.dispose]();
  }

  /** Takes what a step gave; returns whether the sequence has ended. A guide must be ready. */
  abstract advance(rows: Float32Array): boolean;
}

/** One text in the making. */
export class TextSequence extends Sequence {
  constructor(private readonly parts: TextParts) {
    super(parts);
  }

  override get sink(): SequenceSink {
    return this.parts.sink;
  }

  override get guide(): Guide | undefined {
    return this.parts.guide;
  }

  override guess(most: number): readonly number[] {
    const { lookUp, limits, guide } = this.parts;
    // A guide must see each token before it says which may come next.
    if (!lookUp || guide) return [];
    const { contextTokens, maxTokens } = limits;
    // Every guess takes a position, and the token behind the last one too.
    const room = Math.min(contextTokens - this.tokens.length, maxTokens - this.generated - 1);
    return room > 0 ? lookUp.guess(this.tokens, Math.min(most, room)) : [];
  }

  override learn(guessed: number, right: number): void {
    this.parts.lookUp?.learn(guessed, right);
  }

  /** Chooses the next token and reports it; returns whether the text has ended. A guide must be ready. */
  override advance(logits: Float32Array): boolean {
    const { sampler, output, limits, sink, guide } = this.parts;
    if (guide?.isComplete) return this.end("stop");
    maskTokens(logits, limits.impossible);
    const token = sampler.next(logits, guide?.mask);
    if (limits.endTokens.includes(token)) return this.end("stop");
    guide?.accept(token);
    this.tokens.push(token);
    sink.tokens(this.choice, output.push(token, this.extra(logits, token)));
    if (output.stopString !== undefined) return this.end("stop");
    if (this.generated >= limits.maxTokens) return this.end("length");
    // The last token's position is never computed: nothing follows it.
    if (this.tokens.length > limits.contextTokens) return this.end("context");
    return false;
  }

  get stopString(): string | undefined {
    return this.parts.output.stopString;
  }

  private extra(logits: Float32Array, token: number): TokenExtra {
    const { logprobs, candidates } = this.parts.limits;
    if (logprobs === undefined) return {};
    return logProbabilities(logits.subarray(0, candidates), token, logprobs);
  }

  private end(reason: FinishReason): true {
    const { output, sink } = this.parts;
    const rest = output.flush();
    if (rest.length > 0) sink.tokens(this.choice, rest);
    // What was held back may hold a stop string.
    sink.finish(this.choice, output.stopString === undefined ? reason : "stop", this);
    return true;
  }
}
