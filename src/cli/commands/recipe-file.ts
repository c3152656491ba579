/** `--recipe FILE`: a recipe's settings as a JSON object. */
import { isJsonObject } from "../../checkpoint/file-reader.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { MAX_SETTINGS_BYTES, readUserJson } from "../../common/read-file.js";

/** A recipe file's object. @throws UsageError when it cannot be read or is no JSON object. */
export function readRecipe(file: string | undefined): Record<string, unknown> {
  if (file === undefined) return {};
  let parsed: unknown;
  try {
    parsed = readUserJson(file, { what: "recipe", most: MAX_SETTINGS_BYTES });
  } catch (cause) {
    if (!(cause instanceof PlanishError)) throw cause;
    throw new UsageError(cause.message, { cause });
  }
  if (!isJsonObject(parsed)) {
    throw new UsageError(`recipe ${file} holds no JSON object; give one such as {"epochs": 5}`);
  }
  return parsed;
}
