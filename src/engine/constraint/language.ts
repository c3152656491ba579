/** A language of characters as a grammar's expression, in whichever form is the smaller one. */
import {
  automatonRules,
  directExpression,
  NEVER,
  runRules,
  type Expression,
  type Rules,
  type Spelling,
} from "./expression.js";
import { automatonOf, isEmpty } from "./regex/automaton.js";
import { TooComplex, type Regex, type Regexes } from "./regex/nodes.js";
import { isOneClass } from "./write.js";

/** An automaton of so many states is preferred to the pattern as it was written: nothing in it is ambiguous. */
const SMALL = 300;
/** Where the pattern cannot be written as it is, so many are taken. */
const LARGE = 5000;

/** As an automaton, which is never ambiguous, or as the pattern is written where that is smaller or preferred. @throws TooComplex */
export function languageExpression(
  regexes: Regexes,
  rules: Rules,
  prefix: string,
  regex: Regex,
  spelling: Spelling,
  preferDirect = false,
): Expression {
  if (regex.kind === "repeat" && regex.part.kind === "set" && regex.max === Infinity) {
    const spelled = spelling(regex.part.ranges);
    if (spelled.direct.length > 0) return runRules(rules, `${prefix}_run`, spelled, regex.min);
  }
  // Characters of some other sets are several bytes of an alphabet: repeating them is slow, an automaton is not.
  const isRun =
    regex.kind === "repeat" && regex.part.kind === "set" && isOneClass(regex.part.ranges);
  const direct = directExpression(regex, spelling);
  if (direct && (isRun || preferDirect)) return direct;
  try {
    const automaton = automatonOf(regexes, regex, direct ? SMALL : LARGE);
    return automaton ? automatonRules(rules, prefix, automaton, spelling) : NEVER;
  } catch (error) {
    if (!(error instanceof TooComplex) || !direct) throw error;
    return isEmpty(regexes, regex, LARGE) ? NEVER : direct;
  }
}
