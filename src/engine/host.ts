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
import {
  MOST_UNREAD,
  type EngineInfo,
  type FromHost,
  type SentError,
  type ToHost,
} from "./protocol.js";
import { EngineError, type EngineRequest, type GenerateEvent } from "./request.js";
import type { ModelSampling } from "./model-sampling.js";
import { rootOf } from "./pages.js";
import { PromptWriter, promptOf } from "./prompt.js";
import type { PromptPool } from "./prompt-pool.js";
import { Sampler } from "./sampling.js";
import { Scheduler } from "./scheduler.js";
import { Sequence, type SequenceSink } from "./sequence.js";
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

/** What the host needs of a pool. */
export type Prompts = Pick<PromptPool, "write" | typeof Symbol.dispose>;

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

/** A request whose prompt is being written down, or whose form is being made ready, elsewhere. */
interface Preparing {
  readonly client: string;
  readonly leaving: AbortController;
}

export class EngineHost {
  private readonly scheduler: Scheduler;
  private readonly writer: PromptWriter;
  private readonly texts: TokenTexts;
  private readonly caller: Caller;
  private readonly preparing = new Map<number, Preparing>();
  private readonly active = new Map<number, Active>();
  private events: { id: number; event: GenerateEvent }[] = [];
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
        this.leave(message.id);
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
    for (const id of [...this.preparing.keys(), ...this.active.keys()])
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
      const client = request.client ?? "";
      const { waiting } = this.stats();
      if (waiting >= this.options.maxWaiting && !this.makeRoom(client))
        throw new EngineError(
          `${waiting} requests are waiting already, the most that may; try again later`,
          "busy",
        );
      const isQuick = this.parts.prompts === undefined || this.writer.isQuick(request);
      const form = this.caller.formOf(request) ?? request.constraint;
      if (!isQuick || form !== undefined) this.prepare(id, request, { client, isQuick, form });
      else this.start(id, request, this.writer.write(request, this.contextTokens));
    } catch (error) {
      this.fail(id, error);
    }
  }

  /** Has done elsewhere what takes long; meanwhile the request counts among those that wait. */
  private prepare(
    id: number,
    request: EngineRequest,
    { client, isQuick, form: wanted }: { client: string; isQuick: boolean; form?: Form },
  ): void {
    const leaving = new AbortController();
    const { signal } = leaving;
    this.preparing.set(id, { client, leaving });
    this.flush();
    const form = this.compile(wanted, request, client, signal);
    // Told with the prompt's, unless that fails first.
    form.catch(() => undefined);
    const tokens = isQuick
      ? Promise.resolve(this.writer.write(request, this.contextTokens))
      : this.writeElsewhere(request, client, signal);
    Promise.all([tokens, form])
      .then(([prompt, compiled]) => {
        if (this.preparing.delete(id)) this.start(id, request, prompt, compiled);
      })
      .catch((error: unknown) => {
        if (!signal.aborted) this.fail(id, error);
      })
      .finally(() => {
        // Its texts keep the form.
        form.then((compiled) => compiled?.[Symbol.dispose]()).catch(() => undefined);
        this.wake();
      });
  }

  private writeElsewhere(
    request: EngineRequest,
    client: string,
    signal: AbortSignal,
  ): Promise<readonly number[]> {
    const { prompts } = this.parts;
    if (!prompts) throw new EngineError("nobody writes prompts down", "failed");
    // Only what the prompt is made of goes to another process.
    return prompts.write(promptOf(request), { client, contextTokens: this.contextTokens }, signal);
  }

  private async compile(
    form: Form | undefined,
    { ignoreEnd }: EngineRequest,
    client: string,
    signal: AbortSignal,
  ): Promise<CompiledConstraint | undefined> {
    if (form === undefined) return undefined;
    if (ignoreEnd)
      throw new EngineError(
        "ignoreEnd: a text that is held to a form ends with it; leave one of the two out",
        "invalid",
      );
    const { constraints } = this.parts;
    if (!constraints) throw new EngineError("this engine holds no text to a form", "failed");
    try {
      return await constraints.compile(form, client, signal);
    } catch (error) {
      if (form.type === "calls" && error instanceof ConstraintError)
        throw new EngineError(`tools: ${error.message}`, "invalid", { cause: error });
      throw error;
    }
  }

  private leave(id: number): void {
    this.preparing.get(id)?.leaving.abort();
    this.preparing.delete(id);
  }

  /** Of a full line, whoever has most prompts being written down gives up the latest to one who has fewer. */
  private makeRoom(client: string): boolean {
    const latest = new Map<string, { count: number; id: number }>();
    for (const [id, each] of this.preparing)
      latest.set(each.client, { count: (latest.get(each.client)?.count ?? 0) + 1, id });
    const own = latest.get(client)?.count ?? 0;
    const [most] = [...latest.values()].sort((a, b) => b.count - a.count);
    if (most === undefined || most.count <= own + 1) return false;
    this.fail(
      most.id,
      new EngineError("too many of your requests are waiting; try again later", "busy"),
    );
    return true;
  }

  private start(
    id: number,
    request: EngineRequest,
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

  /** @throws EngineError when a request names tokens that there are not, or none. */
  private check(request: EngineRequest, prompt: readonly number[]): void {
    if (prompt.length === 0)
      throw new EngineError("the prompt has no tokens; give some text", "invalid");
    const unknown = prompt.find((token) => token >= this.candidates);
    if (unknown !== undefined)
      throw new EngineError(
        `prompt: token id ${unknown} is outside the vocabulary of ${this.candidates}`,
        "invalid",
      );
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
    request: EngineRequest,
    prompt: readonly number[],
    seed: number,
    contextTokens: number,
    form: CompiledConstraint | undefined,
  ): Sequence {
    const { tokenizer } = this.parts;
    const reader = this.caller.reader(request);
    const random =
      choice === 0 ? Random.for(seed, "sampling") : Random.for(seed, "sampling", choice);
    return new Sequence({
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
    this.leave(id);
    this.active.delete(id);
    // What was generated before it comes first.
    if (this.events.length > 0) this.flush();
    this.send({ type: "failed", id, error: sent(error) });
  }
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
