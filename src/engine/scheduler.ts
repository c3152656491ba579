/**
 * Who runs next. Continuous batching: every step takes one token of each sequence that decodes, and fills up with parts
 * of prompts, shared evenly among those that wait for their first token, so that neither a long prompt nor a full house
 * keeps anybody from going on.
 *
 * Pages are given as they are needed. When none is left, the sequence that came last gives its pages back and is
 * computed anew later (a row depends only on the tokens before it, so its text does not change). The sequence that came
 * first can always go on, and one that could not fit alone is refused before it comes here: everybody gets done.
 *
 * In models with recurrent layers a running sequence also owns one of the executor's states. A state stands at one position
 * and holds all that came before, so such models share no beginnings between requests: pages alone would not do. Choices of
 * one request still share their prompt, by copies of its state.
 */
import { PlanishError } from "../common/errors.js";
import type { Chunk, Executor, StepLogits } from "../backend/contract/inference.js";
import { EmbeddingSequence } from "./embedding.js";
import { PagePool } from "./pages.js";
import type { Sequence } from "./sequence.js";

export interface SchedulerOptions {
  /** Pages of the KV cache. */
  readonly pages: number;
  /** Sequences that run at the same time. */
  readonly maxRunning: number;
  /** Tokens of a step, over all sequences. */
  readonly stepTokens: number;
  /** Called when a sequence that waited for its guide can go on, in case nothing else goes on. */
  readonly onReady?: () => void;
}

export interface SchedulerStats {
  readonly running: number;
  readonly waiting: number;
  readonly pagesTotal: number;
  readonly pagesUsed: number;
  /** Pages kept for prompts to come. */
  readonly pagesCached: number;
  readonly steps: number;
  readonly preemptions: number;
  /** Tokens guessed by look-up, and those of them that were right. */
  readonly guessed: number;
  readonly guessedRight: number;
}

/** Prompt tokens that a step takes at least, however many sequences decode in it. */
const LEAST_PREFILL = 32;

/** Guessed tokens that a step takes at most, over all sequences. */
const GUESSED_ROWS = 8;

/** A sequence's part in a step: so many of its tokens, and what may follow them. */
interface Planned {
  readonly sequence: Sequence;
  readonly count: number;
  readonly guess: readonly number[];
}

export class Scheduler {
  readonly pool: PagePool;
  /** States that no sequence has; undefined in models without. */
  private readonly freeStates: number[] | undefined;
  private readonly waiting: Sequence[] = [];
  /** In order of arrival. */
  private readonly running: Sequence[] = [];
  private readonly order = new Map<Sequence, number>();
  private arrivals = 0;
  private steps = 0;
  private preemptions = 0;
  private guessed = 0;
  private guessedRight = 0;

  constructor(
    private readonly executor: Executor,
    private readonly options: SchedulerOptions,
  ) {
    this.pool = new PagePool(options.pages, executor.pageTokens);
    executor.reserve(options.pages, options.maxRunning);
    if (executor.bytesPerState !== undefined)
      this.freeStates = Array.from({ length: options.maxRunning }, (_, i) => i);
  }

  get stats(): SchedulerStats {
    return {
      running: this.running.length,
      waiting: this.waiting.length,
      pagesTotal: this.pool.count,
      pagesUsed: this.pool.used,
      pagesCached: this.pool.cached,
      steps: this.steps,
      preemptions: this.preemptions,
      guessed: this.guessed,
      guessedRight: this.guessedRight,
    };
  }

  /** Adds a sequence, and behind it its siblings, to the line. @throws PlanishError when it can never fit. */
  submit(sequence: Sequence): void {
    if (this.pagesFor(sequence.tokens.length) > this.pool.count)
      throw new PlanishError(
        `[engine] ${sequence.tokens.length} tokens need ${this.pagesFor(sequence.tokens.length)} pages; the cache has ${this.pool.count}`,
      );
    for (const each of [sequence, ...sequence.siblings]) this.order.set(each, this.arrivals++);
    this.waiting.push(sequence);
  }

