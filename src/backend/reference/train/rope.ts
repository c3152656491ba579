/** Reference rotary position embedding, "rotate half" form. Source: Su et al. 2021 (RoFormer). */

import type { RopeArgs } from "../../contract/training.js";
import { reals } from "./views.js";

/**
 * With t = r mod period, h = headDim/2 and i < h: out_i = x_i·cos[t,i] − x_{i+h}·sin[t,i],
 * out_{i+h} = x_{i+h}·cos[t,i] + x_i·sin[t,i]; `inverse` negates the sine. `out` may be `x`.
 */
export function rope(args: RopeArgs): void {
  const { rows, heads, headDim, period } = args;
  const half = headDim / 2;
  const x = reals(args.x, rows * heads * headDim, "rope x");
  const out = reals(args.out, rows * heads * headDim, "rope out");
  const cos = reals(args.cos, period * half, "rope cos");
  const sin = reals(args.sin, period * half, "rope sin");
  const sign = args.inverse ? -1 : 1;
  for (let r = 0; r < rows; r++) {
    const table = (r % period) * half;
    for (let head = 0; head < heads; head++) {
      const start = (r * heads + head) * headDim;
      for (let i = 0; i < half; i++) {
        const a = x[start + i];
        const b = x[start + half + i];
        const c = cos[table + i];
        const s = sign * sin[table + i];
        out[start + i] = a * c - b * s;
        out[start + half + i] = b * c + a * s;
      }
    }
  }
}
