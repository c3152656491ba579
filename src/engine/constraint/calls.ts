/** From functions that may be called to the grammar of an answer that calls them, in the syntax of the model. */
import {
  ConstraintError,
  type CalledFunction,
  type CallsForm,
  type Constraint,
} from "./contract.js";
import {
  apart,
  either,
  oneChar,
  optional,
  renamed,
  repeat,
  rule,
  sequence,
  text,
  type Rules,
} from "./expression.js";
import { ALL, complement } from "./regex/ranges.js";
import type { Schema } from "./schema/document.js";
import { schemaRules } from "./schema/lower.js";
import { specialToken } from "./write.js";

/** A form's rules with their root. */
type FormRules = (form: Constraint) => { readonly rules: Rules; readonly root: string };

/** Rules of which `start` is the answer's. @throws ConstraintError naming the function whose parameters are refused. */
export function callRules(form: CallsForm, formRules: FormRules): Rules {
  const { syntax, functions, several, specials } = form;
  const { mark, begin, open, middle, close, between, end } = syntax;
  const spell = (literal: string): string =>
    Object.entries(specials).reduce(
      (spelled, [own, token]) => spelled.replaceAll(own, specialToken(token)),
      literal,
    );
  const rules: Rules = new Map();
  functions.forEach((each, i) => {
    for (const [name, body] of renamed(argumentRules(each), `f${i}_`)) rules.set(name, body);
  });
  rules.set(
    "call",
    either(
      functions.map(({ name }, i) =>
        sequence(text(spell(`${name}${middle}`)), rule(`f${i}_start`), text(spell(close))),
      ),
    ),
  );
  const last = text(spell(end));
  rules.set(
    "calls",
    between === undefined || !several
      ? sequence(rule("call"), last)
      : sequence(
          rule("call"),
          either([last, sequence(text(spell(between + open)), rule("calls"))]),
        ),
  );
  const opening = begin + open;
  const whole = sequence(text(spell(opening)), rule("calls"));
  if (form.text === "none") rules.set("start", whole);
  else if (form.text !== "any") {
    const own = formRules(form.text);
    for (const [name, body] of renamed(own.rules, "t_")) rules.set(name, body);
    rules.set("start", either([whole, rule(`t_${own.root}`)]));
  } else if (syntax.place === "start") {
    // One character tells the two apart.
    const first = mark.codePointAt(0) ?? 0;
    const other = oneChar(complement([[first, first]]));
    const rest = repeat(oneChar(ALL), 0, Infinity);
    rules.set("start", apart([whole, optional(sequence(other, rest))]));
  } else {
    rules.set("marked", sequence(text(spell(opening.slice(mark.length))), rule("calls")));
    rules.set("start", { kind: "until", mark: spell(mark), then: "marked" });
  }
  return rules;
}

function argumentRules({ name, parameters }: CalledFunction): Rules {
  try {
    return schemaRules(closed(parameters), { type: "object" });
  } catch (error) {
    if (!(error instanceof ConstraintError)) throw error;
    throw new ConstraintError(`parameters of ${name}: ${error.message}`, { cause: error });
  }
}

/** A function that names no parameters has none. */
function closed(parameters: Schema): Schema {
  if (typeof parameters === "boolean") return parameters;
  const { properties, additionalProperties, patternProperties } = parameters;
  const isEmpty = typeof properties === "object" && Object.keys(properties ?? {}).length === 0;
  return isEmpty && additionalProperties === undefined && patternProperties === undefined
    ? { ...parameters, additionalProperties: false }
    : parameters;
}
