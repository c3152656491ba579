/**
 * The computing half of the engine: takes requests from a message port, makes tokens of them, runs the scheduler, and
 * sends what comes of it. Lives in a thread of its own (worker.ts), or beside its caller in tests.
 */
import { randomInt } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { MessagePort } from "node:worker_threads";
import type { Tokenizer } from "../checkpoint/tokenizer.js";
import { formatBytes } from "../common/format.js";
import { Random } from "../common/random.js";
import type { Executor } from "../backend/contract/inference.js";
import {
  ConstraintError,
  type CompiledConstraint,
  type ConstraintCompiler,
  type Form,
} from "./constraint/contract.js";
import { EmbeddingSequence, type Pooling } from "./embedding.js";
import { Preparing, type Prompts, type Work, type WorkSink } from "./preparing.js";
import {
  MOST_UNREAD,
  type EngineInfo,
  type FromHost,
  type SentError,
  type ToHost,
} from "./protocol.js";
import {
  EngineError,
  type EngineRequest,
  type GenerateEvent,
  type Reply,
  type TextRequest,
} from "./request.js";
import type { ModelSampling } from "./model-sampling.js";
import { LookUp } from "./look-up.js";
import { rootOf } from "./pages.js";
import { PromptWriter, promptOf, type Prompt } from "./prompt.js";
import { Sampler } from "./sampling.js";
import { Scheduler } from "./scheduler.js";
import { TextSequence, type SequenceSink } from "./sequence.js";
import { TextOutput } from "./text-output.js";
import { TokenTexts, unspelledTokens } from "./token-texts.js";
import { Caller, type AnswerReader } from "./tools/caller.js";
import type { Spoken } from "./tools/reader.js";

export interface HostOptions {
  /** Pages of the KV cache. */
  readonly pages: number;
  readonly maxRunning: number;
  readonly maxWaiting: number;
  readonly stepTokens: number;
  /** Jinja source that takes the place of the model's own. */
  readonly chatTemplate?: string;
  /** Guesses what comes next from what came before; the texts are the same (default false). */
  readonly lookUp?: boolean;
  /** Tools are told in plain messages where the chat template has no form for them (default: such requests are refused). */
  readonly toolFallback?: boolean;
}

export interface HostParts {
  readonly executor: Executor;
  readonly tokenizer: Tokenizer;
  readonly arithmetic: EngineInfo["arithmetic"];
  readonly scheme?: string;
  readonly sampling?: ModelSampling;
  /** Writes down the prompts that are not quick (default: all are written in this thread). */
  readonly prompts?: Prompts;
  /** Makes ready what texts are held to (default: no request may ask for that). */
  readonly constraints?: ConstraintCompiler;
}

type HostPort = Pick<MessagePort, "postMessage" | "on" | "close">;

/** A request on its way. */
interface Active {
  unread: number;
  paused: boolean;
  /** Choices that have not finished. */
  open: number;
  generatedTokens: number;
  cachedTokens: number;
}

export class EngineHost {
  private readonly scheduler: Scheduler;
  private readonly writer: PromptWriter;
  private readonly texts: TokenTexts;
  private readonly caller: Caller;
  private readonly preparing: Preparing;
  private readonly active = new Map<number, Active>();
  private events: { id: number; event: GenerateEvent | Reply }[] = [];
  private readonly totals = { promptTokens: 0, cachedTokens: 0, generatedTokens: 0 };
  /** A vocabulary may be padded beyond the tokenizer's ids, which nothing could spell. */
  private readonly candidates: number;
  /** Ids without a spelling. */
  private readonly unspelled: readonly number[];
  /** Something has come since the last step began. */
  private stirred = false;
  private goOn: () => void = () => undefined;
  private closed = false;
  /** Settles when the host has closed. */
  readonly done: Promise<void>;

  /** @throws PlanishError when the pages do not fit in memory, or the chat template is none. */
  constructor(
    private readonly port: HostPort,
    private readonly parts: HostParts,
    private readonly options: HostOptions,
  ) {
    const { executor, tokenizer } = parts;
    this.scheduler = new Scheduler(executor, { ...options, onReady: () => this.wake() });
    this.writer = new PromptWriter(tokenizer, options.chatTemplate);
    this.texts = new TokenTexts(tokenizer);
    this.caller = new Caller(this.writer.toolForm, options.toolFallback === true, (spelling) => {
      const token = tokenizer.tokenToId(spelling);
      return token !== undefined && this.texts.hiddenSpelling(token) !== "" ? token : undefined;
    });
    const { contextTokens } = this;
    this.preparing = new Preparing({ ...parts, writer: this.writer, contextTokens });
    this.candidates = Math.min(executor.shape.vocabSize, tokenizer.vocabSize);
    this.unspelled = unspelledTokens(tokenizer, this.candidates);
    port.on("message", (message: ToHost) => this.receive(message));
    this.send({ type: "ready", info: this.info(), stats: this.stats() });
    this.done = this.loop();
  }

