/** From a form to the grammar that holds a text to it. */
import { callRules } from "./calls.js";
import { ConstraintError, type Constraint, type Form } from "./contract.js";
import { plainly, productiveRules, type Rules } from "./expression.js";
import { readGrammar } from "./gbnf.js";
import { languageExpression } from "./language.js";
import { Regexes, TooComplex } from "./regex/nodes.js";
import { parsePattern } from "./regex/parse.js";
import { schemaRules } from "./schema/lower.js";
import { writeRules, type WrittenGrammar } from "./write.js";

/** The grammar for the matching library. @throws ConstraintError when the form is refused. */
export function grammarOf(form: Form): WrittenGrammar {
  try {
    if (form.type !== "calls") return written(formRules(form));
    const rules = callRules(form, formRules);
    return { ...written({ rules, root: "start" }), specials: Object.values(form.specials) };
  } catch (error) {
    if (error instanceof TooComplex || error instanceof RangeError)
      throw new ConstraintError(
        `${form.type}: it is too complex (${error.message}); make it simpler`,
      );
    throw error;
  }
}

interface Rooted {
  readonly rules: Rules;
  readonly root: string;
}

function written({ rules, root }: Rooted): WrittenGrammar {
  return writeRules(rules, root, productiveRules(rules));
}

/** A form's rules, of which some text is completed by the root. @throws ConstraintError, TooComplex */
function formRules(constraint: Constraint): Rooted {
  switch (constraint.type) {
    case "schema":
      return { rules: schemaRules(constraint.schema), root: "start" };
    case "json":
      return { rules: schemaRules({ type: "object", additionalProperties: true }), root: "start" };
    case "regex":
      return completed(
        { rules: patternRules(constraint.pattern), root: "start" },
        "regex: no text matches the pattern",
      );
    case "grammar":
      return completed(
        { rules: readGrammar(constraint.grammar), root: "root" },
        "grammar: no text can be completed by its root rule",
      );
  }
}

function patternRules(pattern: string): Rules {
  const regexes = new Regexes();
  const rules: Rules = new Map();
  const language = parsePattern(regexes, pattern, "whole");
  rules.set("start", languageExpression(regexes, rules, "t", language, plainly));
  return rules;
}

function completed(rooted: Rooted, otherwise: string): Rooted {
  if (!productiveRules(rooted.rules).has(rooted.root)) throw new ConstraintError(otherwise);
  return rooted;
}
