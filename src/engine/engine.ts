/**
 * The engine as its callers see it: a model in a thread of its own, to which any number of requests can be put at once.
 * The caller's thread only passes messages, so that it stays free while prompts are computed.
 */
import { Worker } from "node:worker_threads";
import type { z } from "zod";
import type { Bits } from "../backend/contract/scheme.js";
import type { Device } from "../backend/open.js";
import { countIn, finiteIn, LIMITS, shown } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import { startedFile } from "../common/paths.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import { EventQueue } from "./event-queue.js";
import {
  TAKEN_AT_ONCE,
  type EngineInfo,
  type EngineStats,
  type FromHost,
  type ToHost,
} from "./protocol.js";
import {
  chatRequestSchema,
  detokenizeRequestSchema,
  embedRequestSchema,
  EngineError,
  generateRequestSchema,
  parseRequest,
  tokenizeRequestSchema,
  type ChatRequest,
  type EmbedRequest,
  type EngineRequest,
  type FinishReason,
  type GenerateEvent,
  type GenerateRequest,
  type Reply,
  type TextRequest,
  type TokenizeRequest,
  type ToolCall,
  type Usage,
} from "./request.js";
import { constraintOf, readValue } from "./structured.js";
import type { CallPiece } from "./tools/reader.js";
import type { WorkerInput } from "./worker.js";

export interface EngineOptions {
  /** What computes (default: the processor's kernels); any other device runs the simulated arithmetic. */
  readonly device?: Device;
  /** Threads of the native kernels (default: one per core). */
  readonly threads?: number;
  /** Run the simulated arithmetic in float32, slower, where there are kernels too (default false). */
  readonly simulated?: boolean;
  /**
   * Run weights that are codes in the file (GGUF) in 16 bits (default false: as they are, with integer kernels and
   * activations of 8 bits).
   */
  readonly dequantize?: boolean;
  /** Bits of the KV cache beside such weights (default 8). */
  readonly kvBits?: Bits;
  /** Bytes for the KV cache; default: a quarter of the free memory, or what all sequences can use if that is less. */
  readonly kvMemory?: number;
  /** Sequences that run at the same time (default 32); the others wait. */
  readonly maxRunning?: number;
  /** Requests that may wait (default 256); further ones are refused. */
  readonly maxWaiting?: number;
  /** Tokens of a step over all sequences (default 256): larger ones favour prompts, smaller ones a steady flow. */
  readonly stepTokens?: number;
  /** Jinja source of a chat template, in place of the model's own. */
  readonly chatTemplate?: string;
  /**
   * Guesses what comes next from what came before, and asks the model about several tokens in one step (default false).
   * Texts are the same; copies and summaries come faster. Has no effect on a GPU, nor with recurrent layers.
   */
  readonly lookUp?: boolean;
  /**
   * Tools are told in plain messages where the chat template has no form for them (default true); otherwise requests with
   * tools are then refused.
   */
  readonly toolFallback?: boolean;
  /**
   * Seconds that writing down one prompt may take (default 10): rendering its chat template and cutting it into tokens,
   * which happens in processes beside the engine. Prompts that take longer are refused.
   */
  readonly promptSeconds?: number;
  /** Where remarks and warnings go. */
  readonly progress?: ProgressSink;
}

/** Events of a generation; with `schema`, its texts are JSON that the schema reads. */
export interface Generation<T = unknown> extends AsyncGenerator<GenerateEvent, void> {
  readonly schema?: z.core.$ZodType<T>;
}

/** One finished choice. */
export interface Choice<T = unknown> {
  readonly text: string;
  readonly tokens: readonly Extract<GenerateEvent, { type: "token" }>[];
  readonly finishReason: FinishReason;
  readonly stopString?: string;
  /** With tools: what was called, as a message of the assistant has it. The last one may have been cut off. */
  readonly toolCalls?: readonly ToolCall[];
  /** With a schema: what the text says, unless it was cut off before its end (by its length or a stop string). */
  readonly value?: T;
}

export interface Completion<T = unknown> {
  readonly choices: readonly Choice<T>[];
  readonly usage: Usage;
  /** Seed that was used: the request's, or the one drawn for it. */
  readonly seed: number;
}

/** What the engine needs of the thread (or port) that computes. */
export interface HostConnection {
  postMessage(message: ToHost): void;
  on(event: "message", listener: (message: FromHost) => void): void;
  /** Called once when nothing will come any more. */
  onDown(listener: (reason: Error | undefined) => void): void;
  /** Keeps the process alive, or lets it end. */
  hold(busy: boolean): void;
  /** Ends the thread if it has not ended by itself. */
  terminate(): Promise<void>;
}

