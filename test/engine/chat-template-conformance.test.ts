/**
 * Chat templates rendered as transformers renders them (test/fixtures/templates/make-vectors.py): templates after the
 * manner of published models with several conversations, one construct at a time, and dates.
 */

import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ChatTemplate } from "../../src/engine/chat-template.js";
import { EngineError, type ChatMessage } from "../../src/engine/request.js";
import { JinjaTemplate } from "../../src/engine/template/interpreter.js";
import { strftime } from "../../src/engine/template/strftime.js";
import { TemplateError } from "../../src/engine/template/values.js";

interface Vectors {
  special: Record<string, string>;
  now: [number, number, number, number, number, number, number];
  tools: Record<string, unknown>[];
  conversations: Record<string, Record<string, unknown>[]>;
  /** Rows are conversation, whether tools are given, and the text, or null for an error. */
  templates: { name: string; source: string; rows: [string, boolean, string | null][] }[];
  snippets: [string, string | null][];
  times: [Vectors["now"], string, string][];
}

const vectors = JSON.parse(
  readFileSync(new URL("../fixtures/templates/vectors.json", import.meta.url), "utf8"),
) as Vectors;

function dateOf([year, month, ...rest]: Vectors["now"]): Date {
  return new Date(year, month - 1, ...rest);
}

/** The text, or null where the template fails in the one way that it may. */
function rendered(source: string, conversation: string, withTools: boolean): string | null {
  try {
    return new JinjaTemplate(source).render(
      {
        messages: vectors.conversations[conversation],
        tools: withTools ? vectors.tools : null,
        documents: null,
        add_generation_prompt: true,
        ...vectors.special,
      },
      dateOf(vectors.now),
    );
  } catch (error) {
    if (!(error instanceof TemplateError)) throw error;
    return null;
  }
}

describe("templates of published forms", () => {
  it.each(vectors.templates.map((item) => [item.name, item] as const))(
    "%s: as transformers renders it",
    (_, { source, rows }) => {
      const got = rows.map(([name, tools]) => [name, tools, rendered(source, name, tools)]);
      expect(got).toEqual(rows);
    },
  );
});

/** What Python accepts and is refused here by name (docs/notes/tokenizers.md). */
const REFUSED =
  /random|pprint|lipsum|\{true: 1\}|1\.5: 1|\(1,2\): 3|striptags|filesizeformat|wordwrap|1 is filter|block a|autoescape|\{\{ 10{20} /;

describe("one construct at a time", () => {
  it.each(vectors.snippets.filter(([source]) => !REFUSED.test(source)))("%j", (source, text) => {
    expect(rendered(source, "system", false)).toBe(text);
  });

  it.each(vectors.snippets.filter(([source]) => REFUSED.test(source)))(
    "%j is refused",
    (source) => {
      expect(rendered(source, "system", false)).toBeNull();
    },
  );
});

describe("strftime", () => {
  it.each(vectors.times)("%j %s", (date, format, text) => {
    expect(strftime(dateOf(date), format)).toBe(text);
  });
});

describe("ChatTemplate", () => {
  const messages: ChatMessage[] = [{ role: "user", content: "Hi" }];
  const render = (source: string): string =>
    new ChatTemplate(source, vectors.special).render(messages);

  it("gives what transformers gives: messages, no tools, no documents, special tokens", () => {
    expect(render("{{ bos_token }}{{ messages[0].content }}{{ tools }}{{ documents }}")).toBe(
      "<s>HiNoneNone",
    );
    expect(render("{{ add_generation_prompt }}{{ sep_token is defined }}")).toBe("TrueFalse");
  });

  it("mends the faults found from outside", () => {
    const now = new Date();
    const [day, date] = [strftime(now, "%A"), String(now.getDate())];
    expect(render("{{ strftime_now('%A %-d') }}")).toBe(`${day} ${date}`);
    expect(render("{{ '' != false }}")).toBe("True");
    expect(render("{% for m in [1, 2] %}a{% break %}{% endfor %}")).toBe("a");
  });

  it.each([
    ["{% if x %}", /cannot be read: expected the tag 'endif', found the end/],
    ["{% include 'x' %}", /the tag 'include' is not implemented \(accepted: if, for/],
    ["a\nb{{ 'x }}", /line 2: unexpected character/],
    ["{{ 1 | }}", /expected a name/],
    [`{{ ${"(".repeat(1000)}1${")".repeat(1000)} }}`, /more than 150 levels of nesting/],
    ["{% if 1 %}".repeat(1000), /more than 150 levels of nesting/],
    [`{{ ${"not ".repeat(1000)}1 }}`, /more than 150 levels of nesting/],
    [`{{ ${"-".repeat(1000)}1 }}`, /more than 150 levels of nesting/],
  ] as [string, RegExp][])("refuses to read %j", (source, message) => {
    expect(() => new ChatTemplate(source, {})).toThrow(EngineError);
    expect(() => new ChatTemplate(source, {})).toThrow(message);
  });

  it.each([
    ["{{ raise_exception('roles') }}", /refuses these messages: roles/],
    ["{{ x.y }}", /'x' is undefined/],
    ["{{ 1 | random }}", /the filter 'random' is not implemented/],
    ["{{ 1 is prime }}", /the test 'prime' is not implemented/],
    ["{{ 'a'.encode() }}", /str\.encode is not implemented/],
    ["{{ messages.append(1) }}", /unsafe/],
    ["{% for i in range(1000000) %}{% endfor %}", /Range too big/],
    ["{{ 'a' * 1000000000 }}", /too long/],
    ["{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", /f calls itself more than 200 times/],
    ["{{ 9007199254740991 + 1 }}", /integers beyond 2\^53/],
  ] as [string, RegExp][])("refuses to render %j", (source, message) => {
    expect(() => render(source)).toThrow(EngineError);
    expect(() => render(source)).toThrow(message);
  }); // prettier-ignore

  it("fails in one way only, whatever the source", () => {
    const pieces = fc.constantFrom(
      ...["{{", "}}", "{%", "%}", "{#", "#}", "-", "'a'", "x", "if", "for", "in", "endfor", "endif", "set", "=", "("],
      ...[")", "[", "]", "{", "}", ":", ",", "|", "map", "is", "not", "1", "2.5", "messages", ".", "\n", " ", "raw", "endraw"],
    ); // prettier-ignore
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 40 }), (parts) => {
        try {
          new JinjaTemplate(parts.join(" ")).render({ messages: [{ role: "user" }] });
        } catch (error) {
          expect(error).toBeInstanceOf(TemplateError);
        }
      }),
      { numRuns: 3000 },
    );
  });

  it("leaves text without tags as it is", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (text) => {
        fc.pre(!/[{]|[\r\n]/.test(text));
        expect(new JinjaTemplate(text).render({})).toBe(text);
        expect(new JinjaTemplate("{{ x }}").render({ x: text })).toBe(text);
      }),
    );
  });
});
