/**
 * Requests as OpenAI's API writes them, checked and translated for the engine. What the engine does not do is refused,
 * not ignored; what changes nothing here (`user`, `store`, …) is taken and dropped. Settings that nobody here has heard of
 * are told to the log, since clients send ever new ones; with `strict` they are refused.
 */
import { z } from "zod";
import { oneLine } from "../common/bounds.js";
import { firstIssue } from "../common/issues.js";
import type { Constraint } from "../engine/constraint/contract.js";
import type { ModelSampling } from "../engine/model-sampling.js";
import {
  REQUEST_LIMITS,
  type ChatMessage,
  type ChatRequest,
  type GenerateRequest,
  type Tool,
} from "../engine/request.js";
import { ApiError } from "./errors.js";

/** Prompts that one completion request may hold. */
const MOST_PROMPTS = 32;

export const dropped = z.unknown().optional();

/** Accepted only with the value that changes nothing. */
export const only = <T extends z.ZodType>(schema: T): z.ZodOptional<z.ZodNullable<T>> =>
  schema.nullable().optional();

const stopString = z.string().max(REQUEST_LIMITS.stopCharacters);

const common = {
  model: z.string().optional(),
  stream: z.boolean().nullish(),
  stream_options: z.object({ include_usage: z.boolean().nullish() }).nullish(),
  max_tokens: z.int().min(1).nullish(),
  n: z.int().min(1).max(REQUEST_LIMITS.choices).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z
    .record(z.string().regex(/^\d{1,9}$/, "give token ids as keys"), z.number().min(-100).max(100))
    .refine((biases) => Object.keys(biases).length <= REQUEST_LIMITS.biases, {
      error: `give biases for at most ${REQUEST_LIMITS.biases} tokens`,
    })
    .nullish(),
  seed: z.int().nullish(),
  stop: z.union([stopString, z.array(stopString).max(REQUEST_LIMITS.stopStrings)]).nullish(),
  // Beyond OpenAI's, by the names that other servers use.
  top_k: z.int().min(-1).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z
    .number()
    .min(REQUEST_LIMITS.leastRepetitionPenalty)
    .max(REQUEST_LIMITS.mostRepetitionPenalty)
    .nullish(),
  ignore_eos: z.boolean().nullish(),
  user: dropped,
  metadata: dropped,
  store: dropped,
  service_tier: dropped,
  safety_identifier: dropped,
  prompt_cache_key: dropped,
};

export const formSchema = z.union([z.boolean(), z.record(z.string(), z.unknown())]);

/** Forms of an answer: OpenAI's, and a pattern or grammar besides. */
const responseFormatSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  // Some servers, and their clients, put the schema beside the type.
  z.strictObject({ type: z.literal("json_object"), schema: formSchema.nullish() }),
  z.strictObject({
    type: z.literal("json_schema"),
    json_schema: z.object({
      name: z.string().max(256).optional(),
      description: z.string().nullish(),
      schema: formSchema.nullish(),
      strict: z.boolean().nullish(),
    }),
  }),
  z.strictObject({ type: z.literal("regex"), pattern: z.string() }),
  z.strictObject({ type: z.literal("grammar"), grammar: z.string() }),
]);

/** One or several, to so many, each as text or as token ids. */
export const promptsSchema = (most: number) =>
  z.union(
    [
      z.string(),
      z.array(z.string()).min(1).max(most),
      z.array(z.int().min(0)).min(1),
      z
        .array(z.array(z.int().min(0)).min(1))
        .min(1)
        .max(most),
    ],
    { error: `give a text, token ids, or a list of 1 to ${most} of either; none empty` },
  );

/** Prompts that one request holds. */
export function promptsOf(given: z.infer<ReturnType<typeof promptsSchema>>): (string | number[])[] {
  const isOne = typeof given === "string" || typeof given[0] === "number";
  return (isOne ? [given] : given) as (string | number[])[];
}

const completionSchema = z.strictObject({
  ...common,
  prompt: promptsSchema(MOST_PROMPTS),
  logprobs: z.int().min(0).max(REQUEST_LIMITS.topLogprobs).nullish(),
  response_format: responseFormatSchema.nullish(),
  echo: only(z.literal(false)),
  suffix: z.string().nullish(),
  best_of: z.int().min(1).nullish(),
});

