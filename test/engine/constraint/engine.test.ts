/** The engine with texts held to forms: over an executor that computes nothing, with guide threads of its own. */
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, it } from "vitest";
import { z } from "zod";
import { collect, type Engine } from "../../../src/engine/engine.js";
import { ConstraintPool } from "../../../src/engine/constraint/pool.js";
import type { LaunchGuideThread } from "../../../src/engine/constraint/thread.js";
import { vocabularyOf } from "../../../src/engine/constraint/vocabulary.js";
import { until } from "../../until.js";
import { fakeEngine, fakeExecutor, fakeTokenizer } from "../fake-executor.js";
import { launchGuides } from "./launch.js";

const vocabulary = vocabularyOf(fakeTokenizer());
const cleanup: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const each of cleanup.splice(0).reverse()) await each();
});

async function start(
  launch: LaunchGuideThread = launchGuides,
  seconds?: number,
  host = {},
): Promise<Engine> {
  const constraints = new ConstraintPool({ tokens: { vocabulary }, launch, seconds });
  const { engine } = await fakeEngine(fakeExecutor(), host, fakeTokenizer(), { constraints });
  cleanup.push(() => engine.close());
  return engine;
}

const regex = (pattern: string) => ({ type: "regex" as const, pattern });
const request = { prompt: "abc", temperature: 1, maxTokens: 20 };

