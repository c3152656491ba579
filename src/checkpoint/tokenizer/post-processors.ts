/** Post-processors: the special tokens around a text. Pairs of texts and offsets do not occur here. */

import { quoted, shown } from "../../common/bounds.js";
import { isJsonObject } from "../file-reader.js";
import { checkPart, fail, sequence, type Json, type Part } from "./options.js";

/** Ids around a text, given the text's own. */
export type PostProcessor = (ids: readonly number[]) => number[];

/**
 * The post-processor of a tokenizer.json's part. Throws PlanishError for options that are not implemented, and for
 * ids that `isToken` does not know: the model would have no embedding for them.
 */
export function createPostProcessor(
  value: unknown,
  isToken: (id: number) => boolean,
): PostProcessor {
  return build(checkPart("post_processor", value), isToken);
}

function build(part: Part, isToken: (id: number) => boolean): PostProcessor {
  const { options } = part;
  switch (part.type) {
    case "Sequence": {
      const parts = sequence("post_processor", part, "processors").map((item) =>
        build(item, isToken),
      );
      return (ids) => parts.reduce<number[]>((done, next) => next(done), [...ids]);
    }
    case "BertProcessing":
    case "RobertaProcessing": {
      const [, cls] = options["cls"] as [string, number];
      const [, sep] = options["sep"] as [string, number];
      for (const id of [cls, sep]) checkToken(id, part.path, isToken);
      return (ids) => [cls, ...ids, sep];
    }
    case "TemplateProcessing":
      return template(part, isToken);
    default:
      // ByteLevel trims offsets, which nobody asks for.
      return (ids) => [...ids];
  }
}

function checkToken(id: unknown, path: string, isToken: (id: number) => boolean): void {
  if (typeof id !== "number" || !isToken(id)) fail(path, `no token has the id ${shown(id)}`);
}

function template({ options, path }: Part, isToken: (id: number) => boolean): PostProcessor {
  const known = options["special_tokens"] as Json;
  const pieces = (options["single"] as unknown[]).map((piece, i): readonly number[] | "text" => {
    const place = `${path}.single[${i}]`;
    if (!isJsonObject(piece) || Object.keys(piece).length !== 1)
      fail(place, "must be an object of one key");
    const [[kind, value]] = Object.entries(piece);
    const id = isJsonObject(value) ? value["id"] : undefined;
    if (kind === "Sequence" && id === "A") return "text";
    if (kind !== "SpecialToken" || typeof id !== "string") {
      fail(
        place,
        'is not implemented (accepted: {"SpecialToken": …} and {"Sequence": {"id": "A", …}})',
      );
    }
    const token = Object.hasOwn(known, id) ? known[id] : undefined;
    const ids = isJsonObject(token) ? token["ids"] : undefined;
    if (!Array.isArray(ids)) {
      fail(place, `${quoted(id)} has no ids in special_tokens`);
    }
    for (const item of ids) checkToken(item, place, isToken);
    return ids as number[];
  });
  return (ids) => pieces.flatMap((piece) => (piece === "text" ? ids : piece));
}