  /** Ends a request's sequences without a word to their sinks. */
  cancel(request: number): void {
    for (const sequence of [...this.running, ...this.waiting])
      if (sequence.request === request) this.remove(sequence);
  }

  /** A request whose reader does not keep up rests. */
  pause(request: number, paused: boolean): void {
    for (const sequence of [...this.running, ...this.waiting])
      if (sequence.request === request)
        for (const each of [sequence, ...sequence.siblings]) each.paused = paused;
  }

  /** Runs one step; false when there was nothing to do. The next one begins when this one has ended. */
  async step(): Promise<boolean> {
    const released = this.release();
    this.admit();
    const planned = this.plan();
    if (planned.length === 0) return released;
    const chunks = planned.map(chunkOf);
    let results: StepLogits;
    try {
      results = await this.executor.step(chunks);
    } catch (error) {
      this.failAll(planned, asError(error));
      return true;
    }
    this.steps += 1;
    planned.forEach((each, i) => {
      // It may have been cancelled while the step ran.
      if (!this.running.includes(each.sequence)) return;
      if (each.guess.length > 0 && results[i]) this.settleGuess(each, results[i]);
      else this.settle(each.sequence, each.count, results[i]);
    });
    return true;
  }

  /** Everything ends with an error. */
  fail(error: Error): void {
    this.failAll(
      [...this.running, ...this.waiting].map((sequence) => ({ sequence })),
      error,
    );
  }

  private admit(): void {
    while (this.waiting.length > 0 && this.running.length < this.options.maxRunning) {
      const [sequence] = this.waiting;
      const { tokens } = sequence;
      // The last token is computed in any case: its logits are wanted.
      const most = this.freeStates ? 0 : tokens.length - 1;
      const { pages, node } = this.pool.match(tokens, most, sequence.root);
      if (this.pagesFor(tokens.length) - pages.length > this.pool.available) {
        for (const page of pages.reverse()) this.pool.release(page);
        return;
      }
      sequence.pages = pages;
      sequence.state = this.freeStates?.pop();
      sequence.node = node;
      sequence.knownPages = pages.length;
      sequence.computed = pages.length * this.pool.pageTokens;
      sequence.cachedTokens ??= Math.min(sequence.computed, sequence.promptTokens);
      this.waiting.shift();
      this.insert(this.running, sequence);
    }
  }

  /** The chunks of the next step, with their pages. */
  private plan(): Planned[] {
    const ready = this.running.filter(({ paused, held }) => !paused && held === undefined);
    const prefilling = ready.filter(({ pending }) => pending > 1);
    const decoding = ready.length - prefilling.length;
    let budget = Math.max(LEAST_PREFILL, this.options.stepTokens - decoding);
    const wanted = new Map<Sequence, number>();
    for (const sequence of ready) wanted.set(sequence, 1);
    // Even shares; what short prompts leave goes to the others.
    const byNeed = [...prefilling].sort((a, b) => a.pending - b.pending);
    byNeed.forEach((sequence, i) => {
      const share = Math.floor(budget / (byNeed.length - i));
      const count = this.wholePages(sequence, Math.min(sequence.pending, share));
      budget -= count;
      wanted.set(sequence, count);
    });
    // Where many rows share a step already, further ones cost what they take.
    // Rows must be the same bits however they come, and states that have gone on cannot go back.
    const isExact = !this.freeStates && !this.executor.cutAtPages;
    const guesses = isExact ? Math.floor(GUESSED_ROWS / ready.length) : 0;
    const planned: Planned[] = [];
    for (const sequence of ready) {
      const count = wanted.get(sequence) ?? 0;
      // An earlier one in this loop may have taken its pages.
      if (count === 0 || !this.running.includes(sequence)) continue;
      if (!this.makeRoom(sequence, sequence.computed + count)) continue;
      const isDecoding = sequence.pending === 1 && sequence.siblings.length === 0;
      const guess = isDecoding && guesses > 0 ? sequence.guess(guesses) : [];
      planned.push({ sequence, count, guess: this.fitting(sequence, guess) });
    }
    return planned;
  }

