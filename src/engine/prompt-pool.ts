/**
 * Prompts written down outside the engine's thread, so that nobody's chat or long text keeps others from their tokens:
 * in processes that are started when they are needed, each with a limit on its memory, and on the time of each prompt.
 * No client gets more than half of the processes.
 */
import { fork, type ChildProcess } from "node:child_process";
import { setPriority } from "node:os";
import { fileURLToPath } from "node:url";
import { formatBytes } from "../common/format.js";
import { startedFile } from "../common/paths.js";
import type { Prompt } from "./prompt.js";
import { OVER_TIME, type FromPromptProcess, type ToPromptProcess } from "./protocol.js";
import { EngineError } from "./request.js";

export interface PromptPoolOptions {
  /** Where the model is, for its tokenizer. */
  readonly path: string;
  /** Jinja source that takes the place of the model's own. */
  readonly chatTemplate?: string;
  /** Time that one prompt may take. */
  readonly seconds: number;
  /** Starts a process (default: this program's own). */
  readonly launch?: () => ChildProcess;
}

/** Processes at most. */
const PROCESSES = 4;
const MOST_OF_ONE_CLIENT = PROCESSES / 2;
/** A tokenizer of a quarter of a million tokens takes a third of it. */
const HEAP_BYTES = 1024 ** 3;
/** Milliseconds for a process to start and load the tokenizer: far more than a busy machine needs. */
const START_PATIENCE = 60_000;
/** Milliseconds after which a process that did not end itself is ended. */
const GRACE = 2000;
/** They give way to the threads that compute tokens, yet are not starved by them. */
const NICENESS = 5;
/** How V8 ends a process that asks for more memory than it may have. */
const OUT_OF_MEMORY_SIGNALS: readonly (string | null)[] = ["SIGABRT", "SIGTRAP", "SIGILL"];
const OUT_OF_MEMORY_CODE = 134;

export interface PromptClient {
  /** Whose prompt it is; prompts without a name are one client's. */
  readonly client?: string;
  readonly contextTokens: number;
}

interface Job extends PromptClient {
  readonly prompt: Prompt;
  readonly client: string;
  readonly resolve: (tokens: readonly number[]) => void;
  readonly reject: (error: Error) => void;
}

/** What is known of a client while it has prompts here. */
interface Client {
  jobs: number;
  running: number;
  /** When it was last given a process, in turns. */
  served: number;
}

export class PromptPool implements Disposable {
  private readonly waiting: Job[] = [];
  private readonly processes = new Set<PromptProcess>();
  private readonly clients = new Map<string, Client>();
  private turn = 0;

  constructor(private readonly options: PromptPoolOptions) {}

  /**
   * Token ids of a prompt. After the signal nothing waits for them; a process that is at it already goes on, within its
   * time.
   * @throws EngineError when the prompt is refused, or takes more than its time or memory (both `invalid`); the signal's
   * reason.
   */
  write(
    prompt: Prompt,
    { client = "", contextTokens }: PromptClient,
    signal: AbortSignal,
  ): Promise<readonly number[]> {
    return new Promise<readonly number[]>((resolve, reject) => {
      const onAbort = (): void => this.drop(job, signal.reason as Error);
      const settled = (): void => signal.removeEventListener("abort", onAbort);
      const job: Job = {
        prompt,
        client,
        contextTokens,
        resolve: (tokens) => {
          settled();
          resolve(tokens);
        },
        reject: (error) => {
          settled();
          reject(error);
        },
      };
      signal.addEventListener("abort", onAbort, { once: true });
      const known = this.clients.get(client) ?? { jobs: 0, running: 0, served: 0 };
      known.jobs += 1;
      this.clients.set(client, known);
      this.waiting.push(job);
      this.dispatch();
    });
  }

  /** Ends every process. Prompts that have not been written never will be. */
  [Symbol.dispose](): void {
    this.waiting.length = 0;
    for (const each of this.processes) each.end();
  }

  private drop(job: Job, reason: Error): void {
    const at = this.waiting.indexOf(job);
    if (at >= 0) {
      this.waiting.splice(at, 1);
      this.forget(job.client);
    }
    job.reject(reason);
  }

  private forget(name: string): void {
    const client = this.of(name);
    client.jobs -= 1;
    if (client.jobs === 0) this.clients.delete(name);
  }

  private of(name: string): Client {
    const client = this.clients.get(name);
    if (!client) throw new Error(`no prompt of client ${name} is known`);
    return client;
  }

  private dispatch(): void {
    for (let job = this.next(); job !== undefined; job = this.next()) {
      const process = this.freeProcess();
      if (!process) return;
      this.waiting.splice(this.waiting.indexOf(job), 1);
      void this.work(process, job);
    }
  }

  /** Of the client that has the fewest processes; of several such, the one that has waited longest for its turn. */
  private next(): Job | undefined {
    let best: { job: Job; client: Client } | undefined;
    for (const job of this.waiting) {
      const client = this.of(job.client);
      if (client.running >= MOST_OF_ONE_CLIENT) continue;
      const isBefore =
        !best ||
        client.running < best.client.running ||
        (client.running === best.client.running && client.served < best.client.served);
      if (isBefore) best = { job, client };
    }
    return best?.job;
  }