describe("a text held to a form", () => {
  it("has it, whatever else runs; its choices differ, the same seed gives the same text", async () => {
    const engine = await start();
    const held = (seed: number) =>
      collect(engine.generate({ ...request, seed, n: 3, constraint: regex("(?:ab|cd)+e{2}") }));
    const free = (seed: number) => collect(engine.generate({ ...request, seed }));
    const alone = await held(1);
    const freeAlone = await free(9);
    const mixed = await Promise.all([held(1), free(9), held(2), free(10), held(3)]);
    expect(mixed[0].choices).toEqual(alone.choices);
    expect(mixed[1].choices).toEqual(freeAlone.choices);
    for (const { choices } of [mixed[0], mixed[2], mixed[4]])
      for (const { text, finishReason } of choices)
        if (finishReason === "stop") expect(text).toMatch(/^(?:ab|cd)+e{2}$/);
        else expect(text).toMatch(/^(?:ab|cd)*(?:[ac]|e)?$/);
    const texts = alone.choices.map(({ text }) => text);
    expect(new Set(texts).size).toBeGreaterThan(1);
    expect(engine.stats).toMatchObject({ running: 0, waiting: 0, pagesUsed: 0 });
  });

  it("keeps it under bias, penalties, top-k and stop strings, and tells the model's own probabilities", async () => {
    const engine = await start();
    const constraint = regex("[abc]{6}");
    const plain = { ...request, seed: 4, constraint, logprobs: 2 };
    const { choices } = await collect(
      engine.generate({ ...plain, logitBias: { 5: 100 }, topK: 1, repetitionPenalty: 2 }),
    );
    expect(choices[0].text).toMatch(/^[abc]{6}$/);
    expect(choices[0].finishReason).toBe("stop");
    const { choices: own } = await collect(engine.generate(plain));
    const first = own[0].tokens[0].logprobs!;
    const { choices: unheld } = await collect(
      engine.generate({ ...request, seed: 4, logprobs: 20, maxTokens: 1 }),
    );
    const top = unheld[0].tokens[0].logprobs!.top;
    const same = top.find(({ token }) => token === first.token);
    expect(first.logprob).toBeCloseTo(same!.logprob, 5);
    const { choices: cut } = await collect(
      engine.generate({ ...plain, stop: [own[0].text.slice(2, 4)] }),
    );
    expect(cut[0]).toMatchObject({
      text: own[0].text.slice(0, own[0].text.indexOf(own[0].text.slice(2, 4))),
      finishReason: "stop",
    });
  });

  it("is read as what a zod schema makes of it", async () => {
    const engine = await start();
    const schema = z.union([z.literal(null)]).transform(() => "nothing");
    // The vocabulary has the letters of null, and no others of JSON.
    const { choices } = await collect(engine.generate({ ...request, schema }));
    expect(choices[0]).toMatchObject({ text: "null", value: "nothing", finishReason: "stop" });
    const cut = await collect(engine.generate({ ...request, schema, maxTokens: 2 }));
    expect(cut.choices[0].value).toBeUndefined();
    const { choices: picked } = await collect(
      engine.generate({ ...request, schema: z.null().refine(() => true) }),
    );
    const value: null | undefined = picked[0].value;
    expect(value).toBeNull();
    await expect(
      collect(engine.generate({ ...request, schema: z.null().refine(() => false) })),
    ).rejects.toMatchObject({ code: "failed", message: expect.stringContaining("refuses") });
    await expect(collect(engine.generate({ ...request, schema: z.date() }))).rejects.toMatchObject({
      code: "invalid",
    });
  });

  it("is refused with the reason, and nobody else suffers", async () => {
    const engine = await start();
    const going = collect(
      engine.generate({ ...request, maxTokens: 200, constraint: regex("[a-d]{200}") }),
    );
    const refused: [constraint: unknown, says: RegExp][] = [
      [{ type: "grammar", grammar: "root ::= (" }, /grammar: .*line 1, column 11/],
      [{ type: "grammar", grammar: "root ::= other" }, /there is no rule other/],
      [{ type: "grammar", grammar: 'root ::= root "a"' }, /begins with itself/],
      [{ type: "grammar", grammar: 'root ::= "a" root' }, /no text can be completed/],
      [regex("(a"), /pattern cannot be read/],
      [regex("a(?!b)b"), /no text matches/],
      [{ type: "schema", schema: { not: {} } }, /"not" is not supported/],
    ];
    for (const [constraint, says] of refused)
      await expect(
        collect(engine.generate({ ...request, constraint } as never)),
      ).rejects.toMatchObject({ code: "invalid", message: expect.stringMatching(says) });
    await expect(
      collect(engine.generate({ ...request, constraint: regex("a"), ignoreEnd: true })),
    ).rejects.toMatchObject({ code: "invalid" });
    expect((await going).choices[0].text).toMatch(/^[a-d]{200}$/);
    expect(engine.stats).toMatchObject({ running: 0, waiting: 0, pagesUsed: 0 });
  });

  it("is a grammar's, with rules, classes, repetitions and comments", async () => {
    const engine = await start();
    const grammar = `# a sum
      root ::= term ("a" term){1,3}
      term ::= [b-d]+ | "(" | "e" "f"?   # never the bracket: no token spells it
        | nothing-else
      nothing-else ::= "g"`;
    const { choices } = await collect(
      engine.generate({
        ...request,
        maxTokens: 60,
        n: 4,
        seed: 2,
        constraint: { type: "grammar", grammar },
      }),
    );
    for (const { text, finishReason } of choices)
      if (finishReason === "stop")
        expect(text).toMatch(/^(?:[b-d]+|ef?|g)(?:a(?:[b-d]+|ef?|g)){1,3}$/);
    expect(choices.some(({ finishReason }) => finishReason === "stop")).toBe(true);
  });

  it("gives its place back when its reader goes, also while its form is made ready", async () => {
    const engine = await start();
    const controller = new AbortController();
    const { signal } = controller;
    const events = engine.generate({
      ...request,
      maxTokens: 500,
      signal,
      constraint: regex("[ab]{500}"),
    });
    const first = events.next();
    controller.abort(new Error("gone"));
    await expect(first).rejects.toThrow("gone");
    for await (const event of engine.generate({ ...request, constraint: regex("[ab]{15}") }))
      if (event.type === "token") break;
    await until(() => engine.stats.running === 0 && engine.stats.waiting === 0);
    expect(engine.stats.pagesUsed).toBe(0);
  });

  it("survives its thread: whoever stops it fails, the others go on from where they were", async () => {
    // Stands still at the 12th token of a form of a's, as a hostile form might make it.
    const stuck: LaunchGuideThread = (workerData) => {
      const worker = launchGuides(workerData);
      const post = worker.postMessage.bind(worker);
      let accepted = 0;
      worker.postMessage = (message: { type: string; token?: number }) => {
        if (message.type === "accept" && message.token === 1 && ++accepted === 12) {
          const activity = new Int32Array(workerData.activity);
          activity[2] = (message as unknown as { guide: number }).guide;
          activity[1] = 2;
          activity[0] += 1;
          void worker.terminate();
          return;
        }
        post(message);
      };
      return worker;
    };
    const engine = await start(stuck);
    const other = collect(
      engine.generate({ ...request, maxTokens: 90, seed: 3, constraint: regex("[bcd]{90}") }),
    );
    await expect(
      collect(engine.generate({ ...request, maxTokens: 90, constraint: regex("a{90}") })),
    ).rejects.toMatchObject({ code: "failed" });
    const { choices } = await other;
    expect(choices[0].text).toMatch(/^[bcd]{90}$/);
    const alone = await start();
    const again = await collect(
      alone.generate({ ...request, maxTokens: 90, seed: 3, constraint: regex("[bcd]{90}") }),
    );
    expect(again.choices[0].text).toBe(choices[0].text);
  });

  it("is given up when making it ready takes too long", async () => {
    const sleeping: LaunchGuideThread = (workerData) =>
      new Worker(
        `const { parentPort, workerData } = require("node:worker_threads");
         const activity = new Int32Array(workerData.activity);
         parentPort.on("message", ({ job }) => {
           activity[2] = job; activity[1] = 1; activity[0] += 1;
           for (;;);
         });`,
        { eval: true, workerData },
      );
    const engine = await start(sleeping, 0.3);
    await expect(
      collect(engine.generate({ ...request, constraint: regex("a") })),
    ).rejects.toMatchObject({ code: "invalid", message: expect.stringContaining("0.3 s") });
  });
});
