/** Answers with tools, over an executor that computes nothing: whatever it likes, its calls have their schemas' form. */
import { afterAll, describe, expect, it } from "vitest";
import type { Tokenizer } from "../../../src/checkpoint/tokenizer.js";
import { ConstraintPool } from "../../../src/engine/constraint/pool.js";
import { vocabularyOf } from "../../../src/engine/constraint/vocabulary.js";
import { collect, type Engine } from "../../../src/engine/engine.js";
import type { ChatRequest, Tool } from "../../../src/engine/request.js";
import { launchGuides } from "../constraint/launch.js";
import { fakeEngine, fakeExecutor } from "../fake-executor.js";

const SPECIALS = ["<end>", "[TOOL_CALLS]", "[ARGS]"];
const CHARACTERS = ["\n", ...Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i))];
const SPELLINGS = [...SPECIALS, ...CHARACTERS];

/** A token for each character of ASCII, and special ones, of which the first ends a text. */
function asciiTokenizer(chatTemplate: string): Tokenizer {
  const decode: Tokenizer["decode"] = (ids, { skipSpecialTokens = true } = {}) =>
    Array.from(ids, (id) => (skipSpecialTokens && id < SPECIALS.length ? "" : SPELLINGS[id])).join(
      "",
    );
  return {
    encode: (text) => Array.from(text, (char) => Math.max(SPELLINGS.indexOf(char), 3)),
    decode,
    stream: () => ({ push: (id) => decode([id]), flush: () => "" }),
    bosTokenId: undefined,
    eosTokenIds: [0],
    vocabSize: SPELLINGS.length,
    chatTemplate,
    tokenToId: (token) => (SPELLINGS.includes(token) ? SPELLINGS.indexOf(token) : undefined),
    idToToken: (id) => SPELLINGS[id],
    specialTokens: {},
  };
}

const MESSAGES = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
const TEMPLATES = {
  hermes: `{{ tools }}<tool_call>${MESSAGES}`,
  llama3: `{{ tools }}<|start_header_id|>{"name": "x", "parameters": {}}${MESSAGES}`,
  mistral: `{{ tools }}[TOOL_CALLS] [${MESSAGES}`,
  "mistral-args": `{{ tools }}[TOOL_CALLS]f[ARGS]${MESSAGES}`,
  generic: MESSAGES,
};

/** Engines by their template: starting the threads of one takes longer than what is asked of it. */
const engines = new Map<string, Promise<Engine>>();
afterAll(async () => {
  for (const engine of engines.values()) await (await engine).close();
});

function start(template: string, toolFallback = true): Promise<Engine> {
  const key = `${toolFallback} ${template}`;
  const found = engines.get(key) ?? make(template, toolFallback);
  engines.set(key, found);
  return found;
}

async function make(template: string, toolFallback: boolean): Promise<Engine> {
  const tokenizer = asciiTokenizer(template);
  const constraints = new ConstraintPool({
    tokens: { vocabulary: vocabularyOf(tokenizer) },
    launch: launchGuides,
  });
  const executor = fakeExecutor({ vocabSize: SPELLINGS.length, pageTokens: 64 });
  const host = { toolFallback, pages: 200 };
  const { engine } = await fakeEngine(executor, host, tokenizer, { constraints });
  return engine;
}

const tools: Tool[] = [
  {
    type: "function",
    function: {
      name: "get_weather",
      parameters: {
        type: "object",
        properties: { days: { $ref: "#/$defs/days" }, unit: { enum: ["C", "F"] } },
        required: ["days", "unit"],
        $defs: { days: { type: "integer", minimum: 1, maximum: 9 } },
      },
    },
  },
  { type: "function", function: { name: "get_weathers" } },
];
const WEATHER = /^\{\s*"days":\s*[1-9],\s*"unit":\s*"[CF]"\s*\}$/;
const request: ChatRequest = {
  messages: [{ role: "user", content: "Weather?" }],
  tools,
  temperature: 1,
  maxTokens: 400,
};
const tokenOf = (spelling: string): number => SPELLINGS.indexOf(spelling);

