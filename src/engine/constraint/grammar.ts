/** From a form to the grammar that holds a text to it. */
import { ConstraintError, type Constraint } from "./contract.js";
import { plainly, productiveRules, type Rules } from "./expression.js";
import { readGrammar } from "./gbnf.js";
import { languageExpression } from "./language.js";
import { Regexes, TooComplex } from "./regex/nodes.js";
import { parsePattern } from "./regex/parse.js";
import { schemaGrammar } from "./schema/lower.js";
import { writeRules, type WrittenGrammar } from "./write.js";

/** The grammar for the matching library. @throws ConstraintError when the form is refused. */
export function grammarOf(constraint: Constraint): WrittenGrammar {
  try {
    switch (constraint.type) {
      case "schema":
        return schemaGrammar(constraint.schema);
      case "json":
        return schemaGrammar({ type: "object", additionalProperties: true });
      case "regex":
        return patternGrammar(constraint.pattern);
      case "grammar":
        return rulesGrammar(
          readGrammar(constraint.grammar),
          "root",
          "grammar: no text can be completed by its root rule",
        );
    }
  } catch (error) {
    if (error instanceof TooComplex || error instanceof RangeError)
      throw new ConstraintError(
        `${constraint.type}: it is too complex (${error.message}); make it simpler`,
      );
    throw error;
  }
}

function patternGrammar(pattern: string): WrittenGrammar {
  const regexes = new Regexes();
  const rules: Rules = new Map();
  const language = parsePattern(regexes, pattern, "whole");
  rules.set("start", languageExpression(regexes, rules, "t", language, plainly));
  return rulesGrammar(rules, "start", "regex: no text matches the pattern");
}

function rulesGrammar(rules: Rules, root: string, otherwise: string): WrittenGrammar {
  const productive = productiveRules(rules);
  if (!productive.has(root)) throw new ConstraintError(otherwise);
  return writeRules(rules, root, productive);
}
