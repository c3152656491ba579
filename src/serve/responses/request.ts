/** Requests to `/v1/responses`, checked and translated to chats. */
import { z } from "zod";
import { REQUEST_LIMITS, type ChatRequest, type Tool } from "../../engine/request.js";
import { ApiError } from "../errors.js";
import {
  check,
  dropped,
  formSchema,
  only,
  translateCommon,
  translateFormat,
  type Translated,
  type TranslateOptions,
} from "../requests.js";
import { inputItem, messagesOf, resolved, type KnownItem } from "./items.js";
import type { ResponseStore } from "./store.js";

const formatSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("json_object") }),
  z.strictObject({
    type: z.literal("json_schema"),
    name: z.string().max(256).optional(),
    description: z.string().nullish(),
    schema: formSchema.nullish(),
    strict: z.boolean().nullish(),
  }),
]);

const toolSchema = z.looseObject({
  type: z.literal("function", "only functions are known here"),
  name: z.string(),
  description: z.string().nullish(),
  parameters: formSchema.nullish(),
  strict: z.boolean().nullish(),
});

const responseSchema = z.strictObject({
  model: z.string().optional(),
  input: z.union([z.string(), z.array(inputItem).min(1).max(10_000)]),
  instructions: z.string().nullish(),
  previous_response_id: z.string().nullish(),
  store: z.boolean().nullish(),
  stream: z.boolean().nullish(),
  stream_options: dropped,
  max_output_tokens: z.int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  top_logprobs: z.int().min(0).max(REQUEST_LIMITS.topLogprobs).nullish(),
  include: z.array(z.string()).nullish(),
  text: z.looseObject({ format: formatSchema.nullish() }).nullish(),
  tools: z.array(toolSchema).nullish(),
  tool_choice: z
    .union([
      z.enum(["auto", "none", "required"]),
      z.looseObject({ type: z.literal("function"), name: z.string() }),
    ])
    .nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  truncation: only(z.literal("disabled")),
  background: only(z.literal(false)),
  seed: z.int().nullish(),
  // What some clients send as in chats.
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  metadata: z.record(z.string(), z.string()).nullish(),
  user: dropped,
  reasoning: dropped,
  service_tier: dropped,
  safety_identifier: dropped,
  prompt_cache_key: dropped,
});

type ResponseBody = z.infer<typeof responseSchema>;

/** What answers say again of the request. */
export type Asked = Pick<
  ResponseBody,
  | "instructions"
  | "max_output_tokens"
  | "metadata"
  | "parallel_tool_calls"
  | "previous_response_id"
  | "store"
  | "temperature"
  | "text"
  | "tool_choice"
  | "tools"
  | "top_p"
>;

export interface TranslatedResponse extends Translated<ChatRequest> {
  readonly asked: Asked;
  /** The conversation up to the answer. */
  readonly items: readonly KnownItem[];
}

/** @throws ApiError naming the field. */
export function translateResponse(
  body: unknown,
  options: TranslateOptions,
  store: ResponseStore,
  client: string,
): TranslatedResponse {
  const { request, ignored } = check(responseSchema, body, options);
  const { previous_response_id: previous, input, tool_choice: choice } = request;
  const before = previous ? store.get(client, previous) : undefined;
  if (previous && !before)
    throw new ApiError(
      404,
      `previous_response_id: there is no response ${previous.slice(0, 100)} here (any more); send the conversation`,
      { param: "previous_response_id", code: "previous_response_not_found" },
    );
  const given: KnownItem[] =
    typeof input === "string"
      ? [{ role: "user", content: input }]
      : resolved(input, (id) => store.item(client, id));
  const items = [...(before?.items ?? []), ...given];
  const wantsLogprobs =
    request.include?.includes("message.output_text.logprobs") === true ||
    typeof request.top_logprobs === "number";
  return {
    model: request.model,
    stream: request.stream === true,
    includeUsage: true,
    logprobs: wantsLogprobs,
    ignored,
    asked: request,
    items,
    requests: [
      {
        messages: messagesOf(items, request.instructions),
        tools: request.tools?.map(toolOf),
        toolChoice:
          typeof choice === "object" && choice ? { name: choice.name } : (choice ?? undefined),
        parallelToolCalls: request.parallel_tool_calls ?? undefined,
        ...translateCommon(request, options),
        constraint: translateFormat(formatOf(request)),
        maxTokens: request.max_output_tokens ?? undefined,
        logprobs: wantsLogprobs ? (request.top_logprobs ?? 0) : undefined,
      },
    ],
  };
}

function toolOf({ name, description, parameters, strict }: z.infer<typeof toolSchema>): Tool {
  return {
    type: "function",
    function: {
      name,
      ...(description ? { description } : {}),
      ...(parameters === null || parameters === undefined ? {} : { parameters }),
      ...(strict === null || strict === undefined ? {} : { strict }),
    },
  };
}

/** The form as chats have it. */
function formatOf({ text }: ResponseBody): Parameters<typeof translateFormat>[0] {
  const format = text?.format;
  if (format?.type !== "json_schema") return format;
  const { type, name, schema } = format;
  return { type, json_schema: { name, schema } };
}
