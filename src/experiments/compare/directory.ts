/**
 * The directory of a comparison: settings that make it the same comparison, one result per method (its journal), the
 * artifacts, and the document of the whole as JSON and Markdown.
 */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import type { z } from "zod";
import { readJsonObject } from "../../checkpoint/file-reader.js";
import { sealedText, unsealed } from "../../checkpoint/sealed-json.js";
import { oneLine, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { firstIssue } from "../../common/issues.js";
import { MAX_JSON_BYTES, readUserJson } from "../../common/read-file.js";
import { holdsNothing } from "../../common/place.js";
import { writeAtomically } from "../../common/temporary.js";
import {
  comparisonSchema,
  methodResultSchema,
  type Comparison,
  type MethodResult,
} from "./result.js";

export const COMPARISON_FILE = "comparison.json";

export function isComparison(path: string): boolean {
  return existsSync(join(path, COMPARISON_FILE));
}

/** @throws PlanishError saying which field is wrong. */
export function readComparison(path: string): Comparison {
  return readJson(join(path, COMPARISON_FILE), comparisonSchema);
}

export class ComparisonDirectory {
  private constructor(readonly path: string) {}

  /**
   * Opens a directory for a comparison, and makes it where it is not.
   * @throws PlanishError when it holds something else, or an earlier comparison that is not to be resumed or had other
   * settings. Methods are no settings: a resumed comparison may name more of them.
   */
  static open(
    path: string,
    settings: Readonly<Record<string, unknown>>,
    resume: boolean,
  ): ComparisonDirectory {
    const file = join(path, "settings.json");
    if (existsSync(file)) {
      if (!resume)
        throw new PlanishError(
          `${path} holds a comparison; add --resume to go on with it, or choose another --out`,
        );
      const found = unsealed(readJsonObject(file), file);
      const wanted = JSON.parse(JSON.stringify(settings)) as Record<string, unknown>;
      for (const key of Object.keys({ ...found, ...wanted }))
        if (JSON.stringify(found[key]) !== JSON.stringify(wanted[key]))
          throw new PlanishError(
            `${path} was begun with another ${oneLine(key)}: ${shown(found[key])}, not ${shown(wanted[key])}; compare with that, or choose another --out`,
          );
    } else if (!holdsNothing(path)) {
      throw new PlanishError(`${path} is not empty and holds no comparison; choose another --out`);
    }
    mkdirSync(join(path, "results"), { recursive: true });
    mkdirSync(join(path, "artifacts"), { recursive: true });
    if (!existsSync(file)) writeAtomically(file, sealedText(settings));
    return new ComparisonDirectory(path);
  }

  private resultFile(name: string): string {
    return join(this.path, "results", `${fileName(name)}.json`);
  }

  /** What is known of a method so far. */
  readResult(name: string): MethodResult {
    const file = this.resultFile(name);
    if (!existsSync(file)) return { name };
    return check(unsealed(readJsonObject(file), file), methodResultSchema, file);
  }

  keepResult(result: MethodResult): void {
    writeAtomically(this.resultFile(result.name), sealedText(result));
  }

  /** Where a method's artifact goes, relative to the directory. */
  artifact(name: string): string {
    return join("artifacts", fileName(name));
  }

  keepDocument(comparison: Comparison, markdown: string): void {
    writeAtomically(
      join(this.path, COMPARISON_FILE),
      `${JSON.stringify(comparison, undefined, 2)}\n`,
    );
    writeAtomically(join(this.path, "comparison.md"), markdown);
  }
}

function fileName(name: string): string {
  return name.replace(":", ".").replace("+", "-");
}

function readJson<T>(file: string, schema: z.ZodType<T>): T {
  return check(readUserJson(file, { most: MAX_JSON_BYTES }), schema, file);
}

function check<T>(content: unknown, schema: z.ZodType<T>, file: string): T {
  const result = schema.safeParse(content);
  if (result.success) return result.data;
  const { field, reason } = firstIssue(result.error);
  throw new PlanishError(`${file}: ${field || "document"}: ${reason}`);
}