/** Milliseconds that a closing thread has before it is ended: the longest step, with much to spare. */
const CLOSE_PATIENCE = 30_000;
/** The largest `maxRunning`: each sequence has a row in every step. */
const MOST_SEQUENCES = 65536;
/** The largest `promptSeconds`. */
export const MOST_PROMPT_SECONDS = 3600;

type EngineEvent = GenerateEvent | Reply;

/** Events with which a request is over. */
const LAST: ReadonlySet<EngineEvent["type"]> = new Set(["end", "embedding", "tokens", "text"]);

/** A text as a vector. */
export interface Embedding {
  /** Of length 1, as wide as the model's embedding. */
  readonly vector: Float32Array;
  readonly promptTokens: number;
}

export class Engine implements AsyncDisposable {
  private readonly requests = new Map<number, EventQueue<EngineEvent>>();
  private nextId = 1;
  private current: EngineStats;
  private down: EngineError | undefined;
  private closing: Promise<void> | undefined;
  private readonly ended: Promise<void>;
  /** Settles with the error when the engine's thread ends without having been closed; otherwise never. */
  readonly failure: Promise<EngineError>;

  private constructor(
    private readonly host: HostConnection,
    readonly info: EngineInfo,
    stats: EngineStats,
    ended: Promise<Error | undefined>,
  ) {
    this.current = stats;
    host.on("message", (message) => this.receive(message));
    this.ended = ended.then((reason) => {
      const text = reason === undefined ? "" : `: ${reason.message}`;
      this.down = new EngineError(
        this.closing ? "the engine is closed" : `the engine has stopped unexpectedly${text}`,
        this.closing ? "closed" : "failed",
        { cause: reason },
      );
      for (const queue of this.requests.values()) queue.fail(this.down);
    });
    this.failure = new Promise((resolve) => {
      void this.ended.then(() => {
        if (!this.closing && this.down) resolve(this.down);
      });
    });
  }

  /**
   * Loads a checkpoint or artifact from a local path (`resolveModel` turns names into paths) in a thread of its own.
   * @throws PlanishError when the path holds no model, or it does not fit.
   */
  static async load(path: string, options: EngineOptions = {}): Promise<Engine> {
    const { progress, ...rest } = options;
    const input: WorkerInput = {
      maxRunning: 32,
      maxWaiting: 256,
      stepTokens: 256,
      promptSeconds: 10,
      toolFallback: true,
      ...withoutUndefined(rest),
      path,
    };
    checkOptions(input);
    const file = startedFile("engineThread", "./worker", import.meta.url);
    const worker = new Worker(file, { workerData: input, name: "planish-engine" });
    return Engine.connect(connectionOf(worker), progress);
  }

  /** An engine over a host that is loading or has loaded. */
  static async connect(
    host: HostConnection,
    progress: ProgressSink = silentProgress,
  ): Promise<Engine> {
    const ended = new Promise<Error | undefined>((resolve) => host.onDown(resolve));
    const ready = new Promise<Extract<FromHost, { type: "ready" }>>((resolve, reject) => {
      let refusal: PlanishError | undefined;
      host.on("message", (message) => {
        if (message.type === "ready") resolve(message);
        if (message.type === "note") progress.note(message.text);
        if (message.type === "warn") progress.warn(message.text);
        if (message.type === "warning") process.emitWarning(message.message, message.name);
        // Told when the thread has ended: the caller may end the process at once.
        if (message.type === "unloadable")
          refusal = new PlanishError(message.message, { exitCode: message.exitCode });
      });
      void ended.then((reason) => {
        const text = reason ? `: ${reason.message}` : "";
        reject(
          refusal ??
            new PlanishError(`the engine's thread ended while loading${text}`, { cause: reason }),
        );
      });
    });
    const { info, stats } = await ready;
    host.hold(false);
    return new Engine(host, info, stats, ended);
  }

  /** Counters and state as of the last step. */
  get stats(): EngineStats {
    return this.current;
  }

  /** Whether requests are taken: not before loading, after closing, or after a crash. */
  get isOpen(): boolean {
    return this.down === undefined && this.closing === undefined;
  }

  /**
   * Continues a prompt. The first event comes when the request is accepted, then tokens as they are made; a reader that
   * stops taking them holds its own request up and no other.
   * @throws EngineError when the request is refused or fails; the signal's reason when it is aborted.
   */
  generate<T = unknown>(request: GenerateRequest<T>): Generation<T> {
    const { signal, schema, ...rest } = request;
    return this.start(schema, signal, () => ({
      kind: "generate",
      ...parseRequest(generateRequestSchema, withForm(rest, schema)),
    }));
  }

