/**
 * Integer products with scales of groups against their definition, and bit for bit against each other: every way to cut one
 * adds in the same order.
 */
import { orderGroups } from "../../../../../src/backend/cuda/infer/group-scales.js";
import {
  codeBytes,
  codeOffset,
  groupCount,
  orderFeatures,
  packWeights,
  roundUp,
} from "../../../../../src/backend/cuda/infer/layout.js";
import type { GroupSize } from "../../../../../src/backend/contract/scheme.js";
import {
  floats,
  fromHalf,
  generator,
  halves,
  poisoned,
  roundHalf,
  silu,
  words,
  worstOf,
  type Check,
} from "./support.js";

interface GroupCase {
  readonly tokens: number;
  readonly rows: number;
  readonly columns: number;
  readonly bits?: 4 | 8;
  readonly activationBits?: number;
  /** Columns that share a weight's scale, and an activation's. */
  readonly weights?: GroupSize;
  readonly activations?: GroupSize;
  readonly offset?: boolean;
  /** Columns of a sum of codes; the smaller of both groups when absent. */
  readonly sums?: GroupSize;
  /** Scales of weights in f32. */
  readonly single?: boolean;
  readonly gated?: boolean;
  readonly halves?: boolean;
  readonly accumulate?: boolean;
  readonly bias?: boolean;
  readonly sets?: readonly [number, number];
  /** Tiles of so many tokens instead of what is chosen, and the kernel of many tokens, give the same bits. */
  readonly tiles?: readonly number[];
}

