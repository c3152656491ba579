/**
 * The packages that people call servers with, against the real one: each has a chat, a round trip with a tool, and a
 * typed object. tiny-llama knows nothing, so that what has a form has it because it was held to it.
 */

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import { HumanMessage } from "@langchain/core/messages";
import { tool as langchainTool } from "@langchain/core/tools";
import { FunctionTool } from "@llamaindex/core/tools";
import { OpenAI as LlamaIndexOpenAI } from "@llamaindex/openai";
import {
  generateObject,
  generateText,
  stepCountIs,
  streamText,
  tool,
  type LanguageModel,
} from "ai";
import type OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { chatModel } from "./chat-model.js";
import { startServer, type Server } from "./start-server.js";

const directory = temporaryDirectory();
const MODEL = "chat-llama";
let server: Server;
beforeAll(async () => {
  server = await startServer(chatModel(directory.file(MODEL)), ["--threads", "1"]);
});
afterAll(() => {
  server.child.kill("SIGKILL");
  directory[Symbol.dispose]();
});

const Route = z.object({
  port: z.enum(["London", "Bristol"]),
  days: z.int().min(1).max(9),
});
const Ship = z.object({ masts: z.int().min(1).max(5), sails: z.boolean() });
const QUESTION = "Where does the ship go?";

describe("openai", () => {
  const chat = {
    model: MODEL,
    messages: [{ role: "user" as const, content: QUESTION }],
    max_completion_tokens: 200,
    seed: 3,
  };

  it("chats, whole and streamed", async () => {
    const request = { ...chat, max_completion_tokens: 8 };
    const whole = await server.client.chat.completions.create(request);
    const stream = server.client.chat.completions.stream(request);
    expect(await stream.finalContent()).toBe(whole.choices[0].message.content);
  });

  it("calls a tool, streamed as whole, and is told the result", async () => {
    const { completions } = server.client.chat;
    const request = {
      ...chat,
      tools: [zodFunction({ name: "plan_route", parameters: Route })],
      tool_choice: "required" as const,
      parallel_tool_calls: false,
    };
    const whole = await completions.parse(request);
    const [{ message, finish_reason: reason }] = whole.choices;
    expect([reason, message.content]).toEqual(["tool_calls", null]);
    const [call] = message.tool_calls!;
    expect(call.function.name).toBe("plan_route");
    expect(Route.parse(call.function.parsed_arguments)).toEqual(
      JSON.parse(call.function.arguments),
    );
    const pieces: OpenAI.ChatCompletionChunk.Choice.Delta.ToolCall[] = [];
    const stream = await completions.create({ ...request, stream: true });
    for await (const { choices } of stream) pieces.push(...(choices[0].delta.tool_calls ?? []));
    expect(pieces.length).toBeGreaterThan(3);
    expect(pieces[0]).toMatchObject({ index: 0, type: "function", function: { arguments: "" } });
    expect(pieces.map((piece) => piece.function?.arguments).join("")).toBe(call.function.arguments);
    const messages: OpenAI.ChatCompletionMessageParam[] = [
      ...chat.messages,
      message,
      { role: "tool", tool_call_id: call.id, content: "It goes to sea." },
    ];
    const after = await completions.create({ ...request, messages, tool_choice: "none" });
    expect(after.choices[0].message.content?.length).toBeGreaterThan(0);
    expect(after.usage!.prompt_tokens).not.toBe(whole.usage!.prompt_tokens);
  });

  it("gets typed objects", async () => {
    const { choices } = await server.client.chat.completions.parse({
      ...chat,
      response_format: zodResponseFormat(Ship, "ship"),
    });
    expect(Ship.parse(choices[0].message.parsed)).toBeTruthy();
  });

  it("has an answer continued that was begun for the model", async () => {
    const begun = "The ship was bound for";
    const request = {
      ...chat,
      messages: [...chat.messages, { role: "assistant" as const, content: begun }],
      max_completion_tokens: 6,
      temperature: 0,
      continue_final_message: true,
    };
    const { choices, usage } = await server.client.chat.completions.create(request);
    const prompt = `"${QUESTION}" he asked.\n\n${begun}`;
    const plain = { model: MODEL, prompt, max_tokens: 6, temperature: 0 };
    const same = await server.client.completions.create(plain);
    expect(choices[0].message.content).toBe(same.choices[0].text);
    expect(usage!.prompt_tokens).toBeLessThanOrEqual(same.usage!.prompt_tokens);
  });
});

