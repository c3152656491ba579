/** The integer products against their definition: exact sums, then some roundings. */
import {
  codeBytes,
  codeOffset,
  orderFeatures,
  packWeights,
  roundUp,
} from "../../../../../src/backend/cuda/infer/layout.js";
import type { PlainProduct } from "../../../../../src/backend/cuda/infer/requests.js";
import {
  floats,
  fromHalf,
  generator,
  poisoned,
  silu,
  words,
  worstOf,
  type Check,
} from "./support.js";

interface GemmCase {
  readonly tokens: number;
  readonly rows: number;
  readonly columns: number;
  readonly bits?: 4 | 8;
  /** Of the activations' codes; those of the weights when absent. */
  readonly activationBits?: number;
  readonly gated?: boolean;
  readonly halves?: boolean;
  readonly accumulate?: boolean;
  readonly bias?: boolean;
  /** Instead of what suits the GPU. */
  readonly plain?: PlainProduct;
  readonly tile?: number;
  readonly split?: number;
  /** Tiles at which the second and third set of codes begin. */
  readonly sets?: readonly [number, number];
}

/** One integer product. */
export const gemm = (given: GemmCase): Check => ({
  name: words(
    `gemm w${given.bits ?? 4}a${given.activationBits ?? given.bits ?? 4} ${given.tokens}×${given.rows}×${given.columns}`,
    given.gated && "gated",
    given.halves && "halves",
    given.accumulate && "add",
    given.bias && "bias",
    given.sets && "sets",
    given.split !== undefined && `split ${given.split}`,
    given.tile !== undefined && `tile ${given.tile}`,
    given.plain,
  ),
  run: (device) => {
    const { tokens, rows, columns, bits = 4, gated = false } = given;
    const { activationBits = bits } = given;
    const next = generator(rows * 31 + columns * 7 + tokens);
    const integer = (width: number) => Math.floor(next() * 2 ** (width - 1));
    const order = { rows, gated };
    const weights = Int8Array.from({ length: rows * columns }, () => integer(bits));
    const capacity = tokens <= 64 ? 64 : roundUp(tokens, 128);
    const setCount = given.sets ? 3 : 1;
    const codes = Array.from({ length: setCount }, () =>
      Int8Array.from({ length: tokens * columns }, () => integer(activationBits)),
    );
    const packedCodes = new Int8Array(setCount * codeBytes(capacity, columns)).fill(0x5d);
    const tokenScale = new Float32Array(setCount * capacity);
    codes.forEach((set, s) => {
      // Columns beyond the row are zero, rows beyond the tokens are anything.
      for (let t = 0; t < tokens; t++) {
        for (let c = 0; c < roundUp(columns, 128); c++)
          packedCodes[s * codeBytes(capacity, columns) + codeOffset(capacity, t, c)] =
            c < columns ? set[t * columns + c] : 0;
        tokenScale[s * capacity + t] = 0.01 + 0.02 * Math.abs(next());
      }
    });
    const featureScale = floats(rows, () => 0.001 + Math.abs(next()) * 0.01);
    const bias = given.bias ? floats(rows, next) : undefined;
    const features = gated ? rows / 2 : rows;
    const before = floats(tokens * features, next);
    const width = given.halves ? 2 : 4;
    const out = given.accumulate ? device.put(before) : poisoned(device, tokens * features * width);
    device.kernels.gemm({
      weights: device.put(packWeights(weights, columns, order, bits)),
      bits,
      activationBits,
      order,
      columns,
      codes: device.put(packedCodes),
      tokenScale: device.put(tokenScale),
      featureScale: device.put(orderFeatures(featureScale, order, 1)),
      bias: bias && device.put(orderFeatures(bias, order, 0)),
      out,
      outStride: features,
      halves: given.halves,
      accumulate: given.accumulate,
      tokens,
      capacity,
      setTiles: given.sets,
      split: given.split,
      plain: given.plain,
      tile: given.tile,
    });
    const got = given.halves
      ? Float64Array.from(device.read(out, new Uint16Array(tokens * features)), fromHalf)
      : device.read(out, new Float32Array(tokens * features));
    const linear = (t: number, r: number): number => {
      const tile = Math.floor(r / 256);
      const s =
        given.sets && !gated ? (tile >= given.sets[1] ? 2 : tile >= given.sets[0] ? 1 : 0) : 0;
      const [ofToken, ofFeature] = [t * columns, r * columns];
      const set = codes[s];
      // Two sums of 32-bit integers, which engines keep in registers.
      let [even, odd] = [0, 0];
      for (let c = 0; c + 1 < columns; c += 2) {
        even = (even + set[ofToken + c] * weights[ofFeature + c]) | 0;
        odd = (odd + set[ofToken + c + 1] * weights[ofFeature + c + 1]) | 0;
      }
      if (columns % 2 === 1) even += set[ofToken + columns - 1] * weights[ofFeature + columns - 1];
      const sum = even + odd;
      return sum * tokenScale[s * capacity + t] * featureScale[r] + (bias ? bias[r] : 0);
    };
    const worst = worstOf(tokens * features, (i) => {
      const t = Math.floor(i / features);
      const f = i % features;
      let want = linear(t, f);
      let size = Math.abs(want);
      if (gated) {
        const up = linear(t, features + f);
        size = Math.abs(want * up) + Math.abs(up);
        want = silu(want) * up;
      }
      if (given.accumulate) {
        size += Math.abs(before[i]);
        want += before[i];
      }
      // The integer sum is exact; what follows is some roundings in f32 (__expf's for SiLU) and one to a half.
      return Math.abs(got[i] - want) / ((given.halves ? 2 ** -10 : 2 ** -20) * size + 1e-6);
    });
    return worst;
  },
});