describe.each(Object.keys(TEMPLATES) as (keyof typeof TEMPLATES)[])("tools as %s", (name) => {
  it("are called when that is required, one or several, each with its own arguments", async () => {
    const engine = await start(TEMPLATES[name]);
    expect(engine.info.toolForm).toBe(name);
    const names = new Set<string>();
    let most = 0;
    for (let seed = 0; seed < 4; seed++) {
      const { choices } = await collect(
        engine.chat({ ...request, seed, n: 3, toolChoice: "required", logprobs: 0 }),
      );
      for (const { text, toolCalls = [], tokens } of choices) {
        expect(text).toBe("");
        expect(toolCalls.length).toBeGreaterThan(0);
        most = Math.max(most, toolCalls.length);
        const whole = tokens.length < 400 ? toolCalls : toolCalls.slice(0, -1);
        for (const { id, function: own } of whole) {
          expect(id).toMatch(/^call_\w{24}$/);
          names.add(own.name);
          if (own.name === "get_weather") expect(own.arguments).toMatch(WEATHER);
          else expect(own.arguments).toMatch(/^\{\s*\}$/);
        }
      }
    }
    expect([...names].sort()).toEqual(["get_weather", "get_weathers"]);
    if (name === "llama3") expect(most).toBe(1);
    else expect(most).toBeGreaterThan(1);
  });

  it("are called once by name, or once where calls are not to be parallel", async () => {
    const engine = await start(TEMPLATES[name]);
    const named = await collect(
      engine.chat({ ...request, seed: 1, n: 2, toolChoice: { name: "get_weathers" } }),
    );
    const single = await collect(
      engine.chat({
        ...request,
        seed: 1,
        n: 2,
        toolChoice: "required",
        parallelToolCalls: false,
      }),
    );
    for (const { toolCalls, finishReason } of [...named.choices, ...single.choices])
      expect([toolCalls?.length, finishReason]).toEqual([1, "stop"]);
    for (const { toolCalls } of named.choices)
      expect(toolCalls?.[0].function.name).toBe("get_weathers");
  });

  it("are let alone, and the answer is text", async () => {
    const engine = await start(TEMPLATES[name]);
    const none = await collect(engine.chat({ ...request, seed: 1, toolChoice: "none" }));
    expect(none.choices[0].toolCalls).toBeUndefined();
    expect(none.choices[0].text.length).toBeGreaterThan(0);
    const logitBias = { [tokenOf("{")]: -100, [tokenOf("[TOOL_CALLS]")]: -100 };
    const auto = await collect(engine.chat({ ...request, seed: 1, maxTokens: 30, logitBias }));
    expect(auto.choices[0].toolCalls).toBeUndefined();
    expect(auto.choices[0].text.length).toBeGreaterThan(0);
  });
});

describe("an answer that may call", () => {
  it("calls behind its text where it comes to the mark, and never otherwise", async () => {
    const engine = await start(TEMPLATES["mistral-args"]);
    const seen = new Set<string>();
    for (let seed = 0; seed < 5; seed++) {
      const logitBias = { [tokenOf("[TOOL_CALLS]")]: 3.5, 0: -1 };
      const { choices } = await collect(engine.chat({ ...request, seed, logitBias }));
      const [{ text, toolCalls = [], finishReason }] = choices;
      if (finishReason === "stop")
        for (const { function: own } of toolCalls)
          expect(own.arguments).toMatch(own.name === "get_weather" ? WEATHER : /^\{\s*\}$/);
      expect(text).not.toContain("get_weather");
      seen.add(`${text !== ""} ${toolCalls.length > 0}`);
    }
    expect(seen).toContain("true true");
  });

  it("keeps to its other form, or calls", async () => {
    const engine = await start(TEMPLATES.mistral);
    const constraint = { type: "schema" as const, schema: { type: "integer", minimum: 0 } };
    const seen = new Set<string>();
    for (let seed = 0; seed < 6; seed++) {
      const logitBias = { [tokenOf("[TOOL_CALLS]")]: 2 };
      const { choices } = await collect(engine.chat({ ...request, seed, constraint, logitBias }));
      const [{ text, toolCalls, finishReason }] = choices;
      if (finishReason !== "stop") continue;
      if (toolCalls) expect(text).toBe("");
      else expect(text).toMatch(/^\d+$/);
      seen.add(toolCalls ? "call" : "text");
    }
    expect([...seen].sort()).toEqual(["call", "text"]);
  });

  it("is refused by name where it makes no sense", async () => {
    const engine = await start(TEMPLATES.llama3);
    const refused: [Partial<ChatRequest>, RegExp][] = [
      [{ tools: [], toolChoice: "required" }, /^toolChoice: there are no tools/],
      [{ toolChoice: { name: "other" } }, /^toolChoice: there is no tool called other/],
      [{ tools: [tools[1], tools[1]] }, /^tools: two functions are called get_weathers/],
      [
        { tools: [{ type: "function", function: { name: "f", parameters: { not: {} } } }] },
        /^tools: parameters of f: schema: the keyword "not" is not supported/,
      ],
      [{ tools: [{ type: "function", function: { name: "a b" } }] }, /^tools\.0\.function\.name/],
      [{ constraint: { type: "json" } }, /^constraint: this model's calls cannot be told/],
      [{ ignoreEnd: true }, /^ignoreEnd/],
    ];
    for (const [change, says] of refused)
      await expect(collect(engine.chat({ ...request, ...change }))).rejects.toMatchObject({
        code: "invalid",
        message: expect.stringMatching(says),
      });
  });

  it("is refused where the template has no form and none of ours is wanted", async () => {
    const engine = await start(TEMPLATES.generic, false);
    expect(engine.info.toolForm).toBeUndefined();
    await expect(collect(engine.chat(request))).rejects.toMatchObject({
      code: "invalid",
      message: expect.stringMatching(/^tools: the model's chat template has no form/),
    });
    const text = await collect(engine.chat({ ...request, toolChoice: "none", maxTokens: 3 }));
    expect(text.choices).toHaveLength(1);
  });
});