describe("openai, responses", () => {
  const asking = { model: MODEL, input: QUESTION, max_output_tokens: 400 };

  it("answers, streams the same, and goes on from what it remembers", async () => {
    const { responses } = server.client;
    const request = { ...asking, max_output_tokens: 8, temperature: 0, instructions: "Be brief." };
    const whole = await responses.create(request);
    expect(whole).toMatchObject({ status: "incomplete", object: "response" });
    expect(whole.output_text.length).toBeGreaterThan(0);
    const types: string[] = [];
    const numbers: number[] = [];
    let text = "";
    const stream = await responses.create({ ...request, stream: true });
    for await (const event of stream) {
      types.push(event.type);
      numbers.push(event.sequence_number);
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.incomplete")
        expect(event.response.output_text ?? text).toBe(text);
    }
    expect(text).toBe(whole.output_text);
    expect(numbers).toEqual(numbers.map((_, i) => i));
    expect([...new Set(types)]).toEqual([
      "response.created",
      "response.in_progress",
      "response.output_item.added",
      "response.content_part.added",
      "response.output_text.delta",
      "response.output_text.done",
      "response.content_part.done",
      "response.output_item.done",
      "response.incomplete",
    ]);
    const next = { ...request, input: "And then?" };
    const remembered = await responses.create({ ...next, previous_response_id: whole.id });
    const said = await responses.create({
      ...next,
      input: [
        { role: "user", content: QUESTION },
        { role: "assistant", content: whole.output_text },
        { role: "user", content: "And then?" },
      ],
    });
    expect(remembered.output_text).toBe(said.output_text);
    expect(remembered.usage!.input_tokens).toBe(said.usage!.input_tokens);
    expect((await responses.retrieve(whole.id)).output_text).toBe(whole.output_text);
    await responses.delete(whole.id);
    await expect(responses.retrieve(whole.id)).rejects.toMatchObject({ status: 404 });
    await expect(
      responses.create({ ...next, previous_response_id: whole.id }),
    ).rejects.toMatchObject({ status: 404, code: "previous_response_not_found" });
  });

  it("calls a tool, is told the result, and gives typed objects", async () => {
    const { responses } = server.client;
    const route = {
      type: "function" as const,
      name: "plan_route",
      parameters: z.toJSONSchema(Route),
      strict: true,
    };
    const request = { ...asking, tools: [route], parallel_tool_calls: false };
    const stream = responses.stream({ ...request, tool_choice: "required" });
    const called = await stream.finalResponse();
    const [call] = called.output;
    if (call.type !== "function_call") throw new Error(`it answered with ${call.type}`);
    expect(Route.parse(JSON.parse(call.arguments))).toBeTruthy();
    const after = await responses.create({
      ...request,
      tool_choice: "none",
      previous_response_id: called.id,
      input: [{ type: "function_call_output", call_id: call.call_id, output: "To sea." }],
    });
    expect(after.output_text.length).toBeGreaterThan(0);
    const typed = await responses.parse({
      ...asking,
      text: { format: zodTextFormat(Ship, "ship") },
    });
    expect(Ship.parse(typed.output_parsed)).toBeTruthy();
  });

  it("is refused in the same words as elsewhere", async () => {
    const { responses } = server.client;
    await expect(
      responses.create({ ...asking, tools: [{ type: "web_search" }] }),
    ).rejects.toMatchObject({ status: 400, param: "tools.0.type" });
    await expect(
      responses.create({ ...asking, input: [{ type: "item_reference", id: "msg_x" }] }),
    ).rejects.toMatchObject({ status: 404, param: "input" });
  });
});

