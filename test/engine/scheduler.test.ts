import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Random } from "../../src/common/random.js";
import type { Chunk } from "../../src/backend/contract/inference.js";
import { LookUp } from "../../src/engine/look-up.js";
import { Sampler, type SamplingOptions } from "../../src/engine/sampling.js";
import { Scheduler } from "../../src/engine/scheduler.js";
import { TextSequence, type Sequence } from "../../src/engine/sequence.js";
import { TextOutput } from "../../src/engine/text-output.js";
import { FAKE_VOCABULARY, fakeExecutor, fakeLogits } from "./fake-executor.js";

const END_TOKEN = 0;
const decoder = { push: (token: number) => `${token} `, flush: () => "" };

interface Job {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly seed: number;
  readonly n: number;
  readonly sampling: SamplingOptions;
}

interface Result {
  readonly tokens: number[][];
  readonly reasons: (string | undefined)[];
  error?: Error;
}

const sampler = ({ prompt, sampling, seed }: Job, choice: number): Sampler =>
  new Sampler(sampling, Random.for(seed, choice), FAKE_VOCABULARY, prompt);

/** The job's sequences, and where their results will be. */
function sequencesOf(
  job: Job,
  request: number,
  contextTokens: number,
  lookUp = false,
): { first: Sequence; result: Result } {
  const result: Result = { tokens: [], reasons: [] };
  const sequences = Array.from({ length: job.n }, (_, choice) => {
    result.tokens[choice] = [];
    return new TextSequence({
      request,
      choice,
      prompt: job.prompt,
      sampler: sampler(job, choice),
      output: new TextOutput(decoder, []),
      lookUp: lookUp ? new LookUp() : undefined,
      limits: {
        maxTokens: job.maxTokens,
        contextTokens,
        endTokens: [END_TOKEN],
        candidates: FAKE_VOCABULARY,
        impossible: [],
      },
      sink: {
        tokens: (choice, tokens) => result.tokens[choice].push(...tokens.map((t) => t.token)),
        finish: (choice, reason) => (result.reasons[choice] = reason),
        fail: (error) => (result.error = error),
      },
    });
  });
  sequences[0].siblings = sequences.slice(1);
  return { first: sequences[0], result };
}

/** What a job's choices must be: one at a time, without pages, chunks or batches. */
function alone(job: Job, contextTokens: number): Result {
  const result: Result = { tokens: [], reasons: [] };
  for (let choice = 0; choice < job.n; choice++) {
    const own = sampler(job, choice);
    const tokens = [...job.prompt];
    const generated: number[] = [];
    let reason: string | undefined;
    while (reason === undefined) {
      const token = own.next(fakeLogits(tokens));
      if (token === END_TOKEN) reason = "stop";
      else {
        tokens.push(token);
        generated.push(token);
        if (generated.length === job.maxTokens) reason = "length";
        else if (tokens.length > contextTokens) reason = "context";
      }
    }
    result.tokens[choice] = generated;
    result.reasons[choice] = reason;
  }
  return result;
}

const job = (prompt: readonly number[], rest: Partial<Job> = {}): Job => ({
  prompt,
  maxTokens: 6,
  seed: 1,
  n: 1,
  sampling: { temperature: 1, topK: 8 },
  ...rest,
});

async function finish(scheduler: Scheduler, limit = 10_000): Promise<number> {
  let steps = 0;
  while (await scheduler.step()) if (++steps > limit) throw new Error("the scheduler does not end");
  return steps;
}

const range = (length: number, from = 1): number[] =>
  Array.from({ length }, (_, i) => from + (i % 20));