const textPart = z.object({ type: z.literal("text"), text: z.string() });

const messageSchema = z.looseObject({
  role: z.enum(["system", "developer", "user", "assistant", "tool"]),
  content: z.union([z.string(), z.array(textPart)]).nullish(),
});

const chatSchema = z.strictObject({
  ...common,
  messages: z.array(messageSchema).min(1).max(10_000),
  max_completion_tokens: z.int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(REQUEST_LIMITS.topLogprobs).nullish(),
  response_format: responseFormatSchema.nullish(),
  modalities: only(z.tuple([z.literal("text")])),
  // The engine looks closer, and names what is wrong.
  tools: z.array(z.record(z.string(), z.unknown())).nullish(),
  tool_choice: z
    .union([
      z.enum(["auto", "none", "required"]),
      z.object({ type: z.literal("function"), function: z.object({ name: z.string() }) }),
    ])
    .nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  // What tools were called before there were tools.
  functions: only(z.tuple([])),
  function_call: only(z.literal("none")),
  /** The last message is the assistant's, and is continued (as other servers call it). */
  continue_final_message: z.boolean().nullish(),
  add_generation_prompt: z.boolean().nullish(),
  reasoning_effort: dropped,
  verbosity: dropped,
});

type Common = Partial<Pick<z.infer<typeof completionSchema>, keyof typeof common>>;

/** What the engine is asked, and how the answer is to be written. */
export interface Translated<Request> {
  readonly model: string | undefined;
  /** One for each prompt. */
  readonly requests: readonly Request[];
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly logprobs: boolean;
  /** Settings that were not known, and ignored. */
  readonly ignored: readonly string[];
}

export interface TranslateOptions {
  /** Settings that are not known are refused (default: ignored). */
  readonly strict?: boolean;
  /** What holds where a request says nothing. */
  readonly sampling?: ModelSampling;
}

/** @throws ApiError (400) naming the field. */
export function translateCompletion(
  body: unknown,
  options: TranslateOptions = {},
): Translated<GenerateRequest> {
  const { request, ignored } = check(completionSchema, body, options);
  const { prompt, suffix, n, best_of: bestOf, logprobs, max_tokens: maxTokens } = request;
  if (bestOf !== undefined && bestOf !== null && bestOf !== (n ?? 1))
    throw new ApiError(400, "best_of: only the value of n is supported", { param: "best_of" });
  const settings = {
    ...translateCommon(request, options),
    constraint: translateFormat(request.response_format),
    // OpenAI's default of this endpoint.
    maxTokens: maxTokens ?? 16,
    logprobs: logprobs ?? undefined,
  };
  return {
    ...translateOutput(request),
    requests: promptsOf(prompt).map((each) => ({
      prompt: each,
      suffix: suffix || undefined,
      ...settings,
    })),
    logprobs: logprobs !== undefined && logprobs !== null,
    ignored,
  };
}

/** @throws ApiError (400) naming the field. */
export function translateChat(
  body: unknown,
  options: TranslateOptions = {},
): Translated<ChatRequest> {
  const { request, ignored } = check(chatSchema, body, options);
  const { logprobs, top_logprobs: top, max_tokens, max_completion_tokens } = request;
  if (typeof top === "number" && !logprobs)
    throw new ApiError(400, "top_logprobs: set logprobs to true as well", {
      param: "top_logprobs",
    });
  const messages = request.messages.map(({ role, content, ...rest }) => ({
    ...rest,
    // Templates know the older name.
    role: role === "developer" ? "system" : role,
    content: Array.isArray(content) ? content.map(({ text }) => text).join("") : content,
  })) as ChatMessage[];
  const { tools, tool_choice: choice, parallel_tool_calls: parallel } = request;
  return {
    ...translateOutput(request),
    requests: [
      {
        messages,
        tools: (tools ?? undefined) as Tool[] | undefined,
        toolChoice: typeof choice === "object" ? nameOf(choice) : choice,
        parallelToolCalls: parallel ?? undefined,
        continueFinal: continuesFinal(request),
        ...translateCommon(request, options),
        constraint: translateFormat(request.response_format),
        maxTokens: max_completion_tokens ?? max_tokens ?? undefined,
        logprobs: logprobs ? (top ?? 0) : undefined,
      },
    ],
    logprobs: logprobs === true,
    ignored,
  };
}