  /** As much of a guess as has pages without anybody giving up theirs. */
  private fitting(sequence: Sequence, guess: readonly number[]): readonly number[] {
    const { pages, computed } = sequence;
    let fits = 0;
    while (fits < guess.length) {
      if (pages.length < this.pagesFor(computed + 2 + fits)) {
        const page = this.pool.allocate();
        if (page === undefined) break;
        pages.push(page);
      }
      fits += 1;
    }
    return guess.slice(0, fits);
  }

  /** For executors that ask for it, a part of a prompt that ends with a page, where the share has room for that. */
  private wholePages({ computed, pending }: Sequence, count: number): number {
    if (count === pending || !this.executor.cutAtPages) return count;
    const beyond = (computed + count) % this.pool.pageTokens;
    return beyond < count ? count - beyond : count;
  }

  /**
   * Gives a sequence pages for so many positions, writable from `computed` on, if need be those of sequences that rest
   * or came later. False: it must wait.
   */
  private makeRoom(sequence: Sequence, positions: number): boolean {
    const { pool } = this;
    const { pages } = sequence;
    const first = Math.floor(sequence.computed / pool.pageTokens);
    // Making room may end the sharing, so it is asked anew each time.
    while (first < pages.length && pool.isShared(pages[first])) {
      const copy = pool.allocate();
      if (copy === undefined) {
        if (!this.preemptFor(sequence)) return false;
        continue;
      }
      this.executor.copyPage(pages[first], copy);
      pool.release(pages[first]);
      pages[first] = copy;
    }
    while (pages.length < this.pagesFor(positions)) {
      const page = pool.allocate();
      if (page !== undefined) pages.push(page);
      else if (!this.preemptFor(sequence)) return false;
    }
    return true;
  }

  private preemptFor(sequence: Sequence): boolean {
    const victim = this.victimOf(sequence);
    if (victim === undefined) return false;
    this.preempt(victim);
    return true;
  }

  /** Whose pages `sequence` may take: of those that rest, the last; else the last that came after it. */
  private victimOf(sequence: Sequence): Sequence | undefined {
    const others = this.running.filter((other) => other !== sequence && other.pages.length > 0);
    const resting = others.filter(({ paused }) => paused);
    const last = resting.at(-1) ?? others.at(-1);
    if (last === undefined || last.paused) return last;
    return this.arrival(last) > this.arrival(sequence) ? last : undefined;
  }

  private preempt(sequence: Sequence): void {
    this.preemptions += 1;
    this.releasePages(sequence);
    this.running.splice(this.running.indexOf(sequence), 1);
    this.insert(this.waiting, sequence);
  }

  /** Takes over what a step computed of a sequence, and the token that followed from it. */
  private settle(sequence: Sequence, count: number, rows: Float32Array | undefined): void {
    if (sequence instanceof EmbeddingSequence && rows) sequence.take(rows, count);
    sequence.computed += count;
    const logits = sequence.pending === 0 ? rows : undefined;
    const { pageTokens } = this.pool;
    // What is computed for a vector is of no use to a text that begins alike.
    const isKnown = !this.freeStates && sequence.wants !== "hidden";
    while (isKnown && (sequence.knownPages + 1) * pageTokens <= sequence.computed) {
      const start = sequence.knownPages * pageTokens;
      const page = sequence.pages[sequence.knownPages];
      sequence.node = this.pool.register(page, sequence.node, sequence.tokens, start);
      sequence.knownPages += 1;
    }
    if (logits === undefined) return;
    for (const sibling of sequence.siblings.splice(0)) this.fork(sequence, sibling, logits);
    this.advance(sequence, logits);
  }

