/** `--recipe FILE`: a recipe's settings as a JSON object. */
import { readFileSync } from "node:fs";
import { UsageError } from "../../common/errors.js";

/** A recipe file's object. @throws UsageError when it cannot be read or is no JSON object. */
export function readRecipe(file: string | undefined): Record<string, unknown> {
  if (file === undefined) return {};
  let parsed: unknown;
  try {
    parsed = JSON.parse(readFileSync(file, "utf8"));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`recipe ${file} cannot be read as JSON: ${reason}`, { cause });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new UsageError(`recipe ${file} holds no JSON object; give one such as {"epochs": 5}`);
  }
  return parsed as Record<string, unknown>;
}
