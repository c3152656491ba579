/** Executors of models that carry states: rows depend on what came before them and on nothing else. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { createCpuBackend } from "../../src/backend/cpu/train/backend.js";
import type { Chunk, Executor } from "../../src/backend/contract/inference.js";
import { openIntegerExecutor } from "../../src/engine/processor.js";
import { pagesFor } from "../../src/engine/open-executor.js";
import { SimulatedExecutor } from "../../src/engine/simulated-executor.js";
import { loadModel } from "../../src/quantize/artifact/load.js";

const path = (name: string): string => join(import.meta.dirname, "../fixtures/architectures", name);

function simulated(name: string): Executor {
  const backend = createCpuBackend();
  return new SimulatedExecutor(loadModel(backend, path(name)).model, "test");
}

const FIXTURES = ["qwen3.5", "lfm2", "falcon-h1", "nemotron-h"];
const EXECUTORS = {
  cpu: (name: string) => openIntegerExecutor(path(name)),
  simulated,
};
const cases = FIXTURES.flatMap((name) =>
  Object.entries(EXECUTORS)
    // Nemotron's experts see few rows, and the tape's products of few rows sum in an order of their own.
    .filter(([kind]) => kind === "cpu" || name !== "nemotron-h")
    .map(([kind, open]) => [name, kind, open] as const),
);

const tokens = (length: number, seed: number): Int32Array =>
  Int32Array.from({ length }, (_, i) => (7 + seed * 13 + i * i * 5) % 100);

describe.each(cases)("%s on %s", (name, _kind, open) => {
  const executor = open(name);
  const LENGTH = 90;
  const [a, b] = [tokens(LENGTH, 0), tokens(LENGTH, 1)];
  const pagesOf = (sequence: number): Int32Array => {
    const count = Math.ceil(LENGTH / executor.pageTokens);
    return Int32Array.from({ length: count }, (_, i) => sequence * count + count - 1 - i);
  };
  const chunk = (ids: Int32Array, from: number, to: number, sequence: number): Chunk => ({
    ...{ tokens: ids.slice(from, to), start: from, pages: pagesOf(sequence), state: sequence },
    logits: "all",
  });
  const fresh = () => executor.reserve(4 * Math.ceil(LENGTH / executor.pageTokens), 4);
  const alone = async (ids: Int32Array): Promise<readonly number[]> => {
    fresh();
    return [...((await executor.step([chunk(ids, 0, LENGTH, 0)]))[0] ?? [])];
  };

  it("gives a row the same bits in chunks, beside others, and after another sequence", async () => {
    const [wholeA, wholeB] = [await alone(a), await alone(b)];
    fresh();
    const [partsA, partsB]: [number[], number[]] = [[], []];
    // A state is used twice: the first sequence leaves nothing behind in it.
    await executor.step([chunk(b, 0, 7, 2)]);
    const cuts: readonly (readonly [number, number, number, number])[] = [
      [0, 1, 0, 40],
      [1, 3, 40, 41],
      [3, 70, 41, 42],
      [70, LENGTH, 42, LENGTH],
    ];
    for (const [fromA, toA, fromB, toB] of cuts) {
      const [x, y] = await executor.step([chunk(a, fromA, toA, 2), chunk(b, fromB, toB, 1)]);
      partsA.push(...(x ?? []));
      partsB.push(...(y ?? []));
    }
    expect(partsA).toEqual(wholeA);
    expect(partsB).toEqual(wholeB);
  });

  it("goes on twice from a copy", async () => {
    const half = 33;
    const other = Int32Array.from([...a.subarray(0, half), ...b.subarray(half)]);
    const [wholeA, wholeOther] = [await alone(a), await alone(other)];
    fresh();
    const [first] = await executor.step([chunk(a, 0, half, 0)]);
    executor.copyState?.(0, 3);
    pagesOf(0).forEach((page, i) => executor.copyPage(page, pagesOf(3)[i]));
    const [restA, restOther] = await executor.step([
      chunk(a, half, LENGTH, 0),
      chunk(other, half, LENGTH, 3),
    ]);
    expect([...(first ?? []), ...(restA ?? [])]).toEqual(wholeA);
    expect([...(first ?? []), ...(restOther ?? [])]).toEqual(wholeOther);
  });

  it("refuses what would go on from another state", async () => {
    fresh();
    await executor.step([chunk(a, 0, 10, 0)]);
    const refused = (chunks: readonly Chunk[]) => expect(executor.step(chunks)).rejects;
    await refused([chunk(a, 9, 12, 0)]).toThrow(
      /starts at position 9, and its state 0 stands at 10/,
    );
    await refused([chunk(a, 10, 12, 1)]).toThrow(/its state 1 stands nowhere|stands at 0/);
    await refused([chunk(a, 10, 12, 0), { ...chunk(b, 0, 3, 1), state: 0 }]).toThrow(
      /two sequences of a step have the state 0/,
    );
    await refused([{ ...chunk(a, 0, 3, 1), state: 4 }]).toThrow(/state 4 does not exist; 4 are/);
    // Nothing was computed: the sequence goes on.
    expect((await executor.step([chunk(a, 10, 12, 0)]))[0]).toBeDefined();
  });

  it("takes room for states from the cache's", () => {
    const { bytesPerState = 0, bytesPerPage } = executor;
    expect(bytesPerState).toBeGreaterThan(0);
    const kvMemory = 3 * bytesPerState + 2 * bytesPerPage;
    expect(pagesFor(executor, { kvMemory, maxRunning: 3 })).toBe(2);
    expect(() => pagesFor(executor, { kvMemory, maxRunning: 99 })).toThrow(
      /99 sequences at once need .* for the states of recurrent layers/,
    );
  });
});