  /** Goes through the rows of a guess for as long as what is chosen is what was guessed. */
  private settleGuess({ sequence, guess }: Planned, rows: Float32Array): void {
    const width = rows.length / (guess.length + 1);
    let right = 0;
    for (let goesOn = true; goesOn;) {
      this.settle(sequence, 1, rows.subarray(right * width, (right + 1) * width));
      // The keys and values of what was guessed are there already.
      goesOn =
        this.running.includes(sequence) &&
        right < guess.length &&
        sequence.tokens.at(-1) === guess[right];
      if (goesOn) right += 1;
    }
    this.guessed += guess.length;
    this.guessedRight += right;
    sequence.learn(guess.length, right);
  }

  /** A further choice goes on from the same prompt, on the same pages; where the house is full it waits. */
  private fork(from: Sequence, sibling: Sequence, logits: Float32Array): void {
    sibling.paused = from.paused;
    sibling.cachedTokens = 0;
    if (this.running.length >= this.options.maxRunning) {
      this.insert(this.waiting, sibling);
      return;
    }
    for (const page of from.pages) this.pool.retain(page);
    sibling.pages = [...from.pages];
    sibling.state = this.freeStates?.pop();
    if (from.state !== undefined && sibling.state !== undefined)
      this.executor.copyState?.(from.state, sibling.state);
    sibling.computed = from.computed;
    sibling.knownPages = from.knownPages;
    sibling.node = from.node;
    this.insert(this.running, sibling);
    this.advance(sibling, logits);
  }

  /** Sequences whose guides have become ready go on; whether any does. */
  private release(): boolean {
    let released = false;
    for (const sequence of [...this.running, ...this.waiting]) {
      const { held, guide } = sequence;
      if (held === undefined || guide?.isReady() === false) continue;
      sequence.held = undefined;
      this.advance(sequence, held);
      released = true;
    }
    return released;
  }

  private advance(sequence: Sequence, logits: Float32Array): void {
    const { guide } = sequence;
    if (guide?.isReady() === false) {
      // Others need not wait for it.
      sequence.held = logits;
      guide.onReady(this.options.onReady ?? (() => undefined));
      return;
    }
    try {
      if (sequence.advance(logits)) this.remove(sequence);
    } catch (error) {
      this.failAll([{ sequence }], asError(error));
    }
  }

  private failAll(failed: readonly { sequence: Sequence }[], error: Error): void {
    for (const { sequence } of failed) {
      this.cancel(sequence.request);
      this.remove(sequence);
      sequence.sink.fail(error);
    }
  }

  private remove(sequence: Sequence): void {
    this.releasePages(sequence);
    for (const list of [this.running, this.waiting]) {
      const at = list.indexOf(sequence);
      if (at >= 0) list.splice(at, 1);
    }
    for (const each of [sequence, ...sequence.siblings]) {
      this.order.delete(each);
      each.dispose();
    }
  }

  private releasePages(sequence: Sequence): void {
    // The end first: it is the least likely to be asked for again.
    for (const page of sequence.pages.reverse()) this.pool.release(page);
    sequence.pages = [];
    if (sequence.state !== undefined) this.freeStates?.push(sequence.state);
    sequence.state = undefined;
    sequence.computed = 0;
    sequence.knownPages = 0;
  }

  private insert(list: Sequence[], sequence: Sequence): void {
    const at = list.findIndex((other) => this.arrival(other) > this.arrival(sequence));
    list.splice(at < 0 ? list.length : at, 0, sequence);
  }

  private arrival(sequence: Sequence): number {
    return this.order.get(sequence) ?? Infinity;
  }

  private pagesFor(positions: number): number {
    return Math.ceil(positions / this.pool.pageTokens);
  }
}

function chunkOf({ sequence, count, guess }: Planned): Chunk {
  const { tokens, computed, pages, state, wants } = sequence;
  const isLast = computed + count === tokens.length;
  return {
    tokens: Int32Array.from([...tokens.slice(computed, computed + count), ...guess]),
    start: computed,
    pages: Int32Array.from(pages),
    state,
    logits: wants === "hidden" ? wants : guess.length > 0 ? "all" : isLast ? "last" : "none",
  };
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new PlanishError(String(error));
}