  /** Answers the last of some messages, written down by the model's chat template; otherwise like `generate`. */
  chat<T = unknown>(request: ChatRequest<T>): Generation<T> {
    const { signal, schema, ...rest } = request;
    return this.start(schema, signal, () => ({
      kind: "chat",
      ...parseRequest(chatRequestSchema, withForm(rest, schema)),
    }));
  }

  /**
   * A text (or token ids) as a vector of length 1: what the head reads, that is the last norm's output, as the mean over
   * all tokens or of the last one. Models that were not trained for it say little by that.
   * @throws EngineError when the request is refused or fails; the signal's reason when it is aborted.
   */
  async embed({ signal, ...request }: EmbedRequest): Promise<Embedding> {
    const parsed = parseRequest(embedRequestSchema, request);
    const reply = await this.ask({ kind: "embed", ...parsed }, "embedding", signal);
    return { vector: reply.vector, promptTokens: reply.promptTokens };
  }

  /**
   * The token ids that a prompt, or messages as the chat template writes them, are turned into.
   * @throws EngineError as `embed`
   */
  async tokenize({ signal, ...request }: TokenizeRequest): Promise<readonly number[]> {
    const parsed = parseRequest(tokenizeRequestSchema, request);
    return (await this.ask({ kind: "tokenize", ...parsed }, "tokens", signal)).tokens;
  }

  /** The text of token ids, special ones written out. @throws EngineError for ids outside the vocabulary. */
  async detokenize(tokens: readonly number[]): Promise<string> {
    const parsed = parseRequest(detokenizeRequestSchema, { tokens });
    return (await this.ask({ kind: "detokenize", ...parsed }, "text")).text;
  }

  private async ask<Type extends Reply["type"]>(
    request: EngineRequest,
    type: Type,
    signal?: AbortSignal,
  ): Promise<Extract<Reply, { type: Type }>> {
    for await (const event of this.run(request, signal))
      if (event.type === type) return event as Extract<Reply, { type: Type }>;
    throw new EngineError(`the engine answered without ${type}`, "failed");
  }

  /** What is wrong with a request is thrown where its first event is asked for. */
  private start<T>(
    schema: z.core.$ZodType<T> | undefined,
    signal: AbortSignal | undefined,
    parse: () => TextRequest,
  ): Generation<T> {
    // Requests for texts are answered by these events only.
    const run = (request: TextRequest) =>
      this.run(request, signal) as AsyncGenerator<GenerateEvent, void>;
    const events = (async function* () {
      yield* run(parse());
    })();
    return Object.assign(events, { schema });
  }

