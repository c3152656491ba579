/**
 * Forms made ready and texts guided in threads beside the engine's: a form is a stranger's work, whose size it chooses.
 * Forms that are light by their grammar share one thread, where nothing takes long. Reading forms, making heavy ones
 * ready, and grammars as clients write them happen in others. A thread that is at one thing for too long is ended: what
 * it was at fails, and everything else goes on in a new one, from the tokens so far.
 */
import { createHash } from "node:crypto";
import { formatBytes } from "../../common/format.js";
import { EngineError } from "../request.js";
import {
  ConstraintError,
  type CompiledConstraint,
  type Form as TextForm,
  type ConstraintCompiler,
  type Guide,
} from "./contract.js";
import { SharedGuide } from "./guide.js";
import type { FromGuideWorker, GuideWorkerInput } from "./protocol.js";
import { GuideThread, type Down, type LaunchGuideThread } from "./thread.js";
import type { WrittenGrammar } from "./write.js";

export interface ConstraintPoolOptions {
  /** Where the model's tokenizer is, or its tokens. */
  readonly tokens: GuideWorkerInput["tokens"];
  /** Seconds that making one form ready may take (default 30). */
  readonly seconds?: number;
  /** Starts a thread (default: this program's own). */
  readonly launch?: LaunchGuideThread;
}

const HEAVY_THREADS = 3;
/** Forms that one client may have made ready at the same time. */
const MOST_OF_ONE_CLIENT = 2;
/** Forms kept ready that no text is of. */
const MOST_KEPT = 64;
const JOB_SECONDS = 30;
/** Milliseconds for one mask: thousands of times what they take. */
const MASK_PATIENCE = 5000;
const MEMORY = 768 * 1024 ** 2;
const WATCH_EVERY = 100;
/** Grammars up to this size and weight are made ready in tens of milliseconds. */
const LIGHT = { characters: 20_000, weight: 12 } as const;

interface Form {
  readonly key: string;
  readonly id: number;
  /** Texts and requests that are of it. */
  holders: number;
  /** Where it is, once it is ready. */
  place: { thread: GuideThread; grammar: WrittenGrammar; tokens: number } | undefined;
  readonly ready: Promise<void>;
}

export class ConstraintPool implements ConstraintCompiler {
  private readonly forms = new Map<string, Form>();
  private readonly byId = new Map<number, Form>();
  private readonly guideForms = new Map<number, Form>();
  private light: GuideThread | undefined;
  private readonly heavy = new Set<GuideThread>();
  private readonly clients = new Map<string, number>();
  private lastForm = 0;
  private lastGuide = 0;
  private timer: NodeJS.Timeout | undefined;
  private closed = false;

  constructor(private readonly options: ConstraintPoolOptions) {}

  async compile(
    constraint: TextForm,
    client: string,
    signal: AbortSignal,
  ): Promise<CompiledConstraint> {
    const key = createHash("sha256").update(JSON.stringify(constraint)).digest("hex");
    const form = this.forms.get(key) ?? this.begin(key, constraint, client);
    // Used last, forgotten last.
    this.forms.delete(key);
    this.forms.set(key, form);
    form.holders += 1;
    try {
      await unlessAborted(form.ready, signal);
    } catch (error) {
      this.release(form);
      throw error;
    }
    let disposed = false;
    return {
      guide: (onFail) => this.guide(form, onFail),
      [Symbol.dispose]: () => {
        if (!disposed) this.release(form);
        disposed = true;
      },
    };
  }

  [Symbol.dispose](): void {
    this.closed = true;
    clearInterval(this.timer);
    for (const thread of [...this.heavy, ...(this.light ? [this.light] : [])]) thread.retire();
  }

