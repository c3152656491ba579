/** Reference of the static per-tensor grid with split channels. Source: docs/methods.md, flattenquant, Flattening. */
import type { FlattenRowsArgs } from "../../contract/training.js";
import { roundHalfEven } from "./quantize.js";
import { codes8, indices, optionalReals, reals } from "./views.js";

const NONE = new Int32Array();

/** clamp(r, −limit, limit). */
function clampTo(r: number, limit: number): number {
  return Math.min(limit, Math.max(-limit, r));
}

/** See FlattenRowsArgs. */
export function flattenRows(args: FlattenRowsArgs): void {
  const { rows, cols, bits, step, extras, stride } = args;
  const x = reals(args.x, rows * cols, "flattenRows x");
  const factor = optionalReals(args.factor, cols, "flattenRows factor");
  const channel = args.channel ? indices(args.channel, extras, "flattenRows channel") : NONE;
  const part = args.part ? indices(args.part, extras, "flattenRows part") : NONE;
  const codes = codes8(args.codes, rows * stride, "flattenRows codes");
  const scale = optionalReals(args.scale, rows, "flattenRows scale");
  const clipped = args.clipped && indices(args.clipped, rows, "flattenRows clipped");
  const copies = args.copies && indices(args.copies, cols, "flattenRows copies");
  if (channel.length < extras || part.length < extras)
    throw new RangeError(
      `flattenRows: ${extras} extra columns need as many channels and parts, got ${channel.length} and ${part.length}`,
    );
  if (stride < cols + extras)
    throw new RangeError(`flattenRows: stride ${stride} is less than ${cols} + ${extras} columns`);
  const top = 2 ** (bits - 1) - 1;
  for (let e = 0; e < extras; e++)
    if (channel[e] < 0 || channel[e] >= cols || part[e] < 0)
      throw new RangeError(
        `flattenRows: extra column ${e} is copy ${part[e]} of channel ${channel[e]} of ${cols}`,
      );
  const rounded = new Float64Array(cols);
  for (let t = 0; t < rows; t++) {
    const row = t * stride;
    let beyond = 0;
    for (let j = 0; j < cols; j++) {
      rounded[j] = roundHalfEven((x[t * cols + j] * (factor ? factor[j] : 1)) / step);
      codes[row + j] = clampTo(rounded[j], top);
      if (copies && Math.abs(rounded[j]) > copies[j] * top) beyond++;
    }
    for (let e = 0; e < extras; e++) {
      const [r, p] = [rounded[channel[e]], part[e]];
      codes[row + cols + e] = clampTo(r, (p + 1) * top) - clampTo(r, p * top);
    }
    codes.fill(0, row + cols + extras, row + stride);
    if (scale) scale[t] = step;
    if (clipped) clipped[t] = beyond;
  }
}