  private freeProcess(): PromptProcess | undefined {
    for (const each of this.processes) if (!each.isBusy) return each;
    if (this.processes.size >= PROCESSES) return undefined;
    const process = new PromptProcess(this.options);
    this.processes.add(process);
    return process;
  }

  private async work(process: PromptProcess, job: Job): Promise<void> {
    const client = this.of(job.client);
    client.running += 1;
    client.served = ++this.turn;
    try {
      job.resolve(await process.write(job.prompt, job.contextTokens));
    } catch (error) {
      job.reject(error as Error);
    }
    if (process.hasEnded) this.processes.delete(process);
    client.running -= 1;
    this.forget(job.client);
    this.dispatch();
  }
}

/** One process, with one prompt at a time. */
class PromptProcess {
  private readonly child: ChildProcess;
  private readonly ready: Promise<void>;
  /** Takes the answer to what was sent last, or what it failed with. */
  private settle: (answer: FromPromptProcess | EngineError) => void = () => undefined;
  private ended = false;
  private overTime = false;
  isBusy = false;

  constructor(private readonly options: PromptPoolOptions) {
    this.child = (options.launch ?? launch)();
    // Whoever uses the engine must be able to end without a word to its processes; they end when they are left.
    this.child.unref();
    this.child.channel?.unref();
    this.child.on("message", (message: FromPromptProcess) => this.settle(message));
    this.child.on("error", (error) => this.down(failed(`cannot be used (${error.message})`)));
    this.child.on("exit", (code, signal) => this.down(this.reason(code, signal)));
    try {
      if (this.child.pid !== undefined) setPriority(this.child.pid, NICENESS);
    } catch {
      // It has ended already, or the system does not allow it; neither keeps prompts from being written.
    }
    this.ready = this.load();
    // Told to whoever asks for a prompt.
    this.ready.catch(() => undefined);
  }

  get hasEnded(): boolean {
    return this.ended;
  }

  async write(prompt: Prompt, contextTokens: number): Promise<readonly number[]> {
    this.isBusy = true;
    try {
      await this.ready;
      const milliseconds = Math.ceil(this.options.seconds * 1000);
      const answer = await this.ask(
        { type: "write", prompt, contextTokens, milliseconds },
        milliseconds + GRACE,
      );
      if (answer.type === "refused") throw new EngineError(answer.error.message, answer.error.code);
      if (answer.type !== "written") throw failed(`answered "${answer.type}" to a prompt`);
      return Array.from(answer.tokens);
    } finally {
      this.isBusy = false;
    }
  }

  end(): void {
    this.child.kill("SIGKILL");
  }

  private async load(): Promise<void> {
    const { path, chatTemplate } = this.options;
    const answer = await this.ask({ type: "load", path, chatTemplate }, START_PATIENCE);
    if (answer.type === "ready") return;
    this.ended = true;
    this.end();
    throw answer.type === "unloadable"
      ? new EngineError(`the model's tokenizer cannot be loaded again: ${answer.message}`, "failed")
      : failed(`answered "${answer.type}" to its start`);
  }

  private async ask(message: ToPromptProcess, patience: number): Promise<FromPromptProcess> {
    if (this.ended) throw failed("has ended");
    const timer = setTimeout(() => {
      this.overTime = true;
      this.end();
    }, patience);
    try {
      const answer = await new Promise<FromPromptProcess | EngineError>((resolve) => {
        this.settle = resolve;
        this.child.send(message, (error) => {
          if (error) this.down(failed(`cannot be reached (${error.message})`));
        });
      });
      if (answer instanceof EngineError) throw answer;
      return answer;
    } finally {
      clearTimeout(timer);
    }
  }

  private down(reason: EngineError): void {
    this.ended = true;
    this.settle(reason);
  }

  private reason(code: number | null, signal: NodeJS.Signals | null): EngineError {
    const remedy = "give fewer or shorter messages";
    if (this.overTime || code === OVER_TIME)
      return new EngineError(
        `writing the prompt down (chat template, tokenizer) took more than ${this.options.seconds} s; ${remedy}`,
        "invalid",
      );
    if (OUT_OF_MEMORY_SIGNALS.includes(signal) || code === OUT_OF_MEMORY_CODE)
      return new EngineError(
        `writing the prompt down (chat template, tokenizer) took more than ${formatBytes(HEAP_BYTES)} of memory; ${remedy}`,
        "invalid",
      );
    return failed(signal === null ? `ended with code ${code}` : `was ended by ${signal}`);
  }
}

function failed(what: string): EngineError {
  return new EngineError(`the process that writes prompts down ${what}; try again`, "failed");
}

function launch(): ChildProcess {
  const file = startedFile("promptProcess", "./prompt-process", import.meta.url);
  // From TypeScript's sources only a loader among this process's own flags can start it; others, such as -e or --test,
  // must not reach it.
  const inherited = file.pathname.endsWith(".ts") ? process.execArgv : [];
  return fork(fileURLToPath(file), {
    execArgv: [...inherited, `--max-old-space-size=${HEAP_BYTES / 1024 ** 2}`],
    serialization: "advanced",
    // What V8 writes when it runs out of memory is for nobody.
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
}