describe("openai, vectors and tokens", () => {
  it("embeds texts: the same in every encoding and company, of length 1", async () => {
    const { embeddings } = server.client;
    const input = ["The ship was bound for London.", "A cat.", "The ship was bound for London."];
    const { data, usage } = await embeddings.create({ model: MODEL, input });
    const floats = await embeddings.create({ model: MODEL, input, encoding_format: "float" });
    expect(data.map(({ embedding }) => embedding)).toEqual(
      floats.data.map(({ embedding }) => embedding),
    );
    const [ship, cat, again] = data.map(({ embedding }) => embedding);
    expect(ship).toHaveLength(256);
    const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i], 0);
    expect(dot(ship, ship)).toBeCloseTo(1, 5);
    expect(again).toEqual(ship);
    expect(dot(ship, cat)).toBeLessThan(0.999);
    expect(usage.prompt_tokens).toBeGreaterThan(6);
    const lasts = await embeddings.create({ model: MODEL, input, pooling: "last" } as never);
    expect(lasts.data[0].embedding).not.toEqual(ship);
    await expect(embeddings.create({ model: MODEL, input, dimensions: 5 })).rejects.toMatchObject({
      status: 400,
      param: "dimensions",
    });
  });

  it("tells a text's tokens, and a chat's, and writes them out again", async () => {
    const post = async (path: string, body: object): Promise<unknown> =>
      (
        await fetch(`${server.url}/${path}`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
        })
      ).json();
    const prompt = "The ship was bound for London.";
    const { tokens, count } = (await post("tokenize", { prompt })) as {
      tokens: number[];
      count: number;
    };
    expect(count).toBe(tokens.length);
    expect(await post("detokenize", { tokens })).toEqual({ prompt });
    const { usage } = await server.client.completions.create({
      model: MODEL,
      prompt,
      max_tokens: 1,
    });
    expect(usage!.prompt_tokens).toBe(count);
    const messages = [{ role: "user", content: QUESTION }];
    const chat = (await post("tokenize", { messages })) as { tokens: number[] };
    expect(await post("detokenize", { tokens: chat.tokens })).toEqual({
      prompt: `"${QUESTION}" he asked.\n\n`,
    });
    expect(await post("detokenize", { tokens: [999_999] })).toMatchObject({
      error: { type: "invalid_request_error", param: "tokens" },
    });
  });

  it("refuses a suffix where the tokenizer has no tokens for it", async () => {
    await expect(
      server.client.completions.create({ model: MODEL, prompt: "a", suffix: "b" }),
    ).rejects.toMatchObject({ status: 400, param: "suffix" });
  });
});

/** A model that knows nothing would call on and on. */
const ONE_CALL = {
  openai: { parallelToolCalls: false },
  planish: { parallel_tool_calls: false },
};

const providers: [string, () => LanguageModel][] = [
  [
    "@ai-sdk/openai-compatible",
    () =>
      createOpenAICompatible({
        name: "planish",
        baseURL: `${server.url}/v1`,
        supportsStructuredOutputs: true,
      })(MODEL),
  ],
  // What `openai()` uses unless it is told otherwise.
  [
    "@ai-sdk/openai, responses",
    () => createOpenAI({ baseURL: `${server.url}/v1`, apiKey: "any" })(MODEL),
  ],
  [
    "@ai-sdk/openai, chat",
    () => createOpenAI({ baseURL: `${server.url}/v1`, apiKey: "any" }).chat(MODEL),
  ],
];