  private begin(key: string, constraint: TextForm, client: string): Form {
    const underWay = this.clients.get(client) ?? 0;
    if (underWay >= MOST_OF_ONE_CLIENT)
      throw new EngineError(
        `${underWay} of your schemas or grammars are being made ready already; try again later`,
        "busy",
      );
    this.clients.set(client, underWay + 1);
    const id = ++this.lastForm;
    const ready = this.make(id, constraint).finally(() => {
      const left = (this.clients.get(client) ?? 1) - 1;
      if (left > 0) this.clients.set(client, left);
      else this.clients.delete(client);
    });
    const form: Form = { key, id, holders: 0, place: undefined, ready };
    this.byId.set(id, form);
    ready.catch(() => this.forget(form));
    return form;
  }

  private async make(id: number, constraint: TextForm): Promise<void> {
    const read = await this.heavyThread().do({ type: "read", constraint });
    if (read.type !== "grammar") throw refusal(read);
    const { grammar } = read;
    const { ebnf } = grammar;
    const isLight =
      constraint.type !== "grammar" &&
      ebnf.length <= LIGHT.characters &&
      weightOf(ebnf) <= LIGHT.weight;
    const thread = isLight ? this.lightThread() : this.heavyThread();
    const compiled = await thread.do({ type: "compile", form: id, grammar });
    if (compiled.type !== "compiled") {
      // The library aborts on what it cannot read, and is of no use afterwards.
      this.threadOf(thread)?.retire();
      throw refusal(compiled);
    }
    const form = this.byId.get(id);
    // The thread may have been replaced meanwhile: the job then went on in the new one.
    const place = this.threadOf(thread);
    if (form && place) form.place = { thread: place, grammar, tokens: compiled.tokens };
  }

  private guide(form: Form, onFail: (error: Error) => void): Guide {
    const { place } = form;
    if (!place) throw new EngineError("the form of the text is not ready", "failed");
    const id = ++this.lastGuide;
    const guide = new SharedGuide(id, place.tokens, this.serviceOf(form), onFail);
    form.holders += 1;
    this.guideForms.set(id, form);
    place.thread.guide(form.id, guide);
    this.startWatching();
    return guide;
  }

  /** Guides talk to whichever thread has their form. */
  private serviceOf(form: Form) {
    return {
      accept: (guide: number, token: number) => {
        form.place?.thread.accept(guide, token);
        this.startWatching();
      },
      drop: (guide: number) => {
        form.place?.thread.drop(guide);
        if (this.guideForms.delete(guide)) this.release(form);
      },
    };
  }

  private release(form: Form): void {
    form.holders -= 1;
    const idle = [...this.forms.values()].filter(({ holders }) => holders === 0);
    for (const each of idle.slice(0, Math.max(0, idle.length - MOST_KEPT))) this.forget(each);
  }

  private forget(form: Form): void {
    if (this.forms.get(form.key) === form) this.forms.delete(form.key);
    this.byId.delete(form.id);
    form.place?.thread.forget(form.id);
    form.place = undefined;
  }

  private readonly replacements = new WeakMap<GuideThread, GuideThread>();

  /** The thread that does a thread's work now. */
  private threadOf(thread: GuideThread): GuideThread | undefined {
    let current = thread;
    for (let next = this.replacements.get(current); next; next = this.replacements.get(current))
      current = next;
    return current === this.light || this.heavy.has(current) ? current : undefined;
  }

  private lightThread(): GuideThread {
    this.startWatching();
    return (this.light ??= this.start());
  }

  /** One that guides nothing and has nothing to do, else the one that has least. */
  private heavyThread(): GuideThread {
    this.startWatching();
    const load = ({ jobs, guides }: GuideThread): number => 100 * jobs.size + guides.size;
    const [best] = [...this.heavy].sort((a, b) => load(a) - load(b));
    if (best !== undefined && (load(best) === 0 || this.heavy.size >= HEAVY_THREADS)) return best;
    const thread = this.start();
    this.heavy.add(thread);
    return thread;
  }

