/** What the parts of lowering a schema say to one another. */
import type { Expression, Rules } from "../expression.js";
import type { Regex, Regexes } from "../regex/nodes.js";
import type { Schema, SchemaDocument, SchemaObject } from "./document.js";

/**
 * A schema that a value must satisfy. A guest only takes part in the question whether another alternative's values would
 * satisfy it too: it adds no names, and everything that it leaves open is open.
 */
export interface Demand {
  readonly schema: SchemaObject;
  readonly guest: boolean;
}

/** A schema of any form that a value must satisfy. */
export interface Wanted {
  readonly schema: Schema;
  readonly guest: boolean;
}

/** What lowers the schemas of an object's parts. */
export interface PartLowering {
  readonly regexes: Regexes;
  readonly rules: Rules;
  readonly document: SchemaDocument;
  /** What satisfies all of some schemas. */
  value(wanted: readonly Wanted[]): Expression;
  /** The texts that strings may have; undefined: any. */
  strings(demands: readonly Demand[]): Regex | undefined;
  /** A string of JSON with any text, and with the texts of a language. */
  anyString(): Expression;
  quoted(regex: Regex): Expression;
}