function nameOf(choice: { readonly function: { readonly name: string } } | null) {
  return choice === null ? undefined : { name: choice.function.name };
}

/** @throws ApiError (400) for settings that contradict each other, or the messages. */
function continuesFinal({
  messages,
  continue_final_message: continues,
  add_generation_prompt: begins,
}: z.infer<typeof chatSchema>): true | undefined {
  if (continues && begins)
    throw new ApiError(
      400,
      "continue_final_message: an answer is continued or begun; set add_generation_prompt to false",
      { param: "continue_final_message" },
    );
  if (!continues) {
    if (begins === false)
      throw new ApiError(
        400,
        "add_generation_prompt: it can be false with continue_final_message only",
        { param: "add_generation_prompt" },
      );
    return undefined;
  }
  if (messages[messages.length - 1].role !== "assistant")
    throw new ApiError(400, "continue_final_message: the last message is not the assistant's", {
      param: "continue_final_message",
    });
  return true;
}

/** What the text is held to. */
export function translateFormat(
  format: z.infer<typeof responseFormatSchema> | null | undefined,
): Constraint | undefined {
  switch (format?.type) {
    case "json_object":
      return format.schema === null || format.schema === undefined
        ? { type: "json" }
        : { type: "schema", schema: format.schema };
    case "json_schema":
      return { type: "schema", schema: format.json_schema.schema ?? true };
    case "regex":
      return { type: "regex", pattern: format.pattern };
    case "grammar":
      return { type: "grammar", grammar: format.grammar };
    default:
      return undefined;
  }
}

/** Settings of sampling, whichever a request has. */
export function translateCommon(
  request: Omit<Common, "stream_options">,
  { sampling = {} }: TranslateOptions,
) {
  const { stop, top_p: topP, top_k: topK, logit_bias: biases } = request;
  const stops = typeof stop === "string" ? [stop] : (stop ?? []);
  return {
    n: request.n ?? undefined,
    temperature: request.temperature ?? sampling.temperature ?? 1,
    // 0 stands for "only the likeliest" there, which every positive share does that is small enough.
    topP: topP === null || topP === undefined ? sampling.topP : Math.max(topP, 1e-9),
    // -1 stands for all there.
    topK: topK === null || topK === undefined ? sampling.topK : Math.max(topK, 0),
    minP: request.min_p ?? sampling.minP,
    repetitionPenalty: request.repetition_penalty ?? sampling.repetitionPenalty,
    presencePenalty: request.presence_penalty ?? undefined,
    frequencyPenalty: request.frequency_penalty ?? undefined,
    logitBias: biases ?? undefined,
    seed: request.seed ?? undefined,
    stop: stops.filter((text) => text !== ""),
    ignoreEnd: request.ignore_eos ?? undefined,
  };
}

function translateOutput({ model, stream, stream_options: options }: Common) {
  return { model, stream: stream === true, includeUsage: options?.include_usage === true };
}

/** Names of unknown settings that are told, each so long at most. */
const MOST_TOLD = 20;
const LONGEST_NAME = 60;

/** A body's known settings, and the names of the others. @throws ApiError (400) naming the field. */
export function check<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape, z.core.$strict>,
  body: unknown,
  { strict = false }: TranslateOptions,
): { request: z.infer<typeof schema>; ignored: string[] } {
  const isObject = typeof body === "object" && body !== null && !Array.isArray(body);
  const entries = isObject && !strict ? Object.entries(body) : [];
  const isKnown = ([name]: [string, unknown]): boolean => Object.hasOwn(schema.shape, name);
  const unknown = entries.filter((entry) => !isKnown(entry)).map(([name]) => name);
  const known = unknown.length > 0 ? Object.fromEntries(entries.filter(isKnown)) : body;
  const result = schema.safeParse(known);
  if (result.success)
    return {
      request: result.data,
      ignored: unknown.slice(0, MOST_TOLD).map((name) => oneLine(name, LONGEST_NAME)),
    };
  const { field: param, reason } = firstIssue(result.error);
  const message = param === "" ? reason : `${param}: ${reason}`;
  throw new ApiError(400, message, { param: param || undefined });
}