  private start(): GuideThread {
    if (this.closed) throw new EngineError("the engine is closing", "closed");
    const { tokens, launch, seconds = JOB_SECONDS } = this.options;
    return new GuideThread({
      tokens,
      launch,
      memory: MEMORY,
      patience: { job: 1000 * seconds, mask: MASK_PATIENCE },
      onDown: (thread, down) => this.onDown(thread, down),
    });
  }

  private startWatching(): void {
    this.timer ??= setInterval(() => {
      const threads = [...this.heavy, ...(this.light ? [this.light] : [])];
      for (const thread of threads) thread.watch(performance.now());
      if (threads.some(({ isBusy }) => isBusy)) return;
      clearInterval(this.timer);
      this.timer = undefined;
    }, WATCH_EVERY).unref();
  }

  /** A thread has ended: what it was at fails, everything else goes on in another one. */
  private onDown(thread: GuideThread, down: Down): void {
    const wasLight = thread === this.light;
    if (wasLight) this.light = undefined;
    this.heavy.delete(thread);
    const error = this.describe(down);
    const culprit = down.job === undefined ? undefined : thread.jobs.get(down.job);
    if (down.job !== undefined) thread.jobs.delete(down.job);
    const guides = [...thread.guides.values()];
    const failed = guides.find(({ id }) => id === down.guide);
    const others = guides.filter((guide) => guide !== failed);
    const forms = [...this.byId.values()].filter((form) => form.place?.thread === thread);
    const held = this.closed ? [] : forms.filter(({ holders }) => holders > 0);
    for (const form of forms) if (!held.includes(form)) this.forget(form);
    if (!this.closed && (held.length > 0 || thread.jobs.size > 0)) {
      const next = this.start();
      if (wasLight) this.light = next;
      else this.heavy.add(next);
      this.replacements.set(thread, next);
      for (const form of held) this.move(form, next);
      for (const guide of others) {
        const form = this.guideForms.get(guide.id);
        if (!form) continue;
        guide.moveTo(this.serviceOf(form));
        next.guide(form.id, guide);
      }
      for (const job of thread.jobs.values()) next.take(job);
    } else {
      for (const job of thread.jobs.values()) job.reject(error);
    }
    culprit?.reject(error);
    failed?.fail(error);
  }

  /** A form that was ready once is made so in another thread. */
  private move(form: Form, thread: GuideThread): void {
    const { place } = form;
    if (!place) return;
    form.place = { ...place, thread };
    thread
      .do({ type: "compile", form: form.id, grammar: place.grammar })
      .catch((error: unknown) => {
        for (const [id, guide] of thread.guides)
          if (this.guideForms.get(id) === form) guide.fail(error as Error);
      });
  }

  private describe({ reason, detail }: Down): Error {
    if (reason === "retired") return new EngineError("the engine is closing", "closed");
    const what = "holding the text to its schema or grammar took more than";
    if (reason === "time") return new ConstraintError(`${what} ${detail}; make it simpler`);
    if (reason === "memory")
      return new ConstraintError(`${what} ${formatBytes(MEMORY)} of memory; make it simpler`);
    return new EngineError(
      `the thread that holds texts to their forms failed: ${detail}`,
      "failed",
    );
  }
}

function refusal(answer: FromGuideWorker): Error {
  return answer.type === "refused"
    ? new ConstraintError(answer.message)
    : new EngineError(`a guide thread answered "${answer.type}"`, "failed");
}

/**
 * Places of a grammar at which nearly any character may stand: for each the whole vocabulary is gone through. Repeated
 * ones count as often, up to where the library stops unrolling.
 */
function weightOf(grammar: string): number {
  let weight = 0;
  for (const [, least, most] of grammar.matchAll(/\[\^[^\]]*\](?:\{(\d+),(\d*)\})?|"\\u000F"/g))
    weight += Math.min(128, Number(most || least || 1));
  return weight;
}

async function unlessAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  let onAbort: () => void = () => undefined;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason as Error);
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