export const groupGemm = (given: GroupCase): Check => ({
  name: words(
    `group gemm w${given.bits ?? 4}${given.weights ? `g${given.weights}` : ""}${given.offset ? "o" : ""}` +
      `a${given.activationBits ?? 4}${given.activations ? `g${given.activations}` : ""}`,
    `${given.tokens}×${given.rows}×${given.columns}`,
    given.single && "f32 scales",
    given.gated && "gated",
    given.halves && "halves",
    given.accumulate && "add",
    given.bias && "bias",
    given.sets && "sets",
    given.sums !== undefined && `sums of ${given.sums}`,
  ),
  run: (device) => {
    const { tokens, rows, columns, bits = 4, activationBits = 4, gated = false } = given;
    const { weights: ofWeights, activations: ofTokens, offset: hasOffset = false } = given;
    const next = generator(rows * 31 + columns * 7 + tokens);
    const integer = (width: number) => Math.floor(next() * 2 ** (width - 1));
    const order = { rows, gated };
    const codes = Int8Array.from({ length: rows * columns }, () => integer(bits));
    const shift = hasOffset && bits === 4 ? 8 : 0;
    const capacity = tokens <= 64 ? 64 : roundUp(tokens, 128);
    const setCount = given.sets ? 3 : 1;
    const groupsOf = (group: GroupSize | undefined) => (group ? groupCount(columns, group) : 1);
    const [wGroups, aGroups] = [columns / (ofWeights ?? columns), groupsOf(ofTokens)];
    const unit = (ofWeights && ofTokens ? Math.min(ofWeights, ofTokens) : ofWeights) ?? 128;
    const sums = given.sets || hasOffset ? (given.sums ?? (unit as GroupSize)) : undefined;
    const sumGroups = groupsOf(sums);
    const round = given.single ? (x: number) => Math.fround(x) : roundHalf;
    const wScale = Float32Array.from({ length: rows * wGroups }, () =>
      round(0.001 + Math.abs(next()) * 0.01),
    );
    const wOffset = Float32Array.from({ length: rows * wGroups }, () => round(next() * 0.05));
    const activation = Int8Array.from({ length: setCount * tokens * columns }, () =>
      integer(activationBits),
    );
    const packed = new Int8Array(setCount * codeBytes(capacity, columns)).fill(0x5d);
    const tokenScale = new Float32Array(setCount * aGroups * capacity).fill(NaN);
    const tokenSums = new Float32Array(setCount * sumGroups * capacity).fill(NaN);
    const span = ofTokens ?? roundUp(columns, 128);
    for (let s = 0; s < setCount; s++)
      for (let t = 0; t < tokens; t++) {
        const row = activation.subarray((s * tokens + t) * columns, (s * tokens + t + 1) * columns);
        for (let c = 0; c < roundUp(columns, 128); c++)
          packed[s * codeBytes(capacity, columns) + codeOffset(capacity, t, c)] = row[c] ?? 0;
        for (let g = 0; g < aGroups; g++)
          tokenScale[(s * aGroups + g) * capacity + t] = 0.01 + 0.02 * Math.abs(next());
        for (let g = 0; sums && g < sumGroups; g++) {
          const sum = row
            .subarray(g * sums, (g + 1) * sums)
            .reduce((total, code) => total + code, 0);
          const scale = tokenScale[(s * aGroups + Math.floor((g * sums) / span)) * capacity + t];
          tokenSums[(s * sumGroups + g) * capacity + t] = sum * (ofTokens ? scale : 1);
        }
      }
    const bias = given.bias ? floats(rows, next) : undefined;
    const features = gated ? rows / 2 : rows;
    const before = floats(tokens * features, next);
    const bytes = tokens * features * (given.halves ? 2 : 4);
    const stored = (values: Float32Array) => device.put(given.single ? values : halves(values));
    const inGroups = (values: Float32Array, fill: number) =>
      stored(orderGroups(values, columns, ofWeights ?? columns, order, fill));
    const request = {
      weights: device.put(packWeights(codes, columns, order, bits)),
      bits,
      activationBits,
      order,
      columns,
      codes: device.put(packed),
      tokenScale: device.put(tokenScale),
      featureScale: ofWeights ? inGroups(wScale, 1) : device.put(orderFeatures(wScale, order, 1)),
      bias: bias && device.put(orderFeatures(bias, order, 0)),
      groups: {
        weights: ofWeights,
        activations: ofTokens,
        halves: !given.single,
        offset: hasOffset ? inGroups(wOffset, 0) : undefined,
        shift,
        sums: sums && hasOffset ? { columns: sums, at: device.put(tokenSums) } : undefined,
      },
      outStride: features,
      halves: given.halves,
      accumulate: given.accumulate,
      tokens,
      capacity,
      setTiles: given.sets,
    };
    const results = (way: { readonly wide?: boolean; readonly tile?: number }) => {
      const out = given.accumulate ? device.put(before) : poisoned(device, bytes);
      device.kernels.gemm({ ...request, ...way, out });
      const raw = device.read(out, new Uint8Array(bytes));
      device.free(out);
      return raw;
    };
    const raw = results({});
    for (const way of [
      { wide: true },
      ...(given.tiles ?? []).map((tile) => ({ wide: true, tile })),
    ])
      if (!Buffer.from(results(way)).equals(Buffer.from(raw))) return Infinity;
    const got = given.halves
      ? Float64Array.from(new Uint16Array(raw.buffer), fromHalf)
      : new Float32Array(raw.buffer);
    const linear = (t: number, r: number): { value: number; size: number } => {
      const tile = Math.floor(r / 256);
      const s = given.sets ? (tile >= given.sets[1] ? 2 : tile >= given.sets[0] ? 1 : 0) : 0;
      let value = bias ? bias[r] : 0;
      let size = Math.abs(value);
      for (let g = 0; g * unit < columns; g++) {
        const column = g * unit;
        let [sum, total] = [0, 0];
        for (let c = column; c < Math.min(column + unit, columns); c++) {
          const a = activation[(s * tokens + t) * columns + c];
          sum += a * codes[r * columns + c];
          total += a;
        }
        const at = r * wGroups + (ofWeights ? Math.floor(column / ofWeights) : 0);
        const scale = tokenScale[(s * aGroups + Math.floor(column / span)) * capacity + t];
        const offset = hasOffset ? wOffset[at] + shift * wScale[at] : 0;
        value += scale * (sum * wScale[at] + total * offset);
        size += Math.abs(scale * sum * wScale[at]) + Math.abs(scale * total * offset);
      }
      return { value, size };
    };
    // A unit's integers are exact; its scales are multiplied and added with at most four roundings, of sums that are no
    // larger than all terms together; then some of an epilogue, and one to a half.
    const steps = (columns / Math.min(unit, sums ?? unit)) * 4 + 16;
    return worstOf(tokens * features, (i) => {
      const t = Math.floor(i / features);
      const f = i % features;
      let { value, size } = linear(t, f);
      if (gated) {
        const up = linear(t, features + f);
        size = (Math.abs(value) + size) * (Math.abs(up.value) + up.size);
        value = silu(value) * up.value;
      }
      if (given.accumulate) {
        size += Math.abs(before[i]);
        value += before[i];
      }
      const bound = steps * 2 ** -24 * size + (given.halves ? 2 ** -11 * Math.abs(value) : 0);
      return Math.abs(got[i] - value) / (bound + 1e-6);
    });
  },
});

