/** The list of methods. */
import { UsageError } from "../../common/errors.js";
import type { Method } from "../schema/method.js";
import { awq } from "./awq/index.js";
import { flatquant } from "./flatquant/index.js";
import { flattenquant } from "./flattenquant/index.js";
import { keep } from "./keep/index.js";
import { quarot } from "./quarot/index.js";
import { rtn } from "./rtn/index.js";
import { smoothquant } from "./smoothquant/index.js";
import { spinquant } from "./spinquant/index.js";

/** A method with its recipe type forgotten: recipes are validated by the method's own schema before use. */
export type AnyMethod = Method;

export const METHODS: readonly AnyMethod[] = [
  flatquant,
  flattenquant,
  rtn,
  smoothquant,
  quarot,
  spinquant,
  awq,
  keep,
];

/** @throws UsageError naming the accepted methods. */
export function findMethod(name: string): AnyMethod {
  const method = METHODS.find((m) => m.name === name);
  if (!method)
    throw new UsageError(
      `method "${name}" is unknown; accepted: ${METHODS.map((m) => m.name).join(", ")}`,
    );
  return method;
}
