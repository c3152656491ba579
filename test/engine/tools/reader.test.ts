/** Calls written in each syntax and cut anywhere are read back as they were; templates are told apart by their source. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ChatTemplate } from "../../../src/engine/chat-template.js";
import type { ChatMessage, Tool } from "../../../src/engine/request.js";
import { nativeConversation, plainConversation } from "../../../src/engine/tools/conversation.js";
import { CallReader } from "../../../src/engine/tools/reader.js";
import { GENERIC_FORM, toolFormOf, type ToolForm } from "../../../src/engine/tools/syntax.js";

interface Vectors {
  readonly special: Record<string, string>;
  readonly templates: readonly { readonly name: string; readonly source: string }[];
}
const { templates, special } = JSON.parse(
  readFileSync(new URL("../../fixtures/templates/vectors.json", import.meta.url), "utf8"),
) as Vectors;

const templateOf = (name: string): string => {
  const found = templates.find((each) => each.name === name);
  if (!found) throw new Error(`no template ${name}`);
  return found.source;
};

const formOf = (source: string): ToolForm => {
  const form = toolFormOf(source);
  if (!form) throw new Error("the template has no form");
  return form;
};

const MISTRAL_ARGS =
  "{{ tools }}{% for c in messages[1].tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}";

const FORMS: readonly ToolForm[] = [
  formOf(templateOf("tools in xml")),
  formOf(templateOf("headers")),
  formOf(templateOf("alternating check with namespace")),
  formOf(MISTRAL_ARGS),
];

describe("forms", () => {
  it("are those that templates teach, or none", () => {
    expect(FORMS.map(({ name }) => name)).toEqual(["hermes", "llama3", "mistral", "mistral-args"]);
    for (const name of ["chatml", "inst", "granite-like", "deepseek"])
      expect(toolFormOf(templateOf(name)), name).toBeUndefined();
    // Parameters in tags of their own, and ids between name and arguments, are other forms.
    expect(toolFormOf("{{ tools }}<tool_call><function=f>")).toBeUndefined();
    expect(toolFormOf("{{ tools }}[TOOL_CALLS]f[CALL_ID]x[ARGS]")).toBeUndefined();
  });
});

const json = fc.dictionary(
  fc.string({ unit: "binary", maxLength: 6 }),
  fc.oneof(
    fc.jsonValue({ maxDepth: 2 }),
    fc.constantFrom('"}', "</tool_call>", '\\"{[', "[TOOL_CALLS]"),
  ),
  { maxKeys: 3 },
);
const call = fc.record({ name: fc.stringMatching(/^[\w-]{1,8}$/), arguments: json });

/** Pieces of a text that are taken at once or one by one, but a mark always at once, as `TextOutput` gives it. */
function batches(text: string, mark: string, cuts: readonly number[]): string[][] {
  const at = [...new Set(cuts.map((cut) => cut % (text.length + 1)))].sort((a, b) => a - b);
  const pieces = [...at, text.length].map((end, i) => text.slice(at[i - 1] ?? 0, end));
  const found: string[][] = [];
  let held: string[] = [];
  for (const piece of pieces) {
    held.push(piece);
    const tail = held.join("");
    const waits = Array.from({ length: mark.length - 1 }, (_, n) => mark.slice(0, n + 1));
    if (waits.some((beginning) => tail.endsWith(beginning))) continue;
    found.push(held);
    held = [];
  }
  return held.length > 0 ? [...found, held] : found;
}