export const GROUP_GEMM_CHECKS: readonly Check[] = [
  // Every width of groups, of either side alone and of both, few tokens and many.
  ...[1, 8, 13, 37, 64].flatMap((tokens) => [
    groupGemm({ tokens, rows: 256, columns: 128, weights: 64, activations: 64 }),
    groupGemm({
      tokens,
      rows: 300,
      columns: 1024,
      weights: 64,
      activationBits: 8,
      tiles: [16, 64],
    }),
  ]),
  ...([16, 32, 64, 128] as const).flatMap((group) => [
    groupGemm({ tokens: 5, rows: 300, columns: 640, weights: group, activations: group }),
    groupGemm({ tokens: 21, rows: 300, columns: 640, activations: group, tiles: [64] }),
    groupGemm({
      tokens: 150,
      rows: 300,
      columns: 640,
      weights: group,
      activationBits: 8,
      tiles: [128],
    }),
    groupGemm({
      tokens: 3,
      rows: 130,
      columns: 640,
      weights: group,
      offset: true,
      activationBits: 8,
    }),
    groupGemm({
      tokens: 40,
      rows: 130,
      columns: 640,
      weights: group,
      offset: true,
      activations: 64,
    }),
  ]),
  groupGemm({ tokens: 2, rows: 34, columns: 96, weights: 32, activations: 16, single: true }),
  groupGemm({
    tokens: 9,
    rows: 270,
    columns: 1152,
    weights: 128,
    activations: 32,
    bits: 8,
    activationBits: 8,
  }),
  groupGemm({ tokens: 7, rows: 600, columns: 2048, weights: 64, activations: 64, gated: true }),
  groupGemm({
    tokens: 16,
    rows: 400,
    columns: 2112,
    weights: 32,
    activations: 32,
    gated: true,
    halves: true,
  }),
  groupGemm({
    tokens: 64,
    rows: 256,
    columns: 1344,
    weights: 64,
    activations: 64,
    accumulate: true,
    bias: true,
  }),
  groupGemm({
    tokens: 1,
    rows: 512,
    columns: 11008,
    weights: 64,
    activations: 64,
    accumulate: true,
    bias: true,
  }),
  groupGemm({ tokens: 9, rows: 768, columns: 256, weights: 64, activations: 64, sets: [1, 2] }),
  groupGemm({
    tokens: 33,
    rows: 768,
    columns: 256,
    weights: 32,
    activations: 64,
    activationBits: 8,
    offset: true,
    sets: [1, 2],
    bias: true,
  }),
  groupGemm({
    tokens: 4,
    rows: 300,
    columns: 512,
    weights: 32,
    offset: true,
    sums: 16,
    activationBits: 8,
  }),
  groupGemm({
    tokens: 70,
    rows: 300,
    columns: 512,
    weights: 64,
    offset: true,
    sums: 16,
    single: true,
    bits: 8,
  }),
  groupGemm({
    tokens: 12,
    rows: 9000,
    columns: 512,
    weights: 64,
    activations: 64,
    gated: true,
    halves: true,
  }),
  // Whole tiles for every multiprocessor, and tiles of 128 tokens.
  groupGemm({ tokens: 300, rows: 5000, columns: 192, weights: 64, activations: 64, tiles: [128] }),
  groupGemm({
    tokens: 270,
    rows: 9216,
    columns: 128,
    weights: 32,
    activations: 64,
    gated: true,
    halves: true,
  }),
  groupGemm({ tokens: 1, rows: 34000, columns: 128, weights: 64, activations: 64 }),
];
