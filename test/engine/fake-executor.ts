/**
 * An executor whose logits are a hash of the tokens that the pages hold, and its states where it has some, so that every
 * mistake with either changes the text; and the same text worked out without pages, chunks or batches.
 */
import { MessageChannel } from "node:worker_threads";
import type { Tokenizer } from "../../src/checkpoint/tokenizer.js";
import type { ConstraintCompiler } from "../../src/engine/constraint/contract.js";
import type { ModelSampling } from "../../src/engine/model-sampling.js";
import { Engine } from "../../src/engine/engine.js";
import { EngineHost, type HostOptions } from "../../src/engine/host.js";
import type { Prompts } from "../../src/engine/preparing.js";
import type { Chunk, Executor } from "../../src/backend/contract/inference.js";
import { SequenceStates } from "../../src/backend/contract/sequence-states.js";
import { Random } from "../../src/common/random.js";

export const FAKE_VOCABULARY = 24;

/** Logits after some tokens. */
export function fakeLogits(tokens: readonly number[], vocabSize = FAKE_VOCABULARY): Float32Array {
  const random = Random.for(17, tokens.join(","));
  return Float32Array.from({ length: vocabSize }, () => 2 * random.normal());
}

export interface FakeOptions {
  readonly pageTokens?: number;
  readonly maxPositions?: number;
  readonly vocabSize?: number;
  /** Logits after some tokens (default: a hash of them). */
  readonly logitsOf?: (tokens: readonly number[], vocabSize: number) => Float32Array;
  /** Sequences have states beside their pages, which hold the sum of their tokens' squares. */
  readonly recurrent?: boolean;
  /** Called before each step; may throw. */
  readonly onStep?: (chunks: readonly Chunk[]) => void;
}

export function fakeExecutor({
  pageTokens = 4,
  maxPositions,
  vocabSize = FAKE_VOCABULARY,
  logitsOf = fakeLogits,
  recurrent = false,
  onStep,
}: FakeOptions = {}): Executor & {
  disposed: boolean;
} {
  let memory = new Int32Array();
  let sums = new Float64Array();
  let positions = new SequenceStates(0);
  return {
    shape: {
      hiddenSize: 8,
      vocabSize,
      maxPositions: maxPositions ?? 1000,
      learnedPositions: false,
    },
    description: "fake",
    pageTokens,
    bytesPerPage: 4 * pageTokens,
    bytesPerState: recurrent ? 8 : undefined,
    weightBytes: 0,
    disposed: false,
    reserve(pages, states = 1) {
      memory = new Int32Array(pages * pageTokens).fill(-1);
      sums = new Float64Array(states);
      positions = new SequenceStates(recurrent ? states : 0);
    },
    copyState(from, to) {
      positions.copy(from, to);
      sums[to] = sums[from];
    },
    copyPage(from, to) {
      memory.copyWithin(to * pageTokens, from * pageTokens, (from + 1) * pageTokens);
    },
    async step(chunks) {
      await Promise.resolve();
      onStep?.(chunks);
      const slot = (pages: Int32Array, position: number): number =>
        pages[Math.floor(position / pageTokens)] * pageTokens + (position % pageTokens);
      for (const { tokens, start, pages } of chunks)
        tokens.forEach((token, i) => (memory[slot(pages, start + i)] = token));
      const slots = positions.of(chunks);
      positions.begin(slots);
      positions.end(slots, chunks);
      return chunks.map(({ tokens, start, pages, logits }, i) => {
        if (start === 0) sums[slots[i]] = 0;
        for (const token of tokens) sums[slots[i]] += token ** 2;
        if (logits === "none") return undefined;
        const length = start + tokens.length;
        const held = Array.from({ length }, (_, at) => memory[slot(pages, at)]);
        if (recurrent && sums[slots[i]] !== held.reduce((sum, token) => sum + token ** 2, 0))
          throw new Error("a sequence's state is not that of the tokens in its pages");
        const rows = logits === "all" ? tokens.length : 1;
        const all = new Float32Array(rows * vocabSize);
        for (let row = 0; row < rows; row++)
          all.set(logitsOf(held.slice(0, length - rows + 1 + row), vocabSize), row * vocabSize);
        return all;
      });
    },
    [Symbol.dispose]() {
      this.disposed = true;
    },
  };
}

/** Token i is the i-th letter; 0 ends a text. */
export function fakeTokenizer(chatTemplate?: string): Tokenizer {
  const spell = (id: number): string => (id === 0 ? "" : String.fromCharCode(96 + id));
  return {
    encode: (text) => Array.from(text, (char) => (char.charCodeAt(0) - 96) & 31),
    decode: (ids) => Array.from(ids, spell).join(""),
    stream: () => ({ push: spell, flush: () => "" }),
    bosTokenId: undefined,
    eosTokenIds: [0],
    vocabSize: FAKE_VOCABULARY,
    chatTemplate,
    tokenToId: (token) => token.charCodeAt(0) - 96,
    idToToken: (id) => spell(id) || "<end>",
    specialTokens: {},
  };
}

/** An engine whose computing half is in this thread too. `crash` ends that half as a failing thread would. */
export async function fakeEngine(
  executor: Executor,
  options: Partial<HostOptions> = {},
  tokenizer = fakeTokenizer(),
  {
    onHold = () => undefined,
    prompts,
    constraints,
    sampling,
  }: {
    onHold?: (busy: boolean) => void;
    prompts?: Prompts;
    constraints?: ConstraintCompiler;
    sampling?: ModelSampling;
  } = {},
): Promise<{ engine: Engine; crash: (error: Error) => void }> {
  const { port1, port2 } = new MessageChannel();
  let crash: (error: Error) => void = () => undefined;
  const connecting = Engine.connect({
    postMessage: (message) => port1.postMessage(message),
    on: (event, listener) => port1.on(event, listener),
    onDown: (listener) => {
      crash = listener;
      port1.on("close", () => listener(undefined));
    },
    hold: onHold,
    terminate: () => {
      port1.close();
      return Promise.resolve();
    },
  });
  new EngineHost(
    port2,
    { executor, tokenizer, arithmetic: "simulated", prompts, constraints, sampling },
    { pages: 64, maxRunning: 8, maxWaiting: 8, stepTokens: 64, ...options },
  );
  return { engine: await connecting, crash: (error) => crash(error) };
}