  private info(): EngineInfo {
    const { executor, arithmetic, scheme, sampling = {} } = this.parts;
    const { pages, maxRunning, maxWaiting } = this.options;
    return {
      description: executor.description,
      arithmetic,
      scheme,
      contextTokens: this.contextTokens,
      modelPositions: executor.shape.maxPositions,
      vocabSize: this.candidates,
      pageTokens: executor.pageTokens,
      pages,
      cacheBytes: pages * executor.bytesPerPage + maxRunning * (executor.bytesPerState ?? 0),
      weightBytes: executor.weightBytes,
      maxRunning,
      maxWaiting,
      hasChatTemplate: this.writer.hasTemplate,
      toolForm: this.caller.form?.name,
      embeds: executor.givesHidden === true,
      fillsIn: this.writer.fillsIn,
      sampling,
    };
  }

  private get contextTokens(): number {
    return Math.min(this.parts.executor.shape.maxPositions, this.cacheTokens);
  }

  private get cacheTokens(): number {
    return this.options.pages * this.parts.executor.pageTokens;
  }

  private stats() {
    const { waiting, ...stats } = this.scheduler.stats;
    return { ...stats, waiting: waiting + this.preparing.size, ...this.totals };
  }

  private send(message: FromHost): void {
    this.port.postMessage(message);
  }

  private receive(message: ToHost): void {
    switch (message.type) {
      case "submit":
        this.accept(message.id, message.request);
        break;
      case "cancel":
        this.scheduler.cancel(message.id);
        this.preparing.leave(message.id);
        this.active.delete(message.id);
        this.flush();
        break;
      case "taken":
        this.taken(message.id, message.count);
        break;
      case "close":
        this.closed = true;
        break;
    }
    this.wake();
  }

  private wake(): void {
    this.stirred = true;
    this.goOn();
  }

  private async loop(): Promise<void> {
    while (!this.closed) {
      this.stirred = false;
      const worked = await this.scheduler.step();
      if (worked) {
        this.flush();
        // Requests, cancellations and reports of readers come in between steps.
        await nextTurn();
      } else if (!this.stirred) {
        await new Promise<void>((resolve) => (this.goOn = resolve));
      }
    }
    for (const id of [...this.preparing.ids, ...this.active.keys()])
      this.fail(id, new EngineError("the engine is closing", "closed"));
    this.parts.prompts?.[Symbol.dispose]();
    this.parts.constraints?.[Symbol.dispose]();
    this.parts.executor[Symbol.dispose]();
    this.port.close();
  }

  /** Sends what has come up. */
  private flush(): void {
    const { events } = this;
    this.events = [];
    this.send({ type: "progress", events, stats: this.stats() });
  }

  private emit(id: number, event: GenerateEvent): void {
    const request = this.active.get(id);
    if (!request) return;
    this.events.push({ id, event });
    request.unread += 1;
    this.rest(id, request);
  }

  private taken(id: number, count: number): void {
    const request = this.active.get(id);
    if (!request) return;
    request.unread -= count;
    this.rest(id, request);
  }

  /** A request that is too far ahead of its reader rests until it has caught up halfway. */
  private rest(id: number, request: Active): void {
    const limit = request.paused ? MOST_UNREAD / 2 : MOST_UNREAD;
    const paused = request.unread > limit;
    if (paused === request.paused) return;
    request.paused = paused;
    this.scheduler.pause(id, paused);
  }

  private accept(id: number, request: EngineRequest): void {
    try {
      if (this.closed) throw new EngineError("the engine is closing", "closed");
      if (request.kind === "detokenize") {
        this.reply(id, { type: "text", text: this.spell(request.tokens) });
        return;
      }
      const { client = "" } = request;
      this.takePlace(client);
      const isText = request.kind === "generate" || request.kind === "chat";
      const work: Work = {
        prompt: promptOfAny(request),
        form: isText ? this.formOf(request) : undefined,
        client,
      };
      const done: WorkSink["done"] = (prompt, form) => {
        if (request.kind === "tokenize") this.reply(id, { type: "tokens", tokens: prompt });
        else if (request.kind === "embed") this.embed(id, request.pooling ?? "mean", prompt);
        else this.start(id, request, prompt, form);
        this.wake();
      };
      if (this.preparing.isQuick(work)) {
        done(this.preparing.write(work.prompt), undefined);
        return;
      }
      this.preparing.begin(id, work, {
        done: (prompt, form) => this.attempt(id, () => done(prompt, form)),
        failed: (error) => {
          this.fail(id, error);
          this.wake();
        },
      });
      this.flush();
    } catch (error) {
      this.fail(id, error);
    }
  }