describe("Scheduler", () => {
  it("gives each request what it gives alone, whatever comes and goes beside it, and loses no page", async () => {
    // Few distinct tokens and lengths around page borders make prompts that share beginnings.
    const prompt = fc.array(fc.constantFrom(1, 2), { minLength: 1, maxLength: 18 });
    const jobs = fc.record({
      prompt,
      maxTokens: fc.integer({ min: 1, max: 14 }),
      seed: fc.nat(),
      n: fc.integer({ min: 1, max: 3 }),
      sampling: fc.record({
        temperature: fc.constantFrom(0, 0.7, 1.5),
        topP: fc.constantFrom(1, 0.8),
        repetitionPenalty: fc.constantFrom(1, 1.3),
        frequencyPenalty: fc.constantFrom(0, 0.5),
      }),
    });
    const event = fc.record({
      kind: fc.constantFrom("submit", "submit", "submit", "cancel", "pause", "resume", "steps"),
      job: jobs,
      which: fc.nat({ max: 30 }),
      steps: fc.integer({ min: 0, max: 6 }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(event, { minLength: 1, maxLength: 25 }),
        fc.record({
          pages: fc.integer({ min: 8, max: 14 }),
          maxRunning: fc.integer({ min: 1, max: 5 }),
          stepTokens: fc.integer({ min: 1, max: 40 }),
        }),
        fc.boolean(),
        fc.boolean(),
        async (events, options, recurrent, lookUp) => {
          const contextTokens = options.pages * 4;
          const scheduler = new Scheduler(fakeExecutor({ pageTokens: 4, recurrent }), options);
          const requests: { job: Job; result: Result }[] = [];
          const cancelled = new Set<number>();
          const step = async (): Promise<boolean> => {
            const worked = await scheduler.step();
            const { running, pagesUsed } = scheduler.stats;
            expect(running).toBeLessThanOrEqual(options.maxRunning);
            expect(pagesUsed).toBeLessThanOrEqual(options.pages);
            return worked;
          };
          for (const { kind, job, which, steps } of events) {
            const id = requests.length === 0 ? 0 : which % requests.length;
            if (kind === "submit") {
              const { first, result } = sequencesOf(job, requests.length, contextTokens, lookUp);
              requests.push({ job, result });
              scheduler.submit(first);
            } else if (kind === "cancel") {
              scheduler.cancel(id);
              cancelled.add(id);
            } else if (kind !== "steps") scheduler.pause(id, kind === "pause");
            for (let i = 0; i < steps; i++) await step();
          }
          requests.forEach((_, id) => scheduler.pause(id, false));
          for (let i = 0; await step(); i++)
            if (i > 5000) throw new Error("the scheduler does not end");
          requests.forEach(({ job, result }, id) => {
            expect(result.error).toBeUndefined();
            const expected = alone(job, contextTokens);
            if (!cancelled.has(id)) expect(result).toEqual(expected);
            // A cancelled one has a beginning of it.
            else
              result.tokens.forEach((tokens, choice) =>
                expect(expected.tokens[choice].slice(0, tokens.length)).toEqual(tokens),
              );
          });
          expect(scheduler.stats).toMatchObject({ running: 0, waiting: 0, pagesUsed: 0 });
        },
      ),
      { numRuns: 150 },
    );
  });

  it("lets those who decode go on while a long prompt is read", async () => {
    const sizes: number[][] = [];
    const onStep = (chunks: readonly Chunk[]): void =>
      void sizes.push(chunks.map(({ tokens }) => tokens.length));
    const scheduler = new Scheduler(fakeExecutor({ onStep }), {
      pages: 200,
      maxRunning: 4,
      stepTokens: 40,
    });
    const short = sequencesOf(job([3], { maxTokens: 30, sampling: { temperature: 0 } }), 0, 800);
    scheduler.submit(short.first);
    await scheduler.step();
    scheduler.submit(sequencesOf(job(range(200), { maxTokens: 1 }), 1, 800).first);
    for (let i = 0; i < 5; i++) await scheduler.step();
    // One token of the first in each step; the rest of the step's 40 tokens go to the prompt.
    expect(sizes.slice(1)).toEqual([
      [1, 39],
      [1, 39],
      [1, 39],
      [1, 39],
      [1, 39],
    ]);
  });

  it("cuts prompts between pages for executors that ask for it", async () => {
    const parts: number[][] = [];
    const onStep = (chunks: readonly Chunk[]): void =>
      void parts.push(chunks.map(({ start, tokens }) => start + tokens.length));
    const executor = { ...fakeExecutor({ pageTokens: 16, onStep }), cutAtPages: true };
    const scheduler = new Scheduler(executor, { pages: 50, maxRunning: 4, stepTokens: 70 });
    scheduler.submit(sequencesOf(job(range(200), { maxTokens: 1 }), 0, 800).first);
    for (let i = 0; i < 4; i++) await scheduler.step();
    expect(parts.map(([end]) => end)).toEqual([64, 128, 192, 200]);
    // A share below a page is taken as it is: a prompt must go on.
    parts.length = 0;
    const small = new Scheduler(executor, { pages: 50, maxRunning: 4, stepTokens: 32 });
    for (const id of [1, 2, 3, 4])
      small.submit(sequencesOf(job(range(90, id), { maxTokens: 1 }), id, 800).first);
    await small.step();
    expect(parts).toEqual([[8, 8, 8, 8]]);
  });

  it("shares a step among prompts, so that a short one is not kept behind a long one", async () => {
    const scheduler = new Scheduler(fakeExecutor(), { pages: 400, maxRunning: 4, stepTokens: 64 });
    const long = sequencesOf(job(range(640), { maxTokens: 1 }), 0, 1600);
    const short = sequencesOf(job(range(20, 5), { maxTokens: 1 }), 1, 1600);
    scheduler.submit(long.first);
    scheduler.submit(short.first);
    await scheduler.step();
    expect(short.result.reasons).toHaveLength(1);
    expect(long.result.reasons).toEqual([]);
  });

  it("computes a common beginning once", async () => {
    let computed = 0;
    const onStep = (chunks: readonly Chunk[]): void =>
      chunks.forEach(({ tokens }) => (computed += tokens.length));
    const scheduler = new Scheduler(fakeExecutor({ onStep }), {
      pages: 99,
      maxRunning: 4,
      stepTokens: 99,
    });
    const first = sequencesOf(job([...range(16), 7], { maxTokens: 1 }), 0, 396);
    scheduler.submit(first.first);
    await finish(scheduler);
    expect(computed).toBe(17);
    const second = sequencesOf(job([...range(16), 9], { maxTokens: 1 }), 1, 396);
    scheduler.submit(second.first);
    await finish(scheduler);
    expect(computed).toBe(18);
    expect(second.first.cachedTokens).toBe(16);
    expect(second.result).toEqual(alone(job([...range(16), 9], { maxTokens: 1 }), 396));
  });

  it("computes the prompt of several choices once", async () => {
    let prefilled = 0;
    const onStep = (chunks: readonly Chunk[]): void =>
      chunks.forEach(({ tokens }) => (prefilled += tokens.length > 1 ? tokens.length : 0));
    const scheduler = new Scheduler(fakeExecutor({ onStep }), {
      pages: 99,
      maxRunning: 8,
      stepTokens: 99,
    });
    const several = job(range(18), { n: 4 });
    const { first, result } = sequencesOf(several, 0, 396);
    scheduler.submit(first);
    await finish(scheduler);
    expect(prefilled).toBe(18);
    expect(result).toEqual(alone(several, 396));
  });

  it("takes pages back from who came last when they run out, and nobody's text changes", async () => {
    const scheduler = new Scheduler(fakeExecutor(), { pages: 8, maxRunning: 4, stepTokens: 64 });
    const jobs = [1, 2, 3].map((seed) =>
      job([seed, 5, 6, 7, 8, 9], {
        seed,
        maxTokens: 20,
        sampling: { temperature: 1, logitBias: { 0: -100 } },
      }),
    );
    const results = jobs.map((each, id) => {
      const { first, result } = sequencesOf(each, id, 32);
      scheduler.submit(first);
      return result;
    });
    await finish(scheduler);
    expect(scheduler.stats.preemptions).toBeGreaterThan(0);
    results.forEach((result, id) => expect(result).toEqual(alone(jobs[id], 32)));
  });

  it("refuses a prompt that no cache of this size can hold", () => {
    const scheduler = new Scheduler(fakeExecutor(), { pages: 2, maxRunning: 4, stepTokens: 64 });
    expect(() => scheduler.submit(sequencesOf(job(range(9)), 0, 8).first)).toThrow(
      "9 tokens need 3 pages; the cache has 2",
    );
  });

  it("fails those whose step fails, and serves the next", async () => {
    let broken = true;
    const onStep = (): void => {
      if (broken) throw new Error("the device is gone");
    };
    const scheduler = new Scheduler(fakeExecutor({ onStep }), {
      pages: 9,
      maxRunning: 4,
      stepTokens: 64,
    });
    const failing = sequencesOf(job([1, 2, 3], { n: 2 }), 0, 36);
    scheduler.submit(failing.first);
    await finish(scheduler);
    expect(failing.result.error?.message).toBe("the device is gone");
    expect(scheduler.stats).toMatchObject({ running: 0, pagesUsed: 0 });
    broken = false;
    const good = sequencesOf(job([1, 2, 3]), 1, 36);
    scheduler.submit(good.first);
    await finish(scheduler);
    expect(good.result).toEqual(alone(job([1, 2, 3]), 36));
  });
});
