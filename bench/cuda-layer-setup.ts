/**
 * What the bench of a LLaMA-2-7B-shaped layer (cuda-layer.ts) runs on: the device, timing, the rows of a step, buffers.
 */
import { CublasLt } from "../src/backend/cuda/train/cublaslt.js";
import type { DevicePointer, GraphExecutable } from "../src/backend/cuda/driver.js";
import { CudaEngineDevice } from "../src/backend/cuda/infer/device.js";
import { codeBytes, PAGE_TOKENS, paddedHalves, roundUp } from "../src/backend/cuda/infer/layout.js";
import { decodeTaskRows } from "../src/backend/cuda/infer/tables.js";
import type { PlainProduct } from "../src/backend/cuda/infer/requests.js";

export const HIDDEN = 4096;
export const INTERMEDIATE = 11008;
export const HEADS = 32;
export const HEAD_DIM = 128;
const layersAt = process.argv.indexOf("--layers");
/** With 12, not only the weights but the 4-bit caches of single sequences are more than the L2 cache holds. */
export const LAYERS = layersAt > 0 ? Number(process.argv[layersAt + 1]) : 4;
if (!(Number.isInteger(LAYERS) && LAYERS > 0)) {
  process.stderr.write(
    `cuda-layer: --layers got ${process.argv[layersAt + 1]}; give a whole number of 1 or more\n`,
  );
  process.exit(2);
}
const ways: readonly string[] = ["mma-s4", "mma-s8", "dp4a"] satisfies PlainProduct[];
const isWay = (word: string): word is PlainProduct => ways.includes(word);
const productAt = process.argv.indexOf("--product");
const asked = productAt > 0 ? (process.argv[productAt + 1] ?? "") : undefined;
if (asked !== undefined && !isWay(asked)) {
  process.stderr.write(`cuda-layer: --product got "${asked}"; give one of ${ways.join(", ")}\n`);
  process.exit(2);
}
/** How integer products are computed, instead of what suits the GPU. */
export const plain = asked;
export const CACHED = 2048;
export const EPSILON = 1e-5;

export const print = (line: string) => process.stdout.write(`${line}\n`);

export const quick = process.argv.includes("--quick");

/** Made for the bench, and disposed of by it. */
export const device = new CudaEngineDevice();
export const { driver, stream, kernels } = device;
export const blas = new CublasLt(driver, stream);

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

let seed = 1;
/** For data that no other data equals. */
export const nextSeed = () => seed++;

export function random(
  kind: "bytes" | "halves" | "floats",
  count: number,
  deviation = 1,
): DevicePointer {
  const pointer = device.allocate(count * { bytes: 1, halves: 2, floats: 4 }[kind]);
  kernels.randomFill(pointer, count, kind, nextSeed(), deviation);
  return pointer;
}

const start = driver.createEvent();
const end = driver.createEvent();

/** Medians in microseconds of several graphs, run in turn. `prepare` is not timed. */
export function timed(
  graphs: readonly GraphExecutable[],
  prepare: () => void,
  rounds = quick ? 7 : 21,
): number[] {
  const samples = graphs.map((): number[] => []);
  for (let round = -2; round < rounds; round++)
    graphs.forEach((graph, i) => {
      prepare();
      driver.record(start, stream);
      driver.launchGraph(graph, stream);
      driver.record(end, stream);
      device.synchronize();
      if (round >= 0) samples[i].push(driver.elapsed(start, end) * 1000);
    });
  return samples.map(median);
}

export function capture(enqueue: () => void): GraphExecutable {
  // Kernels are compiled and products planned before the capture, which must not wait for the device.
  enqueue();
  device.synchronize();
  return driver.capture(stream, enqueue);
}

/** A square matrix with orthogonal-like entries, padded for the site kernel. */
export function matrix(size: number, padded: number): DevicePointer {
  const values = Float32Array.from(
    { length: size * size },
    () => (Math.random() - 0.5) * Math.sqrt(12 / size),
  );
  return device.put(paddedHalves(values, size, padded));
}

export const ones = device.put(new Float32Array(INTERMEDIATE).fill(1));
export const halfOnes = device.put(new Uint16Array(INTERMEDIATE).fill(0x3c00));
export const clips = device.put(new Float32Array(8).fill(0.98));

