/** Bodies of HTTP requests, through the server's schemas and the engine's. */
import {
  chatRequestSchema,
  generateRequestSchema,
  parseRequest,
} from "../../../src/engine/request.js";
import { ApiError } from "../../../src/serve/errors.js";
import { describeError } from "../../../src/serve/errors.js";
import { translateChat, translateCompletion } from "../../../src/serve/requests.js";
import { ensure, ensureFinite, type Target } from "../target.js";
import { decode, encode, JsonBase, pick } from "../mutate.js";

const SETTINGS = {
  model: "m", stream: true, stream_options: { include_usage: true }, max_tokens: 16, n: 2, temperature: 0.7, top_p: 0.9,
  presence_penalty: 0.5, frequency_penalty: -0.5, logit_bias: { "5": -100, "7": 3 }, seed: 1, stop: ["a", "b"], top_k: 40,
  min_p: 0.05, repetition_penalty: 1.1, ignore_eos: false, user: "u",
}; // prettier-ignore

const CHAT = new JsonBase({
  ...SETTINGS,
  messages: [
    { role: "system", content: "Be brief." },
    { role: "user", content: [{ type: "text", text: "Hi" }], name: "x" },
  ],
  logprobs: true,
  top_logprobs: 3,
  max_completion_tokens: 9,
  response_format: { type: "text" },
});
const COMPLETIONS = ["Hi", ["Hi", "Ho"], [1, 2, 3], [[1], [2, 3]]].map(
  (prompt) =>
    new JsonBase({ ...SETTINGS, prompt, logprobs: 5, echo: false, suffix: "", best_of: 2 }),
);

function parseBody(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ApiError(400, "the body is no JSON", { code: (cause as Error).name });
  }
}

export const requestTarget: Target = {
  name: "request",
  generate: (random) => encode(pick(random, [CHAT, ...COMPLETIONS]).mutated(random)),
  run(input) {
    const body = parseBody(decode(input));
    const isChat = typeof body === "object" && body !== null && "messages" in body;
    try {
      if (isChat)
        for (const each of translateChat(body).requests)
          ensureFinite(parseRequest(chatRequestSchema, each));
      else
        for (const each of translateCompletion(body).requests)
          ensureFinite(parseRequest(generateRequestSchema, each));
    } catch (error) {
      const { status, body: answer } = describeError(error);
      ensure(
        answer.error.message.length <= 600,
        `an answer of ${answer.error.message.length} characters`,
      );
      ensure(status < 500 || !(error instanceof ApiError), `status ${status}`);
      throw error;
    }
  },
};
