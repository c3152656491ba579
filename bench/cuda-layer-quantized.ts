/** The quantized layer of cuda-layer.ts: weights, the calls of a step, caches with what came before it. */
import type { DevicePointer } from "../src/backend/cuda/driver.js";
import type { EngineKernels } from "../src/backend/cuda/infer/kernels.js";
import {
  featureTiles,
  packedBytes,
  pageLayout,
  siteGeometry,
  type FeatureOrder,
  type SiteShape,
} from "../src/backend/cuda/infer/layout.js";
import {
  CACHED,
  EPSILON,
  HEADS,
  HEAD_DIM,
  HIDDEN,
  INTERMEDIATE,
  LAYERS,
  SHAPE,
  clips,
  device,
  kernels,
  matrix,
  ones,
  plain,
  random,
  stepOf,
  tablesOf,
  take,
  type Calls,
  type Space,
  type Step,
} from "./cuda-layer-setup.js";

interface Linear {
  readonly order: FeatureOrder;
  readonly columns: number;
  readonly weights: DevicePointer;
  readonly scale: DevicePointer;
}

function quantizedLinear(rows: number, columns: number, gated = false): Linear {
  const order = { rows, gated };
  const scale = new Float32Array(featureTiles(order) * 256).fill(0.06 / Math.sqrt(columns));
  return {
    order,
    columns,
    weights: random("bytes", packedBytes(order, columns, 4)),
    scale: device.put(scale),
  };
}

interface Site {
  readonly shape: SiteShape;
  /** Without matrices. */
  readonly bare: SiteShape;
  readonly left?: DevicePointer;
  readonly right?: DevicePointer;
}

function siteOf(left: number, right: number, hasRight: boolean): Site {
  const shape = { left, right, hasLeft: true, hasRight };
  const { rows, columns } = siteGeometry(shape);
  return {
    shape,
    bare: { left, right, hasLeft: false, hasRight: false },
    left: matrix(left, rows),
    right: hasRight ? matrix(right, columns) : undefined,
  };
}

export interface QuantizedLayer {
  readonly gains: readonly [DevicePointer, DevicePointer];
  readonly sites: Readonly<Record<"attnIn" | "attnOut" | "mlpIn" | "mlpDown", Site>>;
  readonly linears: Readonly<Record<"qkv" | "o" | "gateUp" | "down", Linear>>;
  readonly qMatrix: DevicePointer;
  readonly kMatrix: DevicePointer;
}

export function quantizedLayer(): QuantizedLayer {
  return {
    gains: [ones, ones],
    sites: {
      attnIn: siteOf(64, 64, true),
      attnOut: siteOf(HEADS, HEAD_DIM, false),
      mlpIn: siteOf(64, 64, true),
      mlpDown: siteOf(86, 128, true),
    },
    linears: {
      qkv: quantizedLinear(3 * HIDDEN, HIDDEN),
      o: quantizedLinear(HIDDEN, HIDDEN),
      gateUp: quantizedLinear(2 * INTERMEDIATE, HIDDEN, true),
      down: quantizedLinear(HIDDEN, INTERMEDIATE),
    },
    qMatrix: matrix(HEAD_DIM, HEAD_DIM),
    kMatrix: matrix(HEAD_DIM, HEAD_DIM),
  };
}

export interface Options {
  /** Kronecker transforms, P_o and P_k. */
  readonly transforms: boolean;
  /** Rows of transforms as sums of two halves. */
  readonly precise: boolean;
  /** Intermediate activations as halves (prefill) or f32. */
  readonly halves: boolean;
  /** Clips, and so a set of codes, for each of q, k, v, gate and up, as artifacts of FlatQuant have; else one for each site. */
  readonly perLinear?: boolean;
}

/** Tile at which the second half of gate's and up's rows begins, and one that no product has. */
const UP_TILE = INTERMEDIATE / 256;
const NO_TILE = 2 ** 40;

/** Operations for each row of the products that `quantizedCalls` names. */
export function productOperations({ linears }: QuantizedLayer): ReadonlyMap<string, number> {
  const { qkv, o, gateUp, down } = linears;
  return new Map(
    Object.entries({ qkv, o, gate_up: gateUp, down }).map(([name, { order, columns }]) => [
      `gemm ${name}`,
      2 * order.rows * columns,
    ]),
  );
}

