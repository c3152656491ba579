/** Typed values: from a zod schema to the form of a text, and from the text to the value. */
import { z } from "zod";
import { oneLine } from "../common/bounds.js";
import type { Constraint } from "./constraint/contract.js";
import { EngineError } from "./request.js";

/** The form of texts that a schema reads. @throws EngineError (`invalid`) for a schema that JSON Schema cannot say. */
export function constraintOf(schema: z.core.$ZodType): Constraint {
  try {
    return { type: "schema", schema: z.toJSONSchema(schema, { io: "input" }) };
  } catch (cause) {
    throw new EngineError(
      `schema: it cannot be written as JSON Schema (${oneLine((cause as Error).message, 120)})`,
      "invalid",
      { cause },
    );
  }
}

/**
 * The value that a finished text holds.
 * @throws EngineError (`failed`) when the schema asks for more than the text's form could hold it to (`refine`).
 */
export function readValue<T>(schema: z.core.$ZodType<T>, text: string): T {
  const result = z.safeParse(schema, JSON.parse(text));
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0];
  throw new EngineError(
    `the text has its schema's form, and the schema refuses it (${oneLine(`${path.join(".")}: ${message}`, 200)}); generate again with another seed, or say it in the form`,
    "failed",
    { cause: result.error },
  );
}
