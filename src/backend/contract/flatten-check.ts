/** What every backend refuses of flattenRows before its kernel sees it. */
import { PlanishError } from "../../common/errors.js";
import type { FlattenRowsArgs } from "./training.js";

/** @throws PlanishError naming the argument that does not fit. */
export function checkFlattenRows(args: FlattenRowsArgs): void {
  const { bits, step, cols, extras, stride } = args;
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8))
    throw new PlanishError(`flattenRows: bits is ${bits}; give 2 … 8`);
  if (!(step > 0 && Number.isFinite(step)))
    throw new PlanishError(`flattenRows: step is ${step}; give a positive number`);
  if (stride < cols + extras)
    throw new PlanishError(
      `flattenRows: stride is ${stride}; ${cols} channels and ${extras} extra columns need ${cols + extras}`,
    );
  if (extras > 0 && !(args.channel && args.part))
    throw new PlanishError("flattenRows: extra columns need both channel and part");
  if ((args.clipped === undefined) !== (args.copies === undefined))
    throw new PlanishError("flattenRows: clipped and copies go together");
}
