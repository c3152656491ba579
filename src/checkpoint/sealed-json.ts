/**
 * JSON that a run keeps for itself and reads again when it goes on, with the SHA-256 of what it holds as its last key:
 * a bit that a disk flipped is told from a setting that somebody changed, and a result from a damaged one.
 */
import { PlanishError } from "../common/errors.js";
import { finiteJson } from "../common/ratio.js";
import { sha256OfText } from "./file-record.js";

type JsonObject = Readonly<Record<string, unknown>>;

/** The hash is over the compact form, so that it holds for the indented one as well. */
function hashOf(content: JsonObject): string {
  return sha256OfText(JSON.stringify(content));
}

/** Text of a file that holds `content`. @throws RangeError for a number that JSON cannot hold */
export function sealedText(content: object): string {
  const plain = JSON.parse(finiteJson(content)) as JsonObject;
  return `${JSON.stringify({ ...plain, sha256: hashOf(plain) }, undefined, 2)}\n`;
}

/**
 * What a sealed file held when it was written. Files of versions that kept no hash are taken as they are.
 * @throws PlanishError when it does not hold that any more
 */
export function unsealed({ sha256, ...content }: JsonObject, path: string): JsonObject {
  if (sha256 !== undefined && sha256 !== hashOf(content))
    throw new PlanishError(
      `${path} is damaged: it does not hold what was written (SHA-256); remove it to have it made again`,
    );
  return content;
}
