import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { InterruptedError } from "../../src/common/errors.js";
import { meanWithError } from "../../src/evaluate/statistics.js";
import {
  findTask,
  readTask,
  type ReadItem,
  type TaskData,
} from "../../src/evaluate/tasks/index.js";
import { evaluateTask, evaluateTasks, type ItemResult } from "../../src/evaluate/zero-shot.js";
import { embeddedModel, fixture, plainScore } from "./support.js";

const backend = createReferenceBackend({ realType: "f64" });
const { model, tokenizer } = embeddedModel(backend, "tiny-llama");
const ids = (text: string): number[] => tokenizer.encode(text, { addSpecialTokens: false });

const piqa = await readTask({
  task: findTask("piqa"),
  path: fixture("piqa.jsonl"),
  embedded: false,
});

/** Items made by hand, for the task of a name. */
function handMade(name: string, items: Omit<ReadItem, "line">[]): TaskData {
  const numbered = items.map((item, i) => ({ ...item, line: i + 1 }));
  return { task: findTask(name), path: "by hand", embedded: false, items: numbered, available: 9 };
}

/** Log-likelihoods of an item's options, each run by itself; contexts here end in no white space. */
function plainSums({ options }: ReadItem): number[] {
  return options.map(({ context, continuation }) => {
    const [before, whole] = [ids(context), ids(context + continuation)];
    return plainScore(model, before, whole.slice(before.length)).logLikelihood;
  });
}

const argmax = (values: number[]): number => values.indexOf(Math.max(...values));

