/** Sites against their definition: norm, gate or splits, Kronecker transform, scale, codes. */
import {
  codeBytes,
  codeOffset,
  groupCount,
  paddedHalves,
  roundUp,
  siteGeometry,
  type SiteGrid,
  type SiteShape,
} from "../../../../../src/backend/cuda/infer/layout.js";
import {
  floats,
  generator,
  halves,
  poisoned,
  roundHalf,
  silu,
  words,
  type Check,
} from "./support.js";

interface SiteCase {
  readonly shape: SiteShape;
  readonly tokens: number;
  readonly input: "plain" | "rms" | "gated" | "splits";
  readonly halves?: boolean;
  readonly bits?: 4 | 6 | 8;
  readonly precise?: boolean;
  readonly sets?: number;
  readonly splits?: number;
  readonly grid?: SiteGrid;
  /** Size of the values. */
  readonly size?: number;
}

/** One site: its codes and scales. */
export const site = (given: SiteCase): Check => ({
  name: words(
    `site ${given.input} ${given.shape.left}×${given.shape.right}`,
    given.shape.hasLeft && "left",
    given.shape.hasRight && "right",
    `a${given.bits ?? 4} ×${given.tokens}`,
    given.halves && "halves",
    given.precise === false && "fast",
    given.sets !== undefined && `${given.sets} sets`,
    given.grid?.span && `groups of ${given.grid.span}`,
    given.grid?.zero && "zero points",
    given.grid?.sums && `sums of ${given.grid.sums}`,
  ),
  run: (device) => {
    const {
      shape,
      tokens,
      input,
      bits = 4,
      precise = true,
      sets = 1,
      splits = 1,
      size = 1,
      grid = {},
    } = given;
    const { left, right, hasLeft, hasRight } = shape;
    const width = left * right;
    const next = generator(width + tokens);
    const capacity = roundUp(tokens, 8);
    const qmax = 2 ** (bits - 1) - 1;
    const square = (n: number) =>
      Array.from({ length: n * n }, () => roundHalf(next() / Math.sqrt(n)));
    const L = square(left);
    const R = square(right);
    const { rows: padLeft, columns: padRight } = siteGeometry(shape);
    // A few outliers, as activations have them.
    const draw = () => next() * size * (next() > 0.98 ? 30 : 1);
    let x = Float32Array.from({ length: tokens * width }, draw);
    let x2 = Float32Array.from({ length: tokens * width }, draw);
    if (given.halves) [x, x2] = [x.map(roundHalf), x2.map(roundHalf)];
    const upload = (data: Float32Array) => device.put(given.halves ? halves(data) : data);
    const gain = floats(width, () => 1 + next() / 2);
    let source = x;
    if (input === "splits") {
      // [token][head][split][right + 2]
      source = new Float32Array(tokens * left * splits * (right + 2));
      for (let i = 0; i < tokens * left * splits; i++) {
        for (let c = 0; c < right; c++) source[i * (right + 2) + c] = next();
        source[i * (right + 2) + right] = next() * 5;
        source[i * (right + 2) + right + 1] = 1 + Math.abs(next());
      }
      if (splits > 1) {
        // A split that saw nothing.
        source.fill(0, 0, right + 2);
        source[right] = -Infinity;
      }
    }
    const entering = (t: number): Float64Array => {
      const row = new Float64Array(width);
      for (let i = 0; i < width; i++) {
        if (input === "splits") {
          const base = (t * left + Math.floor(i / right)) * splits * (right + 2);
          let total = 0;
          for (let s = 0; s < splits; s++) {
            const part = source.subarray(base + s * (right + 2), base + (s + 1) * (right + 2));
            const weight = 2 ** part[right];
            total += weight * part[right + 1];
            row[i] += weight * part[i % right];
          }
          row[i] /= total;
        } else
          row[i] =
            input === "gated" ? silu(x[t * width + i]) * x2[t * width + i] : x[t * width + i];
      }
      if (input === "rms") {
        const square = row.reduce((sum, v) => sum + v * v, 0) / width;
        row.forEach((v, i) => (row[i] = (v / Math.sqrt(square + 1e-5)) * gain[i]));
      }
      return row;
    };
    const matrices = [Float64Array.from(L), Float64Array.from(R)] as const;
    const sizes = matrices.map((m) => m.map(Math.abs)) as [Float64Array, Float64Array];
    const transform = (row: Float64Array, absolute: boolean): Float64Array => {
      const [ofLeft, ofRight] = absolute ? sizes : matrices;
      let now = absolute ? row.map(Math.abs) : row;
      if (hasLeft) {
        const to = new Float64Array(width);
        for (let k = 0; k < left; k++)
          for (let i = 0; i < left; i++) {
            const factor = ofLeft[k * left + i];
            for (let j = 0; j < right; j++) to[i * right + j] += factor * now[k * right + j];
          }
        now = to;
      }
      if (hasRight) {
        const to = new Float64Array(width);
        for (let i = 0; i < left; i++)
          for (let k = 0; k < right; k++) {
            const factor = now[i * right + k];
            for (let j = 0; j < right; j++) to[i * right + j] += factor * ofRight[k * right + j];
          }
        now = to;
      }
      return now;
    };
    const clips = Float32Array.from({ length: 2 * sets }, (_, i) => 1 - 0.05 * i);
    const codes = poisoned(device, sets * codeBytes(capacity, width));
    const spans = grid.span ? groupCount(width, grid.span) : 1;
    const sumCount = grid.sums ? groupCount(width, grid.sums) : 0;
    const scales = poisoned(device, sets * spans * capacity * 4);
    const sums = poisoned(device, Math.max(1, sets * sumCount * capacity) * 4);
    const request = {
      shape,
      input,
      x: upload(source),
      x2: input === "gated" ? upload(x2) : undefined,
      halves: given.halves,
      tokens,
      stride: width,
      gain: input === "rms" ? device.put(gain) : undefined,
      epsilon: 1e-5,
      left: hasLeft ? device.put(paddedHalves(L, left, padLeft)) : undefined,
      right: hasRight ? device.put(paddedHalves(R, right, padRight)) : undefined,
      clips: device.put(clips),
      sets,
      capacity,
      codes,
      scales,
      splits,
      bits,
      precise,
      grid,
      sums: grid.sums && sums,
    };
    const results = (alone: boolean) => {
      for (const [pointer, bytes] of [
        [codes, sets * codeBytes(capacity, width)],
        [scales, sets * spans * capacity * 4],
        [sums, Math.max(1, sets * sumCount * capacity) * 4],
      ])
        device.driver.fillBytes(pointer, 0xff, bytes, device.stream);
      device.kernels.site({ ...request, alone });
      return {
        codes: device.read(codes, new Int8Array(sets * codeBytes(capacity, width))),
        scales: device.read(scales, new Float32Array(sets * spans * capacity)),
        sums: device.read(sums, new Float32Array(sets * sumCount * capacity)),
      };
    };
    const { codes: gotCodes, scales: gotScales, sums: gotSums } = results(false);
    let worst = 0;
    // A row's bits must not depend on how many rows there are, and so not on whether a cluster has it.
    const alone = results(true);
    const bytesOf = (a: ArrayBufferView) => Buffer.from(a.buffer, a.byteOffset, a.byteLength);
    if (!bytesOf(gotCodes).equals(bytesOf(alone.codes))) worst = Infinity;
    if (!bytesOf(gotScales).equals(bytesOf(alone.scales))) worst = Infinity;
    for (let t = 0; t < tokens; t++) {
      const row = entering(t);
      const want = transform(row, false);
      // Each product rounds its operands: 2⁻¹¹ of Σ|terms| with single halves, about 2⁻²¹ with two; f32 elsewhere.
      const reach = transform(row, true);
      const unit = precise ? 2 ** -19 : 2 ** -9.5;
      const slack = unit * Math.max(...reach) + 1e-30;
      const blocks = roundUp(width, 128);
      const span = grid.span ?? blocks;
      const levels = 2 * qmax + 1;
      for (let s = 0; s < sets; s++)
        for (let g = 0; g < spans; g++) {
          const own = want.subarray(Math.min(g * span, width), Math.min((g + 1) * span, width));
          const top = own.reduce((a, b) => Math.max(a, b), 0) * clips[2 * s];
          const low = own.reduce((a, b) => Math.max(a, -b), 0) * clips[2 * s + 1];
          const scale = gotScales[(s * spans + g) * capacity + t];
          const range = grid.zero ? (top + low) / levels : Math.max(top, low) / qmax;
          // A group of zeros has a scale that means nothing.
          if (range > 0)
            worst = Math.max(
              worst,
              (Math.abs(scale - range) * qmax) / (grid.zero ? 2 * slack : slack),
            );
          if (!(scale > 0)) worst = Infinity;
          // The zero point that the kernel took lies where its own scale puts it, but for ties.
          const zero = grid.zero ? low / scale : 0;
          const [least, most] = grid.zero ? [-zero, levels - zero] : [-qmax - 1, qmax];
          for (let i = g * span; i < (g + 1) * span; i++) {
            const code = gotCodes[s * codeBytes(capacity, width) + codeOffset(capacity, t, i)];
            if (i >= width) {
              if (code !== 0) worst = Infinity;
              continue;
            }
            const ideal = Math.min(Math.max(want[i] / scale, least), most);
            // Beside a zero point, the ends of the grid are whole numbers too, half a step away at most.
            const clipped =
              grid.zero && (want[i] / scale < least + 1 || want[i] / scale > most - 1);
            const over = Math.abs(code - ideal) - (clipped ? 1 : 0.5);
            worst = Math.max(worst, over / ((unit * reach[i]) / scale + 1e-5));
          }
        }
      // Sums are those of the codes that were given, exactly but for the rounding of a scale.
      for (let s = 0; s < sets; s++)
        for (let part = 0; part < sumCount; part++) {
          const columns = grid.sums ?? 1;
          let sum = 0;
          for (let i = part * columns; i < (part + 1) * columns; i++)
            sum += gotCodes[s * codeBytes(capacity, width) + codeOffset(capacity, t, i)];
          const g = Math.floor((part * columns) / span);
          const wanted = grid.span
            ? Math.fround(sum * gotScales[(s * spans + g) * capacity + t])
            : sum;
          if (gotSums[(s * sumCount + part) * capacity + t] !== wanted) worst = Infinity;
        }
    }
    return worst;
  },
});