  /** Lets what runs fail with `closed`, and ends the thread. Calling it twice is harmless. */
  close(): Promise<void> {
    this.closing ??= this.shutDown();
    return this.closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  private async shutDown(): Promise<void> {
    this.host.hold(true);
    if (this.down === undefined) this.host.postMessage({ type: "close" });
    const timer = setTimeout(() => void this.host.terminate(), CLOSE_PATIENCE);
    await this.ended;
    clearTimeout(timer);
  }

  private async *run(
    request: EngineRequest,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<EngineEvent, void> {
    signal?.throwIfAborted();
    if (this.down) throw this.down;
    if (this.closing) throw new EngineError("the engine is closing", "closed");
    const queue = new EventQueue<EngineEvent>();
    const id = this.nextId++;
    const onAbort = (): void => {
      // A reader that never comes back must not keep the request known.
      this.requests.delete(id);
      this.host.postMessage({ type: "cancel", id });
      queue.fail(asError(signal?.reason));
    };
    let ended = true;
    try {
      this.submit(id, request);
      ended = false;
      signal?.addEventListener("abort", onAbort, { once: true });
      this.requests.set(id, queue);
      this.host.hold(true);
      for (let taken = 1; !ended; taken++) {
        const event = await queue.next();
        signal?.throwIfAborted();
        ended = LAST.has(event.type);
        if (taken % TAKEN_AT_ONCE === 0)
          this.host.postMessage({ type: "taken", id, count: TAKEN_AT_ONCE });
        yield event;
      }
    } finally {
      signal?.removeEventListener("abort", onAbort);
      this.requests.delete(id);
      if (!ended) this.host.postMessage({ type: "cancel", id });
      if (this.requests.size === 0 && !this.closing) this.host.hold(false);
    }
  }

  /** @throws EngineError (`invalid`) when the request holds what cannot go to another thread: functions, say. */
  private submit(id: number, request: EngineRequest): void {
    try {
      this.host.postMessage({ type: "submit", id, request });
    } catch (cause) {
      const reason = (cause as Error).message.replace(/\s+/g, " ").slice(0, 200);
      throw new EngineError(
        `request: it cannot be sent to the engine's thread (${reason}); give plain data`,
        "invalid",
        { cause },
      );
    }
  }

  private receive(message: FromHost): void {
    if (message.type === "progress") {
      this.current = message.stats;
      for (const { id, event } of message.events) this.requests.get(id)?.push(event);
    } else if (message.type === "failed") {
      const { message: text, code } = message.error;
      this.requests.get(message.id)?.fail(new EngineError(text, code));
    }
  }
}

/**
 * All of a generation's events as one result, with typed values where it has a schema.
 * @throws EngineError as the generation, and when a schema refuses a text that has its form.
 */
export async function collect<T = unknown>(
  events: AsyncIterable<GenerateEvent> & { readonly schema?: z.core.$ZodType<T> },
): Promise<Completion<T>> {
  const { schema } = events;
  const tokens: Choice["tokens"][number][][] = [];
  const finishes: Extract<GenerateEvent, { type: "finish" }>[] = [];
  let seed = 0;
  for await (const event of events) {
    if (event.type === "accepted") seed = event.seed;
    else if (event.type === "token") (tokens[event.choice] ??= []).push(event);
    else if (event.type === "finish") finishes.push(event);
    else {
      const choices = finishes
        .sort((a, b) => a.choice - b.choice)
        .map(({ choice, reason, stopString }) => {
          const own = tokens[choice] ?? [];
          const text = own.map((token) => token.text).join("");
          const toolCalls = joinCalls(own.flatMap(({ calls = [] }) => calls));
          const isWhole = reason === "stop" && stopString === undefined;
          const hasValue = isWhole && toolCalls === undefined;
          const value = schema && hasValue ? readValue(schema, text) : undefined;
          return { text, tokens: own, finishReason: reason, stopString, toolCalls, value };
        });
      return { choices, usage: event.usage, seed };
    }
  }
  throw new EngineError("the generation ended before its last event", "failed");
}

/** Calls from their pieces; undefined where there are none. */
function joinCalls(pieces: readonly CallPiece[]): ToolCall[] | undefined {
  const calls: ToolCall[] = [];
  for (const { index, id, name, arguments: json } of pieces) {
    const call = calls[index];
    if (call === undefined)
      calls[index] = {
        id: id ?? "",
        type: "function",
        function: { name: name ?? "", arguments: json },
      };
    else call.function.arguments = `${call.function.arguments as string}${json}`;
  }
  return calls.length > 0 ? calls : undefined;
}

function connectionOf(worker: Worker): HostConnection {
  return {
    postMessage: (message) => worker.postMessage(message),
    on: (event, listener) => void worker.on(event, listener),
    onDown: (listener) => {
      worker.on("error", (error) => listener(asError(error)));
      worker.on("exit", () => listener(undefined));
    },
    hold: (busy) => (busy ? worker.ref() : worker.unref()),
    terminate: async () => {
      await worker.terminate();
    },
  };
}

/** @throws EngineError when both a schema and another form are given. */
function withForm(
  request: { readonly constraint?: unknown },
  schema: z.core.$ZodType | undefined,
): unknown {
  if (schema === undefined) return request;
  if (request.constraint !== undefined)
    throw new EngineError("constraint: the schema is one already; leave one out", "invalid");
  return { ...request, constraint: constraintOf(schema) };
}

/** @throws PlanishError naming the option that cannot be meant. */
function checkOptions(options: WorkerInput): void {
  countIn(options.maxRunning, "maxRunning", MOST_SEQUENCES, 1);
  countIn(options.maxWaiting, "maxWaiting", LIMITS.samples);
  countIn(options.stepTokens, "stepTokens", LIMITS.tokens, 1);
  finiteIn(options.promptSeconds, "promptSeconds", { above: 0, max: MOST_PROMPT_SECONDS });
  const { threads, kvMemory, chatTemplate } = options;
  if (threads !== undefined) countIn(threads, "threads", LIMITS.threads, 1);
  if (kvMemory !== undefined) finiteIn(kvMemory, "kvMemory", { min: 1, max: LIMITS.bytes });
  if (chatTemplate !== undefined && typeof chatTemplate !== "string")
    throw new PlanishError(
      `chatTemplate must be the source of a Jinja template, found ${shown(chatTemplate)}`,
    );
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new PlanishError(String(reason));
}

function withoutUndefined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, v]) => v !== undefined)) as T;
}