/** The rows of a step: `sequences` of `rows` tokens each at `position`, with pages of their own. */
export interface Step {
  readonly rows: number;
  readonly sequences: number;
  readonly position: number;
  readonly pagesEach: number;
  readonly tasks: DevicePointer;
  readonly taskCount: number;
  /** Rows of the longest task. */
  readonly taskRows: number;
  readonly pageOf: DevicePointer;
  readonly slotOf: DevicePointer;
  readonly cosine: DevicePointer;
  readonly sine: DevicePointer;
  readonly pages: DevicePointer;
  readonly table: DevicePointer;
  readonly blocks: DevicePointer;
  readonly blockCount: number;
}

/** Which rows of a step its heads take, and where their keys and values go. */
export function tablesOf({ tasks, taskCount, pageOf, slotOf }: Step) {
  return { tasks, taskCount, pageOf, slotOf };
}

export function stepOf(sequences: number, each: number, position: number, first = 0): Step {
  const rows = sequences * each;
  const pagesEach = Math.ceil((position + each) / PAGE_TOKENS);
  const positionOf = (row: number) => position + (row % each);
  const pageOf = (row: number) => (first + Math.floor(row / each)) * 33 + (positionOf(row) >> 6);
  const half = HEAD_DIM / 2;
  const angle = (i: number) => positionOf(Math.floor(i / half)) / 10000 ** ((i % half) / half);
  const table = (length: number, of: (i: number) => number) =>
    device.put(Float32Array.from({ length }, (_, i) => of(i)));
  const integers = (length: number, of: (i: number) => number) =>
    device.put(Int32Array.from({ length }, (_, i) => of(i)));
  // Prefill from position 0: a page per task. Decoding: tokens of different sequences.
  const taskRows = each > 1 ? 64 : decodeTaskRows(rows);
  const taskCount = Math.ceil(rows / taskRows);
  const blocks: number[] = [];
  for (let s = 0; s < sequences; s++)
    for (let from = Math.floor((each - 1) / 128) * 128; from >= 0; from -= 128)
      blocks.push(s * each + from, Math.min(128, each - from), position + from, s * pagesEach);
  return {
    rows,
    sequences,
    position,
    pagesEach,
    tasks: integers(2 * taskCount, (i) =>
      i % 2 === 0 ? (i / 2) * taskRows : Math.min(taskRows, rows - ((i - 1) / 2) * taskRows),
    ),
    taskCount,
    taskRows,
    pageOf: integers(rows, pageOf),
    slotOf: integers(rows, (row) => positionOf(row) & 63),
    cosine: table(rows * half, (i) => Math.cos(angle(i))),
    sine: table(rows * half, (i) => Math.sin(angle(i))),
    pages: integers(
      sequences * pagesEach,
      (i) => (first + Math.floor(i / pagesEach)) * 33 + (i % pagesEach),
    ),
    table: integers(
      3 * sequences,
      (i) => [Math.floor(i / 3), position + 1, Math.floor(i / 3) * pagesEach][i % 3],
    ),
    blocks: device.put(Int32Array.from(blocks)),
    blockCount: blocks.length / 4,
  };
}

export interface Space {
  readonly x: DevicePointer;
  readonly x0: DevicePointer;
  readonly xBytes: number;
  readonly buffers: Readonly<
    Record<"a" | "b" | "q" | "codes" | "scales" | "partial", DevicePointer>
  >;
  readonly capacity: number;
}

export const taken: DevicePointer[] = [];
export function take(bytes: number): DevicePointer {
  const pointer = device.allocate(bytes);
  taken.push(pointer);
  return pointer;
}

export function spaceFor(rows: number, halves: boolean): Space {
  const capacity = rows <= 64 ? 64 : roundUp(rows, 128);
  const xBytes = rows * HIDDEN * (halves ? 2 : 4);
  const x0 = take(xBytes);
  kernels.randomFill(x0, rows * HIDDEN, halves ? "halves" : "floats", nextSeed());
  return {
    x: take(xBytes),
    x0,
    xBytes,
    buffers: {
      a: take(rows * 2 * INTERMEDIATE * 4),
      b: take(rows * INTERMEDIATE * 4),
      q: take(rows * HIDDEN * 4),
      // Three sets of codes of the states, or one of the intermediate activations.
      codes: take(Math.max(codeBytes(capacity, INTERMEDIATE), 3 * codeBytes(capacity, HIDDEN))),
      scales: take(3 * capacity * 4),
      partial: take(rows * HEADS * 32 * (HEAD_DIM + 2) * 4),
    },
    capacity,
  };
}

export const SHAPE = { headDim: HEAD_DIM, heads: HEADS, kvHeads: HEADS } as const;

export type Calls = readonly (readonly [string, () => void])[];
