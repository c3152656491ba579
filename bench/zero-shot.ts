/**
 * Items per second of a zero-shot task, five ways on the same items in one run, alternating: each choice by itself with the
 * logits of every position (a harness with batch size 1); the same with logits only where a scored token is
 * predicted; and as `planish eval --tasks` scores; then both by the engine (bf16 products of an original, integers of an
 * artifact): each choice by itself, and with contexts shared by pages. A few items warm each way up first.
 *
 *   npx tsx bench/zero-shot.ts MODEL [--tasks piqa,arc_easy] [--limit 100] [--rounds 3] [--threads N]
 *     [--precision bf16] [--step TOKENS] [--ways TEXT]
 *
 * --ways engine leaves out the ways that don't have that text in their names. Ratios are to the first way that is left,
 * over all tasks at the end.
 */

import { parseArgs } from "node:util";
import type { Backend, Precision } from "../src/backend/contract/training.js";
import { openBackend } from "../src/backend/open.js";
import { loadTokenizer } from "../src/checkpoint/tokenizer.js";
import { formatTable } from "../src/common/format.js";
import { packageVersion } from "../src/common/package.js";
import type { Executor } from "../src/backend/contract/inference.js";
import { openIntegerExecutor } from "../src/engine/processor.js";
import { pairEncoder, type EncodedPair } from "../src/evaluate/encode-pair.js";
import { parseTasks, readTask, type TaskData } from "../src/evaluate/tasks/index.js";
import { evaluateTask } from "../src/evaluate/zero-shot.js";
import type { LanguageModel } from "../src/models/language-model.js";
import { loadModel } from "../src/quantize/artifact/load.js";
import { gatherRows, negativeLogLikelihood } from "../src/tensor/ops/index.js";
import { Graph } from "../src/tensor/tensor.js";

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tasks: { type: "string", default: "piqa,arc_easy" },
    limit: { type: "string", default: "100" },
    rounds: { type: "string", default: "3" },
    threads: { type: "string" },
    step: { type: "string" },
    precision: { type: "string", default: "f32" },
    ways: { type: "string", default: "" },
  },
});

const precision: Precision = flags.precision === "bf16" ? "bf16" : "f32";

/** Log-likelihood of a continuation from a forward pass of its own. */
function scoreAlone(model: LanguageModel, pair: EncodedPair, everyLogit: boolean): number {
  using g = new Graph(model.backend, { precision });
  const ids = Int32Array.from([...pair.context, ...pair.continuation]).slice(0, -1);
  const { length } = pair.continuation;
  const hidden = model.hidden(g, ids);
  const first = ids.length - length;
  const scored = Int32Array.from({ length }, (_, i) => first + i);
  const rows = everyLogit ? hidden : gatherRows(g, hidden, g.indices(scored));
  const targets = new Int32Array(rows.rows).fill(-1);
  targets.set(pair.continuation, rows.rows - length);
  const nll = g.read(negativeLogLikelihood(g, model.logits(g, rows), g.indices(targets)));
  return -Array.from(nll).reduce((sum, x) => sum + x, 0);
}