/** The calls of one quantized layer, by name. */
export function quantizedCalls(
  k: EngineKernels,
  layer: QuantizedLayer,
  cache: DevicePointer,
  step: Step,
  space: Space,
  options: Options,
): Calls {
  const { rows } = step;
  const { x, buffers, capacity } = space;
  const { a, b, q, codes, scales, partial } = buffers;
  const decoding = rows === step.sequences;
  const { halves, transforms, precise, perLinear = false } = options;
  const pageBytes = HEADS * pageLayout(HEAD_DIM, 4).bytes;
  const width = halves ? 2 : 4;
  const splits = decoding ? k.splitsFor({ ...SHAPE, kept: 4 }, step.sequences, step.pagesEach) : 1;
  const at = { codes, tokenScale: scales, tokens: rows, capacity };
  const shared = { tokens: rows, clips, sets: 1, capacity, codes, scales, bits: 4, precise };
  const site = (name: "attnIn" | "attnOut" | "mlpIn" | "mlpDown") => {
    const { shape, bare, left, right } = layer.sites[name];
    const sets = !perLinear ? 1 : name === "attnIn" ? 3 : name === "mlpIn" ? 2 : 1;
    const common = { ...shared, sets };
    return transforms ? { ...common, shape, left, right } : { ...common, shape: bare };
  };
  const linear = (name: "qkv" | "o" | "gateUp" | "down") => {
    const { order, columns, weights, scale } = layer.linears[name];
    const widths = { bits: 4, activationBits: 4 } as const;
    return { ...at, ...widths, order, columns, weights, featureScale: scale, plain };
  };
  const scale = 1 / Math.sqrt(SHAPE.headDim);
  const common = {
    ...SHAPE,
    kept: 4 as const,
    pages: step.pages,
    window: 0,
    scale,
    cache,
    pageBytes,
  };
  return [
    [
      "site attn_in",
      () =>
        k.site({
          ...site("attnIn"),
          input: "rms",
          x,
          stride: HIDDEN,
          gain: layer.gains[0],
          epsilon: EPSILON,
        }),
    ],
    [
      "gemm qkv",
      () =>
        k.gemm({
          ...linear("qkv"),
          out: a,
          outStride: 3 * HIDDEN,
          halves,
          setTiles: perLinear ? [HIDDEN / 256, (2 * HIDDEN) / 256] : undefined,
        }),
    ],
    [
      "heads",
      () =>
        k.queriesKeysValues({
          ...SHAPE,
          kept: 4,
          ...tablesOf(step),
          q: a,
          qStride: 3 * HIDDEN,
          k: a + HIDDEN * width,
          v: a + 2 * HIDDEN * width,
          kvStride: 3 * HIDDEN,
          halves,
          cosine: step.cosine,
          sine: step.sine,
          qMatrix: transforms ? layer.qMatrix : undefined,
          kMatrix: transforms ? layer.kMatrix : undefined,
          factors: clips,
          levels: 15,
          out: q,
          outHalves: !decoding,
          cache,
          pageBytes,
          taskRows: step.taskRows,
        }),
    ],
    [
      "attention",
      () => {
        if (decoding)
          k.attendDecode({
            ...common,
            q,
            sequences: step.table,
            count: step.sequences,
            splits,
            partial,
          });
        else
          k.attendPrefill({
            ...common,
            q,
            blocks: step.blocks,
            blockCount: step.blockCount,
            out: b,
            outHalves: halves,
          });
      },
    ],
    [
      "site attn_out",
      () => {
        if (decoding)
          k.site({ ...site("attnOut"), input: "splits", x: partial, stride: 0, splits });
        else k.site({ ...site("attnOut"), input: "plain", x: b, stride: HIDDEN, halves });
      },
    ],
    ["gemm o", () => k.gemm({ ...linear("o"), out: x, outStride: HIDDEN, accumulate: true })],
    [
      "site mlp_in",
      () =>
        k.site({
          ...site("mlpIn"),
          input: "rms",
          x,
          stride: HIDDEN,
          gain: layer.gains[1],
          epsilon: EPSILON,
        }),
    ],
    [
      "gemm gate_up",
      () => {
        const apart = {
          order: { rows: 2 * INTERMEDIATE, gated: false },
          out: a,
          outStride: 2 * INTERMEDIATE,
          setTiles: [UP_TILE, NO_TILE],
        } as const;
        const together = { out: b, outStride: INTERMEDIATE };
        k.gemm({ ...linear("gateUp"), ...(perLinear ? apart : together), halves });
      },
    ],
    [
      "site mlp_down",
      () => {
        const from = perLinear
          ? ({
              input: "gated",
              x: a,
              x2: a + INTERMEDIATE * width,
              stride: 2 * INTERMEDIATE,
            } as const)
          : ({ input: "plain", x: b, stride: INTERMEDIATE } as const);
        k.site({ ...site("mlpDown"), ...from, halves });
      },
    ],
    ["gemm down", () => k.gemm({ ...linear("down"), out: x, outStride: HIDDEN, accumulate: true })],
  ];
}

export const runAll = (layers: readonly Calls[], only?: string) => {
  for (const calls of layers)
    for (const [name, call] of calls) if (only === undefined || only === name) call();
};

/** A cache of every layer with CACHED positions written by the kernel itself, and room for one token more. */
export function filledCaches(sequences: number, kept: 4 | 16): DevicePointer[] {
  const pageBytes = HEADS * pageLayout(HEAD_DIM, kept).bytes;
  const kv = random("halves", CACHED * HIDDEN);
  const out = device.allocate(CACHED * HIDDEN * 2);
  const caches = Array.from({ length: LAYERS }, () => take(sequences * 33 * pageBytes));
  for (let s = 0; s < sequences; s++) {
    const step = stepOf(1, CACHED, 0, s);
    for (const cache of caches)
      kernels.queriesKeysValues({
        ...SHAPE,
        kept,
        ...tablesOf(step),
        q: kv,
        qStride: HIDDEN,
        k: kv,
        v: kv,
        kvStride: HIDDEN,
        halves: true,
        factors: clips,
        levels: 15,
        out,
        outHalves: true,
        cache,
        pageBytes,
      });
    for (const pointer of [
      step.tasks,
      step.pageOf,
      step.slotOf,
      step.cosine,
      step.sine,
      step.pages,
      step.table,
      step.blocks,
    ])
      device.free(pointer);
  }
  device.free(kv);
  device.free(out);
  return caches;
}
