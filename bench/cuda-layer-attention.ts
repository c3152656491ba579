/**
 * Ways of decoding's attention in turns (`cuda-layer.ts --attention WAY,WAY…`): microseconds per layer at batches 1, 16 and
 * 64, 2048 cached tokens per sequence, each way in a graph of its own. A way is `registers` or `ringN` (N pages per warp in
 * shared memory), then what is else chosen: `xW` warps per block, `@S` splits of a sequence, `/B` blocks that share them; for
 * example `ring4x2` or `ring2@8/2`.
 */
import { PlanishError } from "../src/common/errors.js";
import { pageLayout } from "../src/backend/cuda/infer/layout.js";
import { filledCaches } from "./cuda-layer-quantized.js";
import {
  CACHED,
  HEADS,
  HEAD_DIM,
  HIDDEN,
  LAYERS,
  SHAPE,
  capture,
  clips,
  device,
  driver,
  kernels,
  print,
  spaceFor,
  stepOf,
  stream,
  tablesOf,
  taken,
  timed,
} from "./cuda-layer-setup.js";

interface Way {
  readonly name: string;
  readonly ring: number;
  readonly warps?: number;
  readonly splits?: number;
  readonly shares?: number;
}

function parseWay(name: string): Way {
  const found = /^(?:registers|ring(\d+))(?:x(\d+))?(?:@(\d+))?(?:\/(\d+))?$/.exec(name);
  if (!found)
    throw new PlanishError(
      `--attention got ${name}; give registers or ringN, with xWARPS, @SPLITS and /BLOCKS if wanted`,
    );
  const [ring, warps, splits, shares] = found
    .slice(1)
    .map((digits: string | undefined) => (digits === undefined ? undefined : Number(digits)));
  return { name, ring: ring ?? 0, warps, splits, shares };
}

/** Prints a table; ways with the same splits and warps must give the same bits, and are told apart where they do not. */
export function attentionWays(list: string, results: Record<string, number | string>): void {
  const ways = list.split(",").map(parseWay);
  const pageBytes = HEADS * pageLayout(HEAD_DIM, 4).bytes;
  const nothing = () => undefined;
  for (const batch of [1, 16, 64]) {
    const step = stepOf(batch, 1, CACHED);
    const { buffers } = spaceFor(batch, false);
    const caches = filledCaches(batch, 4);
    kernels.randomFill(buffers.a, batch * 3 * HIDDEN, "floats", batch);
    for (const cache of caches)
      kernels.queriesKeysValues({
        ...SHAPE,
        kept: 4,
        ...tablesOf(step),
        q: buffers.a,
        qStride: 3 * HIDDEN,
        k: buffers.a + 4 * HIDDEN,
        v: buffers.a + 8 * HIDDEN,
        kvStride: 3 * HIDDEN,
        halves: false,
        factors: clips,
        levels: 15,
        out: buffers.q,
        outHalves: false,
        cache,
        pageBytes,
        taskRows: step.taskRows,
      });
    const read = batch * HEADS * (CACHED / 64 + 1) * pageLayout(HEAD_DIM, 4).bytes;
    const plans = ways.map((way) => {
      const shape = { ...SHAPE, kept: 4 as const, ring: way.ring, warps: way.warps };
      const splits = way.splits ?? kernels.splitsFor(shape, batch, step.pagesEach);
      const layer = (i: number) => {
        kernels.attendDecode({
          ...shape,
          q: buffers.q,
          pages: step.pages,
          window: 0,
          scale: 1 / Math.sqrt(HEAD_DIM),
          cache: caches[i],
          pageBytes,
          sequences: step.table,
          count: batch,
          splits,
          shares: way.shares,
          partial: buffers.partial,
        });
      };
      const graph = capture(() => {
        for (let i = 0; i < LAYERS; i++) layer(i);
      });
      return { way, splits, layer, graph };
    });
    const graphs = plans.map(({ graph }) => graph);
    const times = timed(graphs, nothing).map((time) => time / LAYERS);
    const firsts = new Map<string, Uint8Array>();
    plans.forEach(({ way, splits, layer }, i) => {
      const bytes = batch * HEADS * splits * (HEAD_DIM + 2) * 4;
      driver.fillBytes(buffers.partial, 0xff, bytes, stream);
      layer(0);
      const bits = device.read(buffers.partial, new Uint8Array(bytes));
      const key = `${splits} ${way.warps ?? 4}`;
      const first = firsts.get(key) ?? bits;
      firsts.set(key, first);
      const same = bits.every((byte, at) => byte === first[at]);
      print(
        `attention, batch ${batch}, ${way.name.padEnd(14)} ${String(splits).padStart(2)} splits ` +
          `${times[i].toFixed(1).padStart(7)} µs, ${(read / times[i] / 1e6).toFixed(2)} TB/s${same ? "" : "  OTHER BITS"}`,
      );
      results[`attention, batch ${batch}: ${way.name}`] = times[i];
    });
    graphs.forEach((graph) => driver.destroyGraph(graph));
    device.synchronize();
    for (const pointer of taken.splice(0)) device.free(pointer);
  }
}
