/**
 * What scales of groups cost on the GPU: integer products, sites and heads of a LLaMA-2-7B-shaped layer with a scale for a
 * row, and with groups, in turns in one process, each in a captured graph of four with weights of their own. Microseconds,
 * medians of CUDA events, and how fast groups are relative to rows. `node scripts/bundle-lane.mjs groups [--quick]
 * [--json FILE]`.
 */
import { writeFileSync } from "node:fs";
import type { GroupSize } from "../src/backend/contract/scheme.js";
import type { CodeTable } from "../src/backend/cuda/infer/end-layer-kernels.js";
import { EndLayerKernels } from "../src/backend/cuda/infer/end-layer-kernels.js";
import {
  codeBytes,
  featureTiles,
  groupCount,
  packedBytes,
  siteGeometry,
  type FeatureOrder,
  type SiteGrid,
} from "../src/backend/cuda/infer/layout.js";
import type { GemmRequest } from "../src/backend/cuda/infer/requests.js";
import {
  capture,
  clips,
  device,
  HIDDEN,
  INTERMEDIATE,
  kernels,
  matrix,
  ones,
  print,
  random,
  timed,
} from "./cuda-layer-setup.js";

/** Weight sets that follow one another, so that weights come from memory. */
const SETS = 4;

interface Grids {
  readonly name: string;
  readonly weights?: GroupSize;
  readonly activations?: GroupSize;
  readonly offset?: boolean;
  readonly activationBits: 4 | 8;
  readonly tile?: number;
}

const GRIDS: readonly Grids[] = [
  { name: "w4a4", activationBits: 4 },
  { name: "w4g64a4g64", weights: 64, activations: 64, activationBits: 4 },
  { name: "w4g128a4g128", weights: 128, activations: 128, activationBits: 4 },
  { name: "w4g32a4g32", weights: 32, activations: 32, activationBits: 4 },
  { name: "w4g64a8", weights: 64, activationBits: 8 },
  { name: "w4g32oa8g64", weights: 32, activations: 64, offset: true, activationBits: 8 },
  { name: "w4g64a4g64, 128 tokens", weights: 64, activations: 64, activationBits: 4, tile: 128 },
];

const results: Record<string, Record<string, number>> = {};
const report = (title: string, names: readonly string[], times: readonly number[]) => {
  results[title] = Object.fromEntries(names.map((name, i) => [name, times[i]]));
  const cells = names.map(
    (name, i) =>
      `${name} ${times[i].toFixed(1)}${i > 0 ? ` (${(times[0] / times[i]).toFixed(2)}×)` : ""}`,
  );
  print(`${title}: ${cells.join(", ")}`);
};

function products(title: string, order: FeatureOrder, columns: number): void {
  const scales = (count: number, halves: boolean) =>
    random(halves ? "halves" : "floats", count, 0.01);
  const weights = Array.from({ length: SETS }, () =>
    random("bytes", packedBytes(order, columns, 4)),
  );
  const features = featureTiles(order) * 256;
  const rowScale = scales(features, false);
  const groupScale = scales(features * groupCount(columns, 32), true);
  for (const tokens of [1, 8, 16, 64, 512, 2048]) {
    const capacity = Math.max(64, tokens);
    const outStride = order.gated ? order.rows / 2 : order.rows;
    const codes = random("bytes", codeBytes(capacity, columns));
    const tokenScale = scales(capacity * groupCount(columns, 32), false);
    const out = device.allocate(tokens * outStride * 4);
    const wanted = GRIDS.filter(({ tile = 0 }) => tile <= tokens);
    const graphs = wanted.map(({ weights: w, activations: a, offset, activationBits, tile }) =>
      capture(() => {
        for (const packed of weights) {
          const request: GemmRequest = {
            ...{ weights: packed, bits: 4, activationBits, order, columns, codes, tokenScale },
            ...{ featureScale: w ? groupScale : rowScale, out, outStride, tokens, capacity, tile },
            groups:
              w || a
                ? {
                    weights: w,
                    activations: a,
                    halves: true,
                    offset: offset ? groupScale : undefined,
                    shift: 8,
                    sums: offset ? { columns: 32, at: tokenScale } : undefined,
                  }
                : undefined,
          };
          kernels.gemm(request);
        }
      }),
    );
    const times = timed(graphs, () => undefined).map((time) => time / SETS);
    report(
      `${title} × ${tokens}`,
      wanted.map(({ name }) => name),
      times,
    );
    for (const graph of graphs) device.driver.destroyGraph(graph);
    for (const pointer of [codes, tokenScale, out]) device.free(pointer);
  }
  for (const pointer of [...weights, rowScale, groupScale]) device.free(pointer);
}