describe.each(providers)("ai with %s", (_, model) => {
  it("generates and streams text", async () => {
    const request = { model: model(), prompt: QUESTION, maxOutputTokens: 8, temperature: 0 };
    const { text, usage } = await generateText(request);
    expect(usage.outputTokens).toBeGreaterThan(0);
    expect(await streamText(request).text).toBe(text);
  });

  it("calls a tool in one step and speaks in the next", async () => {
    const asked: unknown[] = [];
    const { steps } = await generateText({
      model: model(),
      prompt: QUESTION,
      seed: 4,
      maxOutputTokens: 400,
      tools: {
        plan_route: tool({
          inputSchema: Route,
          execute: (input) => {
            asked.push(Route.parse(input));
            return "It goes to sea.";
          },
        }),
      },
      providerOptions: ONE_CALL,
      stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    });
    expect(asked.length).toBeGreaterThan(0);
    expect(steps.map(({ finishReason }) => finishReason)[0]).toBe("tool-calls");
    expect(steps[1].text.length).toBeGreaterThan(0);
  });

  it("streams a tool's call", async () => {
    const { toolCalls } = streamText({
      model: model(),
      prompt: QUESTION,
      seed: 5,
      maxOutputTokens: 400,
      tools: { plan_route: tool({ inputSchema: Route }) },
      toolChoice: { type: "tool", toolName: "plan_route" },
    });
    const [call] = await toolCalls;
    expect(Route.parse(call.input)).toEqual(call.input);
  });

  it("generates an object", async () => {
    // Programs written before version 6 call it so.
    // eslint-disable-next-line @typescript-eslint/no-deprecated
    const { object } = await generateObject({
      model: model(),
      prompt: QUESTION,
      schema: Ship,
      maxOutputTokens: 400,
    });
    expect(Ship.parse(object)).toEqual(object);
  });
});

describe("@langchain/openai", () => {
  const model = () =>
    new ChatOpenAI({
      model: MODEL,
      apiKey: "any",
      maxTokens: 400,
      maxRetries: 0,
      configuration: { baseURL: `${server.url}/v1` },
    });
  const route = langchainTool(() => "It goes to sea.", {
    name: "plan_route",
    description: "Plans a route",
    schema: Route,
  });

  it("chats, calls a bound tool, and is told the result", async () => {
    const question = new HumanMessage(QUESTION);
    const bound = model().bindTools([route], { tool_choice: "plan_route" });
    const message = await bound.invoke([question]);
    const [call] = message.tool_calls!;
    expect(Route.parse(call.args)).toEqual(call.args);
    const result = await route.invoke({ ...call, type: "tool_call" });
    const after = await model().invoke([question, message, result]);
    expect(after.text.length).toBeGreaterThan(0);
  });

  it.each(["jsonSchema", "functionCalling"] as const)("gets typed objects (%s)", async (method) => {
    const structured = model().withStructuredOutput(Ship, { method, name: "ship" });
    expect(Ship.parse(await structured.invoke(QUESTION))).toBeTruthy();
  });
});

describe("LlamaIndex", () => {
  const model = (more = {}) =>
    new LlamaIndexOpenAI({
      model: MODEL,
      apiKey: "any",
      maxTokens: 400,
      baseURL: `${server.url}/v1`,
      ...more,
    });
  const messages = [{ role: "user" as const, content: QUESTION }];

  it("chats, calls a tool, and is told the result", async () => {
    const asked: unknown[] = [];
    const route = FunctionTool.from(
      (input: z.infer<typeof Route>) => {
        asked.push(input);
        return "It goes to sea.";
      },
      { name: "plan_route", description: "Plans a route", parameters: Route },
    );
    const calling = model({
      additionalChatOptions: { tool_choice: "required", parallel_tool_calls: false },
    });
    const { newMessages, toolCalls } = await calling.exec({ messages, tools: [route] });
    expect(toolCalls.length).toBeGreaterThan(0);
    expect(asked.map((input) => Route.parse(input))).toEqual(asked);
    const { message } = await model().chat({ messages: [...messages, ...newMessages] });
    expect(message.content).toMatch(/\w/);
  });

  it("gets typed objects", async () => {
    const formatting = model({
      additionalChatOptions: { tool_choice: "required", parallel_tool_calls: false },
    });
    const { object } = await formatting.exec({ messages, responseFormat: Ship });
    expect(Ship.parse(object)).toBeTruthy();
  });
});