describe.each(FORMS.map((form) => [form.name, form] as const))("calls as %s", (_, { syntax }) => {
  const { begin, open, middle, close, between, end, mark, place } = syntax;
  const count = between === undefined ? 1 : 3;

  it("are read as they were written, wherever the text is cut", () => {
    fc.assert(
      fc.property(
        fc.string({ maxLength: 20 }).filter((text) => !text.includes(mark[0])),
        fc.array(call, { minLength: 1, maxLength: count }),
        fc.array(fc.nat(), { maxLength: 30 }),
        (before, calls, cuts) => {
          const text = place === "start" ? "" : before;
          const spelled = calls.map(
            (own) => `${open}${own.name}${middle}${JSON.stringify(own.arguments)}${close}`,
          );
          const whole = `${text}${begin}${spelled.join(between)}${end}`;
          const reader = new CallReader(syntax);
          const spoken = batches(whole, mark, cuts).flatMap((pieces) => reader.push(pieces));
          expect(spoken.map((each) => each.text).join("")).toBe(text);
          const read = calls.map(() => ({ name: "", json: "", ids: 0 }));
          for (const piece of spoken.flatMap((each) => each.calls)) {
            const own = read[piece.index];
            own.name += piece.name ?? "";
            own.json += piece.arguments;
            if (piece.id !== undefined) own.ids += 1;
          }
          expect(read).toEqual(
            calls.map((own) => ({ name: own.name, json: JSON.stringify(own.arguments), ids: 1 })),
          );
        },
      ),
      { numRuns: 150 },
    );
  });

  it("are not seen in a text without them", () => {
    const reader = new CallReader(syntax);
    const text = place === "start" ? 'Say {"name": "f"}' : "1 < 2 [TOOL] <tool {";
    const spoken = reader.push(Array.from(text));
    expect(spoken.map((each) => each.text).join("")).toBe(text);
    expect(spoken.flatMap(({ calls }) => calls)).toEqual([]);
  });
});

const tools: Tool[] = [
  {
    type: "function",
    function: { name: "weather", parameters: { type: "object", properties: {} } },
  },
];
const messages: ChatMessage[] = [
  { role: "user", content: "Weather?" },
  {
    role: "assistant",
    content: null,
    tool_calls: [
      {
        id: "call_1",
        type: "function",
        function: { name: "weather", arguments: '{"city":"Köln"}' },
      },
    ],
  },
  { role: "tool", tool_call_id: "call_1", content: "rain" },
];

describe("conversations with calls", () => {
  it.each([
    [
      "tools in xml",
      '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>',
    ],
    ["headers", '{"name": "weather", "parameters": {"city": "Köln"}}<|eot_id|>'],
  ])("go through the template's own form (%s)", (name, written) => {
    const source = templateOf(name);
    const conversation = nativeConversation(messages, tools, formOf(source));
    const text = new ChatTemplate(source, special).render(conversation.messages, conversation);
    expect(text).toContain(written);
    expect(text).toContain("rain");
  });

  it("have ids as Mistral's templates demand, the same for a call and its result", () => {
    const source = templateOf("alternating check with namespace");
    const conversation = nativeConversation(messages, tools, formOf(source));
    const text = new ChatTemplate(source, special).render(conversation.messages, conversation);
    const [, id] = /"id": "(\w{9})"/.exec(text) ?? [];
    expect(id).toBeDefined();
    expect(text).toContain(`"call_id": "${id}"`);
  });

  it("become plain messages whose turns alternate, where the template knows nothing of tools", () => {
    const more: ChatMessage[] = [
      ...messages,
      { role: "tool", tool_call_id: "call_2", content: "sun" },
      { role: "user", content: "And now?" },
    ];
    const { messages: plain } = plainConversation(more, tools, GENERIC_FORM, true);
    expect(plain.map(({ role }) => role)).toEqual(["system", "user", "assistant", "user"]);
    expect(plain[0].content).toContain('"name":"weather"');
    expect(plain[3].content).toBe(
      "<tool_response>\nrain\n</tool_response>\n<tool_response>\nsun\n</tool_response>\nAnd now?",
    );
    const [first] = plainConversation(more, tools, GENERIC_FORM, false).messages;
    expect(first).toMatchObject({ role: "user", content: expect.stringMatching(/Weather\?$/) });
  });

  it("name the message whose arguments are no JSON", () => {
    const broken = structuredClone(messages);
    broken[1].tool_calls![0].function.arguments = "{";
    expect(() => nativeConversation(broken, tools, undefined)).toThrow(
      /messages\.1\.tool_calls\.0/,
    );
  });
});