  private attempt(id: number, work: () => void): void {
    try {
      work();
    } catch (error) {
      this.fail(id, error);
      this.wake();
    }
  }

  /** @throws EngineError when too many wait, and none of them has to give way to this client. */
  private takePlace(client: string): void {
    const { waiting } = this.stats();
    if (waiting < this.options.maxWaiting) return;
    const other = this.preparing.whoGivesWay(client);
    if (other === undefined)
      throw new EngineError(
        `${waiting} requests are waiting already, the most that may; try again later`,
        "busy",
      );
    this.fail(
      other,
      new EngineError("too many of your requests are waiting; try again later", "busy"),
    );
  }

  /** What the text is held to. @throws EngineError */
  private formOf(request: TextRequest): Form | undefined {
    const form = this.caller.formOf(request) ?? request.constraint;
    if (form !== undefined && request.ignoreEnd)
      throw new EngineError(
        "ignoreEnd: a text that is held to a form ends with it; leave one of the two out",
        "invalid",
      );
    return form;
  }

  /** Answers a request that is not for a text. */
  private reply(id: number, reply: Reply): void {
    this.events.push({ id, event: reply });
    this.active.delete(id);
    this.flush();
  }

  private spell(tokens: readonly number[]): string {
    if (tokens.length > this.contextTokens)
      throw new EngineError(
        `tokens: there are ${tokens.length}, more than the context of ${this.contextTokens}`,
        "context",
      );
    this.checkTokens(tokens, "tokens");
    return this.parts.tokenizer.decode(tokens, { skipSpecialTokens: false });
  }

  private embed(id: number, pooling: Pooling, prompt: readonly number[]): void {
    const { executor } = this.parts;
    if (!executor.givesHidden)
      throw new EngineError(
        `embeddings cannot be computed on ${executor.description}; run the model on the processor (--device cpu)`,
        "invalid",
      );
    this.checkPrompt(prompt);
    this.room(prompt.length, undefined);
    this.totals.promptTokens += prompt.length;
    this.scheduler.submit(
      new EmbeddingSequence({ request: id, prompt }, pooling, {
        done: (vector) =>
          this.reply(id, { type: "embedding", vector, promptTokens: prompt.length }),
        fail: (error) => this.fail(id, error),
      }),
    );
    this.flush();
  }

  private start(
    id: number,
    request: TextRequest,
    prompt: readonly number[],
    form?: CompiledConstraint,
  ): void {
    this.check(request, prompt);
    const contextTokens = this.room(prompt.length, request.maxTokens);
    const seed = request.seed ?? randomInt(2 ** 32);
    const n = request.n ?? 1;
    this.active.set(id, {
      unread: 0,
      paused: false,
      open: n,
      generatedTokens: 0,
      cachedTokens: 0,
    });
    this.emit(id, { type: "accepted", promptTokens: prompt.length, seed });
    this.totals.promptTokens += prompt.length;
    const sequences = Array.from({ length: n }, (_, choice) =>
      this.sequence(id, choice, request, prompt, seed, contextTokens, form),
    );
    sequences[0].siblings = sequences.slice(1);
    this.scheduler.submit(sequences[0]);
    this.flush();
  }

  private checkPrompt(prompt: readonly number[]): void {
    if (prompt.length === 0)
      throw new EngineError("the prompt has no tokens; give some text", "invalid");
    this.checkTokens(prompt, "prompt");
  }

  private checkTokens(tokens: readonly number[], what: string): void {
    const unknown = tokens.find((token) => token >= this.candidates);
    if (unknown !== undefined)
      throw new EngineError(
        `${what}: token id ${unknown} is outside the vocabulary of ${this.candidates}`,
        "invalid",
      );
  }

  /** @throws EngineError when a request names tokens that there are not, or none. */
  private check(request: TextRequest, prompt: readonly number[]): void {
    this.checkPrompt(prompt);
    for (const token of Object.keys(request.logitBias ?? {}))
      if (Number(token) >= this.candidates)
        throw new EngineError(
          `logitBias: token id ${token} is outside the vocabulary of ${this.candidates}`,
          "invalid",
        );
  }

