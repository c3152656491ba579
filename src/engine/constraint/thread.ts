/** A guide thread from outside: its jobs, its guides, and whether it is stuck. */
import { extname } from "node:path";
import { Worker } from "node:worker_threads";
import type { GuideService, SharedGuide } from "./guide.js";
import {
  Activity,
  Doing,
  type FromGuideWorker,
  type GuideWorkerInput,
  type ToGuideWorker,
} from "./protocol.js";

/** Does a job; the other parts of a message are the job's own. */
export type JobMessage =
  Omit<ToGuideWorker & { type: "read" }, "job"> | Omit<ToGuideWorker & { type: "compile" }, "job">;

interface Job {
  readonly message: JobMessage;
  readonly resolve: (answer: FromGuideWorker) => void;
  readonly reject: (error: Error) => void;
}

export type LaunchGuideThread = (input: GuideWorkerInput) => Worker;

export interface ThreadOptions {
  readonly tokens: GuideWorkerInput["tokens"];
  readonly memory: number;
  /** Milliseconds that one job, and the mask of one token, may take. */
  readonly patience: { readonly job: number; readonly mask: number };
  readonly launch?: LaunchGuideThread;
  /** Called once, when the thread has been ended or has ended. */
  readonly onDown: (thread: GuideThread, down: Down) => void;
}

/** How a thread ended, and what it was at. */
export interface Down {
  readonly reason: "time" | "memory" | "error" | "retired";
  readonly detail: string;
  readonly job: number | undefined;
  readonly guide: number | undefined;
}

export class GuideThread implements GuideService {
  readonly jobs = new Map<number, Job>();
  readonly guides = new Map<number, SharedGuide>();
  private readonly worker: Worker;
  private readonly activity: Int32Array;
  private lastJob = 0;
  private turn = 0;
  private turnSince = performance.now();
  private ended = false;

  constructor(private readonly options: ThreadOptions) {
    const shared = new SharedArrayBuffer(4 * Activity.length);
    this.activity = new Int32Array(shared);
    const { tokens, memory } = options;
    this.worker = (options.launch ?? launch)({ tokens, memory, activity: shared });
    // An engine must be able to end without a word to its helpers.
    this.worker.unref();
    this.worker.on("message", (message: FromGuideWorker) => this.receive(message));
    this.worker.on("error", (error) => {
      const isMemory = error instanceof RangeError || /memory|OOM/i.test(error.message);
      this.end(isMemory ? "memory" : "error", error.message);
    });
    this.worker.on("exit", (code) => this.end("error", `it ended with code ${code}`));
  }

  get isBusy(): boolean {
    return this.jobs.size > 0 || [...this.guides.values()].some((guide) => guide.isAwaited);
  }

  do(message: JobMessage): Promise<FromGuideWorker> {
    return new Promise((resolve, reject) => this.take({ message, resolve, reject }));
  }

  /** Takes over a job of a thread that has ended. */
  take(job: Job): void {
    const id = ++this.lastJob;
    this.jobs.set(id, job);
    this.post({ ...job.message, job: id });
  }

  guide(form: number, guide: SharedGuide): void {
    this.guides.set(guide.id, guide);
    const { id, shared, tokens } = guide;
    this.post({ type: "guide", guide: id, form, state: shared, tokens });
  }

  accept(guide: number, token: number): void {
    this.post({ type: "accept", guide, token });
  }

  drop(guide: number): void {
    if (this.guides.delete(guide)) this.post({ type: "drop", guide });
  }

  forget(form: number): void {
    this.post({ type: "forget", form });
  }

  /** Ends the thread if it has been at one thing for too long. */
  watch(now: number): void {
    const turn = Atomics.load(this.activity, Activity.turn);
    const doing = Atomics.load(this.activity, Activity.doing);
    if (turn !== this.turn || doing === Doing.nothing) {
      this.turn = turn;
      this.turnSince = now;
      return;
    }
    const { patience } = this.options;
    const limit = doing === Doing.job ? patience.job : patience.mask;
    if (now - this.turnSince > limit) this.end("time", `${limit / 1000} s`);
  }

  /** Ends it, since what it holds cannot be relied on any more, or is not needed. */
  retire(): void {
    this.end("retired", "");
  }

  private post(message: ToGuideWorker): void {
    if (!this.ended) this.worker.postMessage(message);
  }

  private receive(message: FromGuideWorker): void {
    if (message.type === "mask") {
      this.guides.get(message.guide)?.tell();
      return;
    }
    const job = this.jobs.get(message.job);
    this.jobs.delete(message.job);
    job?.resolve(message);
  }

  private end(reason: Down["reason"], detail: string): void {
    if (this.ended) return;
    this.ended = true;
    void this.worker.terminate();
    const doing =
      reason === "retired" ? Doing.nothing : Atomics.load(this.activity, Activity.doing);
    const subject = Atomics.load(this.activity, Activity.subject);
    this.options.onDown(this, {
      reason,
      detail,
      job: doing === Doing.job ? subject : undefined,
      guide: doing === Doing.guide ? subject : undefined,
    });
  }
}

function launch(input: GuideWorkerInput): Worker {
  const file = new URL(`./worker${extname(import.meta.url)}`, import.meta.url);
  return new Worker(file, { workerData: input, name: "planish-guides", stderr: false });
}
