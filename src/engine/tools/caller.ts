/** What a request's tools mean for its answer: the form that it is held to, and how it is taken apart. */
import type { CalledFunction, CallsForm, Constraint } from "../constraint/contract.js";
import { EngineError, type TextRequest } from "../request.js";
import type { OutputToken } from "../text-output.js";
import { CallReader, type Spoken } from "./reader.js";
import type { CallSyntax, ToolForm } from "./syntax.js";

/** Takes one answer apart. */
export interface AnswerReader {
  /** What must come in one go; see `TextOutput`. */
  readonly mark: string;
  push(tokens: readonly OutputToken<unknown>[]): Spoken[];
}

export class Caller {
  /** How calls are written; undefined: there can be none. */
  readonly form: ToolForm | undefined;

  /**
   * @param form the chat template's
   * @param fallback whether a form that the template does not know will do
   * @param specialOf the token that is spelled so and is no text
   */
  constructor(
    form: ToolForm | undefined,
    fallback: boolean,
    private readonly specialOf: (spelling: string) => number | undefined,
  ) {
    this.form = form?.isNative || fallback ? form : undefined;
  }

  /** What holds the answer, its own `constraint` included; undefined where it cannot call. @throws EngineError */
  formOf(request: TextRequest): CallsForm | undefined {
    const calls = this.callsOf(request);
    if (!calls) return undefined;
    const { syntax, functions, mustCall, several } = calls;
    const { constraint } = request;
    if (constraint !== undefined && !mustCall && !isToldApart(constraint, syntax))
      throw new EngineError(
        "constraint: this model's calls cannot be told from such a text; leave the tools out, or set toolChoice to none or required",
        "invalid",
      );
    return {
      type: "calls",
      syntax,
      functions,
      text: mustCall ? "none" : (constraint ?? "any"),
      several,
      specials: this.specials(syntax),
    };
  }

  /** Undefined where the answer is text, whatever it looks like. */
  reader(request: TextRequest): AnswerReader | undefined {
    const calls = this.callsOf(request);
    if (!calls) return undefined;
    const { syntax, mustCall } = calls;
    const startOnly = syntax.place === "start" || mustCall || request.constraint !== undefined;
    const reader = new CallReader(syntax, startOnly);
    const spellings = new Map(
      Object.entries(this.specials(syntax)).map(([spelling, token]) => [token, spelling]),
    );
    return {
      mark: syntax.mark,
      push: (tokens) => reader.push(tokens.map(({ token, text }) => spellings.get(token) ?? text)),
    };
  }

  private callsOf(request: TextRequest) {
    if (request.kind !== "chat") return undefined;
    const { tools = [], toolChoice = "auto", parallelToolCalls = true } = request;
    const wanted = typeof toolChoice === "object" ? toolChoice.name : undefined;
    if (tools.length === 0) {
      if (wanted !== undefined || toolChoice === "required")
        throw new EngineError("toolChoice: there are no tools to choose from", "invalid");
      return undefined;
    }
    if (toolChoice === "none") return undefined;
    if (!this.form)
      throw new EngineError(
        "tools: the model's chat template has no form for them; give one that has with chatTemplate (--chat-template FILE), or allow the general form (toolFallback, without --no-tool-fallback)",
        "invalid",
      );
    const functions: CalledFunction[] = tools.map(({ function: { name, parameters } }) => ({
      name,
      parameters: parameters ?? { type: "object", properties: {} },
    }));
    const names = functions.map(({ name }) => name);
    const twice = names.find((name, i) => names.indexOf(name) !== i);
    if (twice !== undefined)
      throw new EngineError(`tools: two functions are called ${twice}; rename one`, "invalid");
    const chosen = functions.filter(({ name }) => wanted === undefined || name === wanted);
    if (chosen.length === 0)
      throw new EngineError(`toolChoice: there is no tool called ${wanted}`, "invalid");
    return {
      syntax: this.form.syntax,
      functions: chosen,
      mustCall: wanted !== undefined || toolChoice === "required",
      // Whoever names one function wants it once.
      several: parallelToolCalls && wanted === undefined,
    };
  }

  private specials({ specials }: CallSyntax): Record<string, number> {
    return Object.fromEntries(
      specials.flatMap((spelling) => {
        const token = this.specialOf(spelling);
        return token === undefined ? [] : [[spelling, token]];
      }),
    );
  }
}

/** Whether a text of a form never begins as calls do. */
function isToldApart({ type }: Constraint, { mark }: CallSyntax): boolean {
  return type === "schema" || type === "json" ? !mark.startsWith("{") : false;
}