  /** Positions that the sequence may use. @throws EngineError when the request can never fit. */
  private room(promptTokens: number, maxTokens: number | undefined): number {
    const { maxPositions } = this.parts.executor.shape;
    if (promptTokens >= maxPositions)
      throw new EngineError(
        `the prompt has ${promptTokens} tokens, and the model's context is ${maxPositions}; shorten it`,
        "context",
      );
    // The last token's position is never computed.
    const needed = Math.min(promptTokens + (maxTokens ?? 1) - 1, maxPositions);
    if (needed > this.cacheTokens)
      throw new EngineError(
        `the request needs ${needed} positions, and the KV cache of ${formatBytes(this.info().cacheBytes)} holds ${this.cacheTokens}; shorten it, or raise kvMemory (--kv-memory)`,
        "context",
      );
    return this.contextTokens;
  }

  private sequence(
    id: number,
    choice: number,
    request: TextRequest,
    prompt: readonly number[],
    seed: number,
    contextTokens: number,
    form: CompiledConstraint | undefined,
  ): TextSequence {
    const { tokenizer } = this.parts;
    const reader = this.caller.reader(request);
    const random =
      choice === 0 ? Random.for(seed, "sampling") : Random.for(seed, "sampling", choice);
    return new TextSequence({
      request: id,
      choice,
      prompt,
      sampler: new Sampler(
        { ...request, temperature: request.temperature ?? 0 },
        random,
        this.candidates,
        prompt,
      ),
      output: new TextOutput(
        tokenizer.stream(),
        request.stop ?? [],
        (token) => this.texts.hiddenSpelling(token),
        reader?.mark,
      ),
      limits: {
        maxTokens: request.maxTokens ?? Infinity,
        contextTokens,
        endTokens: request.ignoreEnd ? [] : tokenizer.eosTokenIds,
        logprobs: request.logprobs,
        candidates: this.candidates,
        // An end that the tokenizer does not know is one all the same.
        impossible: request.ignoreEnd
          ? this.unspelled
          : this.unspelled.filter((token) => !tokenizer.eosTokenIds.includes(token)),
      },
      sink: this.sink(id, reader),
      guide: form?.guide((error) => {
        this.scheduler.cancel(id);
        this.fail(id, error);
        this.wake();
      }),
      root: rootOf(request.cacheSalt),
      lookUp: this.options.lookUp ? new LookUp() : undefined,
    });
  }

  private sink(id: number, reader?: AnswerReader): SequenceSink {
    return {
      tokens: (choice, tokens) => {
        const spoken = reader?.push(tokens);
        tokens.forEach(({ token, text, extra }, i) => {
          const { logprob, top = [] } = extra;
          const logprobs =
            logprob === undefined
              ? undefined
              : {
                  ...this.texts.of(token, logprob),
                  top: top.map((other) => this.texts.of(other.token, other.logprob)),
                };
          const own = spoken ? withCalls(spoken[i]) : { text };
          this.emit(id, { type: "token", choice, token, ...own, logprobs });
        });
      },
      finish: (choice, reason, sequence) => {
        const request = this.active.get(id);
        if (!request) return;
        this.emit(id, { type: "finish", choice, reason, stopString: sequence.stopString });
        request.generatedTokens += sequence.generated;
        request.cachedTokens += choice === 0 ? (sequence.cachedTokens ?? 0) : 0;
        this.totals.generatedTokens += sequence.generated;
        if (choice === 0) this.totals.cachedTokens += sequence.cachedTokens ?? 0;
        request.open -= 1;
        if (request.open > 0) return;
        const { promptTokens } = sequence;
        const { cachedTokens, generatedTokens } = request;
        const usage = { promptTokens, cachedTokens, generatedTokens };
        this.emit(id, { type: "end", usage });
        this.active.delete(id);
      },
      fail: (error) => this.fail(id, error),
    };
  }

  private fail(id: number, error: unknown): void {
    this.preparing.leave(id);
    this.active.delete(id);
    // What was generated before it comes first.
    if (this.events.length > 0) this.flush();
    this.send({ type: "failed", id, error: sent(error) });
  }
}

function promptOfAny(request: Exclude<EngineRequest, { kind: "detokenize" }>): Prompt {
  if (request.kind === "tokenize") return request.prompt;
  if (request.kind === "embed") return { kind: "generate", prompt: request.prompt };
  return promptOf(request);
}

/** Most tokens have no part in a call. */
function withCalls({ text, calls }: Spoken): Partial<Spoken> & { text: string } {
  return calls.length > 0 ? { text, calls } : { text };
}

function sent(error: unknown): SentError {
  if (error instanceof ConstraintError)
    return { message: `constraint: ${error.message}`, code: "invalid" };
  const message = error instanceof Error ? error.message : String(error);
  return { message, code: error instanceof EngineError ? error.code : "failed" };
}