describe("evaluateTask", () => {
  it("scores choices by sums, and by sums over characters", async () => {
    const collected: ItemResult[] = [];
    const result = await evaluateTask(model, tokenizer, piqa, {
      onItems: (items) => collected.push(...items),
    });
    const sums = piqa.items.map(plainSums);
    const predicted = sums.map(argmax);
    const normalized = sums.map((own, i) =>
      argmax(own.map((s, c) => s / piqa.items[i].lengths[c])),
    );
    // Otherwise the items would not tell one metric from the other.
    expect(predicted).not.toEqual(normalized);
    expect(collected.map(({ line }) => line)).toEqual([1, 2, 4, 5]);
    expect(collected.map(({ prediction }) => prediction)).toEqual(predicted);
    expect(collected.map(({ predictionNorm }) => predictionNorm)).toEqual(normalized);
    for (const [i, { options }] of collected.entries())
      for (const [c, { logLikelihood }] of options.entries())
        expect(Math.abs(logLikelihood - sums[i][c])).toBeLessThan(1e-9);
    const right = (made: number[]) =>
      made.filter((choice, i) => choice === piqa.items[i].gold).length / 4;
    expect(result.metrics.acc?.value).toBe(right(predicted));
    expect(result.metrics.acc_norm?.value).toBe(right(normalized));
    expect(result).toMatchObject({
      task: "piqa",
      items: 4,
      available: 4,
      customary: "acc",
      truncated: 0,
    });
  });

  it("comes to the same in steps of any size", async () => {
    const likelihoods = async (tokensPerStep: number): Promise<number[]> => {
      const sums: number[] = [];
      await evaluateTask(model, tokenizer, piqa, {
        tokensPerStep,
        onItems: (items) =>
          sums.push(...items.flatMap(({ options }) => options.map((o) => o.logLikelihood))),
      });
      return sums;
    };
    const [alone, together] = [await likelihoods(1), await likelihoods(100_000)];
    expect(alone).toHaveLength(8);
    for (const [i, sum] of alone.entries()) expect(Math.abs(sum - together[i])).toBeLessThan(1e-9);
  });

  it("winogrande: the context that makes the same ending likelier wins", async () => {
    const sentence = "The king gave the sword to the";
    const items = ["king", "river"].map((option) => `${sentence} ${option}`);
    const continuation = " because he was brave.";
    const options = items.map((context) => ({ context, continuation }));
    const likelier = argmax(plainSums({ options, gold: 0, lengths: [1, 1], line: 1 }));
    const data = handMade("winogrande", [
      { options, gold: likelier, lengths: [1, 1000] },
      { options, gold: 1 - likelier, lengths: [1000, 1] },
    ]);
    const { metrics } = await evaluateTask(model, tokenizer, data);
    expect(metrics.acc?.value).toBe(0.5);
    expect(metrics.acc_norm).toBeUndefined();
  });

  it("lambada: right where every token is the first choice, perplexity per word", async () => {
    const context = "He was born in the United";
    const states = { context, continuation: " States" };
    const other = { context, continuation: " Kings" };
    const items = [states, other].map((option) => ({ options: [option], gold: 0, lengths: [6] }));
    const scores = [states, other].map(({ continuation }) =>
      plainScore(model, ids(context), ids(context + continuation).slice(ids(context).length)),
    );
    expect(scores.map(({ greedy }) => greedy)).toEqual([true, false]);
    const { metrics } = await evaluateTask(model, tokenizer, handMade("lambada_openai", items));
    expect(metrics.acc?.value).toBe(0.5);
    const mean = (scores[0].logLikelihood + scores[1].logLikelihood) / 2;
    expect(metrics.perplexity?.value).toBeCloseTo(Math.exp(-mean), 9);
    // Of two values the sample deviation is |a − b|/√2, the mean's error |a − b|/2.
    const error = Math.abs(scores[0].logLikelihood - scores[1].logLikelihood) / 2;
    expect(metrics.perplexity?.stderr).toBeCloseTo(Math.exp(-mean) * error, 9);
  });

  it("takes the first of equal choices", async () => {
    const option = { context: "The", continuation: " ship" };
    const data = handMade("piqa", [{ options: [option, option], gold: 0, lengths: [4, 4] }]);
    const { metrics } = await evaluateTask(model, tokenizer, data);
    expect(metrics).toEqual({ acc: { value: 1 }, acc_norm: { value: 1 } });
  });

  it("counts items that lost their beginning", async () => {
    const config = { ...model.config, maxPositions: 12 };
    const short = Object.create(model, { config: { value: config } }) as typeof model;
    const options = [
      { context: "The ship sailed to the north and then it sailed to the", continuation: " south" },
    ];
    const data = handMade("lambada_openai", [{ options, gold: 0, lengths: [5] }]);
    expect((await evaluateTask(short, tokenizer, data)).truncated).toBe(1);
    expect((await evaluateTask(model, tokenizer, data)).truncated).toBe(0);
  });

  it("stops when asked to, and says where", async () => {
    const controller = new AbortController();
    let steps = 0;
    const running = evaluateTask(model, tokenizer, piqa, {
      tokensPerStep: 1,
      signal: controller.signal,
      progress: {
        task: () => ({
          advance: () => (steps++ === 1 ? controller.abort() : undefined),
          done: () => undefined,
        }),
        note: () => undefined,
        warn: () => undefined,
      },
    });
    await expect(running).rejects.toThrow(InterruptedError);
    await expect(running).rejects.toThrow("stopped in piqa after 2 of 4 items");
  });

  it("names the item that cannot be scored", async () => {
    const options = [{ context: "The ship", continuation: "" }];
    const data = handMade("lambada_openai", [{ options, gold: 0, lengths: [1] }]);
    await expect(evaluateTask(model, tokenizer, data)).rejects.toThrow(
      /^by hand item 1: continuation "" adds no token/,
    );
  });
});

describe("evaluateTasks", () => {
  it("averages the customary metrics, errors of independent tasks adding in squares", async () => {
    const [items, task] = [piqa.items.slice(0, 3), findTask("openbookqa")];
    const openbook: TaskData = { ...piqa, task, items };
    const { tasks, average } = await evaluateTasks(model, tokenizer, [piqa, openbook]);
    const [a, b] = [tasks[0].metrics.acc!, tasks[1].metrics.acc_norm!];
    expect(a.value).not.toBe(b.value);
    expect(average.value).toBeCloseTo((a.value + b.value) / 2, 12);
    expect(average.stderr).toBeCloseTo(Math.hypot(a.stderr!, b.stderr!) / 2, 12);
  });

  it("refuses to average nothing", async () => {
    await expect(evaluateTasks(model, tokenizer, [])).rejects.toThrow("no tasks");
  });
});

describe("meanWithError", () => {
  it("divides by n − 1, then by n", () => {
    // Three of five: squared deviations add up to 1.2; √(1.2 / 4 / 5) = √0.06.
    const { value, stderr } = meanWithError([1, 0, 0, 1, 1]);
    expect(value).toBeCloseTo(0.6, 15);
    expect(stderr).toBeCloseTo(Math.sqrt(0.06), 15);
    expect(meanWithError([2])).toEqual({ value: 2 });
    expect(() => meanWithError([])).toThrow(RangeError);
  });
});
