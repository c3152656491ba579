/**
 * How models write down that they call functions: a table of the forms that templates teach, as data. The grammar that
 * calls are held to (constraint/calls.ts) and the reader that takes them apart (reader.ts) are made from the same rows.
 */

/** Calls as text: `begin`, then each as `open` NAME `middle` ARGUMENTS `close`, with `between` between them, then `end`. */
export interface CallSyntax {
  /** What `begin` and `open` begin with: a text that has it, where it may stand, goes on with calls. */
  readonly mark: string;
  /** Where calls begin: behind any text, or only where the answer begins. */
  readonly place: "anywhere" | "start";
  readonly begin: string;
  readonly open: string;
  readonly middle: string;
  readonly close: string;
  /** Absent: there can be one call only. Differs from `end` in its first character. */
  readonly between?: string;
  readonly end: string;
  /** Pieces of the above that tokenizers may have as special tokens, which texts leave out. */
  readonly specials: readonly string[];
}

export interface ToolForm {
  readonly name: "hermes" | "llama3" | "mistral" | "mistral-args" | "generic";
  readonly syntax: CallSyntax;
  /** The template itself writes tools, calls and results down. Otherwise conversation.ts does, as plain messages. */
  readonly isNative: boolean;
  /** Calls' ids are nine letters or digits. */
  readonly shortIds?: boolean;
}

const hermes: CallSyntax = {
  mark: "<tool_call>",
  place: "anywhere",
  begin: "",
  open: '<tool_call>\n{"name": "',
  middle: '", "arguments": ',
  close: "}\n</tool_call>",
  between: "\n",
  end: "",
  specials: ["<tool_call>", "</tool_call>"],
};

const llama3: CallSyntax = {
  mark: "{",
  place: "start",
  begin: "",
  open: '{"name": "',
  middle: '", "parameters": ',
  close: "}",
  end: "",
  specials: [],
};

const mistralList = (blank: string): CallSyntax => ({
  mark: "[TOOL_CALLS]",
  place: "anywhere",
  begin: `[TOOL_CALLS]${blank}[`,
  open: '{"name": "',
  middle: '", "arguments": ',
  close: "}",
  between: ", ",
  end: "]",
  specials: ["[TOOL_CALLS]"],
});

const mistralArgs: CallSyntax = {
  mark: "[TOOL_CALLS]",
  place: "anywhere",
  begin: "",
  open: "[TOOL_CALLS]",
  middle: "[ARGS]",
  close: "",
  between: "",
  end: "",
  specials: ["[TOOL_CALLS]", "[ARGS]"],
};

/** For templates that know nothing of tools: calls as Hermes writes them, everything else in plain messages. */
export const GENERIC_FORM: ToolForm = { name: "generic", syntax: hermes, isNative: false };

/** A template's own form; undefined where it has none that is known here. */
export function toolFormOf(template: string): ToolForm | undefined {
  if (!/\btools\b/.test(template)) return undefined;
  const has = (text: string): boolean => template.includes(text);
  if (has("[TOOL_CALLS]")) {
    // Calls that carry their ids between name and arguments are another form.
    if (has("[CALL_ID]")) return undefined;
    if (has("[ARGS]"))
      return { name: "mistral-args", syntax: mistralArgs, isNative: true, shortIds: true };
    const syntax = mistralList(has("[TOOL_CALLS] [") ? " " : "");
    return { name: "mistral", syntax, isNative: true, shortIds: true };
  }
  // Where parameters are tags of their own (`<function=…>`), arguments are no JSON.
  if (has("<tool_call>") && !has("<function=") && !has("<arg_key>"))
    return { name: "hermes", syntax: hermes, isNative: true };
  if (has("<|start_header_id|>") && /"parameters\\?": /.test(template))
    return { name: "llama3", syntax: llama3, isNative: true };
  return undefined;
}
