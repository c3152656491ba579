/**
 * What a text may be held to, and what the engine asks of whoever holds it: our own words, so that the library behind
 * them can be exchanged. A text's form is a schema, a pattern or a grammar; what comes back is, before each token, the
 * set of tokens by which the text can still become one of that form.
 */
import { z } from "zod";
import { PlanishError } from "../../common/errors.js";
import type { CallSyntax } from "../tools/syntax.js";

/** Why a form cannot be held to: it makes no sense, or has what is not supported. Goes to whoever asked for it. */
export class ConstraintError extends PlanishError {
  override readonly name = "ConstraintError";
}

/** Characters of a form in JSON: far above what people write, and a bound on the work that one request can make. */
export const LONGEST_CONSTRAINT = 200_000;

const source = z.string().min(1).max(LONGEST_CONSTRAINT);

export const constraintSchema = z.discriminatedUnion("type", [
  /** JSON that a JSON Schema (2020-12, or draft 7) accepts. */
  z.strictObject({
    type: z.literal("schema"),
    schema: z.union([z.boolean(), z.record(z.string(), z.unknown())]),
  }),
  /** Any JSON object. */
  z.strictObject({ type: z.literal("json") }),
  /** Texts that a regular expression, as ECMAScript writes them, matches from beginning to end. */
  z.strictObject({ type: z.literal("regex"), pattern: source }),
  /** A context-free grammar in EBNF, as GBNF writes it, whose first rule is `root`. */
  z.strictObject({ type: z.literal("grammar"), grammar: source }),
]);

/** The form that a text is held to. */
export type Constraint = z.infer<typeof constraintSchema>;

/** Calls of functions in a model's own syntax, where a text may come before them or in their place. */
export interface CallsForm {
  readonly type: "calls";
  readonly syntax: CallSyntax;
  readonly functions: readonly CalledFunction[];
  /** What may come that is no call: nothing, any text (calls may follow), or a text of a form (in their place). */
  readonly text: "none" | "any" | Constraint;
  /** More than one call may come, where the syntax has that. */
  readonly several: boolean;
  /** Tokens of the syntax that are no text, by their spelling. */
  readonly specials: Readonly<Record<string, number>>;
}

export interface CalledFunction {
  readonly name: string;
  /** JSON Schema of its arguments, which are an object. */
  readonly parameters: boolean | Readonly<Record<string, unknown>>;
}

/** Whatever an answer can be held to. */
export type Form = Constraint | CallsForm;

/** One text's place in its form. */
export interface Guide extends Disposable {
  /** Whether `mask` and `isComplete` are known for the text so far. Where not, `onReady` is called once they are. */
  isReady(): boolean;
  onReady(listener: () => void): void;
  /** Bit i % 32 of element i / 32: token i may come next. Valid until `accept`. */
  readonly mask: Int32Array;
  /** Nothing but the end may follow. */
  readonly isComplete: boolean;
  /** The text goes on with a token that the mask allows. */
  accept(token: number): void;
}

/** A form that is ready to hold any number of texts. */
export interface CompiledConstraint extends Disposable {
  /** A guide at the beginning of a text; `onFail` is told if it cannot go on. */
  guide(onFail: (error: Error) => void): Guide;
}

/** Who makes forms ready, away from the thread that computes. */
export interface ConstraintCompiler extends Disposable {
  /**
   * @param client whose work it is: nobody can keep the others' from being done
   * @throws ConstraintError when the form is refused, or takes more than its time or memory; the signal's reason.
   */
  compile(form: Form, client: string, signal: AbortSignal): Promise<CompiledConstraint>;
}