/** The same by one step of the engine, logits of every position. */
async function scoreAloneInEngine(
  executor: Executor,
  { context, continuation }: EncodedPair,
): Promise<number> {
  const ids = Int32Array.from([...context, ...continuation]).slice(0, -1);
  const pages = Int32Array.from(
    { length: Math.ceil(ids.length / executor.pageTokens) },
    (_, i) => i,
  );
  executor.reserve(pages.length);
  const [logits] = await executor.step([{ tokens: ids, start: 0, pages, logits: "all" }]);
  if (!logits) throw new Error("no logits");
  const { vocabSize } = executor.shape;
  const first = ids.length - continuation.length;
  let sum = 0;
  for (const [t, token] of continuation.entries()) {
    const row = logits.subarray((first + t) * vocabSize, (first + t + 1) * vocabSize);
    const top = row.reduce((a, b) => Math.max(a, b));
    sum += row[token] - top - Math.log(row.reduce((total, x) => total + Math.exp(x - top), 0));
  }
  return sum;
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

/** Median seconds of each way over the items of one task. */
async function measure(
  backend: Backend,
  path: string,
  data: TaskData,
): Promise<ReadonlyMap<string, number>> {
  using loaded = loadModel(backend, path);
  const tokenizer = loadTokenizer(loaded.checkpoint);
  const { model } = loaded;
  using executor = openIntegerExecutor(path, {
    threads: flags.threads === undefined ? undefined : Number(flags.threads),
  });
  const alone =
    (everyLogit: boolean) =>
    ({ items }: TaskData): number => {
      const encode = pairEncoder(tokenizer);
      return items.filter(({ options, gold }) => {
        const sums = options.map(({ context, continuation }) =>
          scoreAlone(model, encode(context, continuation), everyLogit),
        );
        return sums.indexOf(Math.max(...sums)) === gold;
      }).length;
    };
  const allWays: Record<string, (data: TaskData) => number | Promise<number>> = {
    "each choice separately, every logit": alone(true),
    "each choice separately, needed logits": alone(false),
    "shared beginnings, batched": async (some) => {
      const tokensPerStep = flags.step === undefined ? undefined : Number(flags.step);
      const { metrics } = await evaluateTask(model, tokenizer, some, { tokensPerStep, precision });
      return Math.round((metrics.acc?.value ?? 0) * some.items.length);
    },
    "engine: each choice separately": async ({ items }) => {
      const encode = pairEncoder(tokenizer);
      let right = 0;
      for (const { options, gold } of items) {
        const sums: number[] = [];
        for (const { context, continuation } of options)
          sums.push(await scoreAloneInEngine(executor, encode(context, continuation)));
        if (sums.indexOf(Math.max(...sums)) === gold) right++;
      }
      return right;
    },
    "engine: contexts shared by pages, batched": async (some) => {
      const { metrics } = await evaluateTask(model, tokenizer, some, { executor });
      return Math.round((metrics.acc?.value ?? 0) * some.items.length);
    },
  };
  const ways = Object.fromEntries(
    Object.entries(allWays).filter(([name]) => name.includes(flags.ways)),
  );
  const few = { ...data, items: data.items.slice(0, 4) };
  for (const way of Object.values(ways)) await way(few);
  const seconds = new Map<string, number[]>(Object.keys(ways).map((name) => [name, []]));
  const right = new Map<string, number>();
  for (let round = 0; round < Number(flags.rounds); round++)
    for (const [name, way] of Object.entries(ways)) {
      const started = performance.now();
      right.set(name, await way(data));
      seconds.get(name)?.push((performance.now() - started) / 1000);
    }
  const medians = new Map([...seconds].map(([name, times]) => [name, median(times)]));
  const [slowest] = medians.values();
  const rows = [...seconds].map(([name, times]) => [
    name,
    right.get(name),
    data.items.length / median(times),
    `${Math.min(...times).toFixed(2)}–${Math.max(...times).toFixed(2)}`,
    slowest / median(times),
  ]);
  print(`\n${data.task.name}, first ${data.items.length} of ${data.available} items`);
  print(
    formatTable(
      [
        "way",
        "right",
        { title: "items/s", decimals: 2 },
        "seconds (min–max)",
        { title: "×", decimals: 2 },
      ],
      rows,
    ),
  );
  return medians;
}

const [path] = positionals;
if (!path) throw new Error("usage: npx tsx bench/zero-shot.ts MODEL [--tasks LIST] [--limit N]");
using backend = openBackend({
  threads: flags.threads === undefined ? undefined : Number(flags.threads),
});
print(`planish ${packageVersion()}, ${backend.description}, ${precision}, ${path}`);
const totals = new Map<string, number>();
let items = 0;
for (const source of parseTasks(flags.tasks)) {
  const data = await readTask(source, { limit: Number(flags.limit) });
  items += data.items.length;
  for (const [name, seconds] of await measure(backend, path, data))
    totals.set(name, (totals.get(name) ?? 0) + seconds);
}
const [first] = totals.values();
print(`\nall tasks, ${items} items`);
print(
  formatTable(
    ["way", { title: "items/s", decimals: 2 }, { title: "×", decimals: 2 }],
    [...totals].map(([name, seconds]) => [name, items / seconds, first / seconds]),
  ),
);