function sites(title: string, left: number, right: number, input: "rms" | "plain"): void {
  const shape = { left, right, hasLeft: true, hasRight: true };
  const { rows, columns } = siteGeometry(shape);
  const [ofLeft, ofRight] = [matrix(left, rows), matrix(right, columns)];
  const width = left * right;
  const grids: readonly (readonly [string, SiteGrid])[] = [
    ["a token", {}],
    ["groups of 64", { span: 64 }],
    ["groups of 64, sums", { span: 64, sums: 32 }],
    ["groups of 128", { span: 128 }],
  ];
  for (const tokens of [1, 64, 2048]) {
    const capacity = Math.max(64, tokens);
    const x = random("floats", tokens * width);
    const codes = device.allocate(codeBytes(capacity, width));
    const scales = device.allocate(capacity * groupCount(width, 32) * 4);
    const sums = device.allocate(capacity * groupCount(width, 32) * 4);
    const graphs = grids.map(([, grid]) =>
      capture(() => {
        for (let i = 0; i < SETS; i++)
          kernels.site({
            ...{ shape, input, x, tokens, stride: width, gain: ones, epsilon: 1e-5 },
            ...{ left: ofLeft, right: ofRight, clips, sets: 1, capacity, codes, scales, sums },
            ...{ bits: 4, precise: true, grid },
          });
      }),
    );
    const times = timed(graphs, () => undefined).map((time) => time / SETS);
    report(
      `site ${title} × ${tokens}`,
      grids.map(([name]) => name),
      times,
    );
    for (const graph of graphs) device.driver.destroyGraph(graph);
  }
}

function heads(vocab: number): void {
  const end = new EndLayerKernels(device);
  const halfTable = { pointer: random("halves", vocab * HIDDEN, 0.02), bf16: false };
  const codes = random("bytes", vocab * HIDDEN);
  const scale = random("halves", (vocab * HIDDEN) / 64, 0.02);
  const tables = [
    halfTable,
    ...([8, 4] as const).map((bits): CodeTable => ({
      codes,
      bits,
      group: 64,
      halves: true,
      scale,
      shift: 0,
    })),
  ];
  for (const rows of [1, 16, 64]) {
    const x = random("floats", rows * HIDDEN);
    const chosen = device.put(Int32Array.from({ length: rows }, (_, i) => i));
    const parts = device.allocate(rows * HIDDEN * 4);
    const out = device.allocate(rows * vocab * 4);
    const graphs = tables.map((table) =>
      capture(() => {
        end.logits({
          ...{ x, chosen, rows, cols: HIDDEN, gain: ones, epsilon: 1e-5, table, vocab },
          ...{ parts, out },
        });
      }),
    );
    report(
      `head of ${vocab} × ${rows}`,
      ["16 bits", "8 bits", "4 bits"],
      timed(graphs, () => undefined),
    );
  }
}

products("q, k, v", { rows: 3 * HIDDEN, gated: false }, HIDDEN);
products("o", { rows: HIDDEN, gated: false }, HIDDEN);
products("gate, up", { rows: 2 * INTERMEDIATE, gated: true }, HIDDEN);
products("down", { rows: HIDDEN, gated: false }, INTERMEDIATE);
sites("64×64", 64, 64, "rms");
sites("86×128", 86, 128, "plain");
heads(32000);
const flag = process.argv.indexOf("--json");
if (flag > 0) writeFileSync(process.argv[flag + 1], JSON.stringify(results, null, 1));
device[Symbol.dispose]();
