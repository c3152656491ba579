/** How a model's authors would have its texts drawn: what `generation_config.json` says of sampling. */
import { z } from "zod";
import { REQUEST_LIMITS, type GenerateRequest } from "./request.js";

/** Settings that requests may have too, by the library's names. */
export type ModelSampling = Pick<
  GenerateRequest,
  "temperature" | "topK" | "topP" | "minP" | "repetitionPenalty"
>;

const number = z.number();
/** Only values that a request could have: a file says what it likes. */
const FIELDS = {
  temperature: ["temperature", number.min(0).max(2)],
  topK: ["top_k", z.int().min(0)],
  topP: ["top_p", number.gt(0).max(1)],
  minP: ["min_p", number.min(0).max(1)],
  repetitionPenalty: [
    "repetition_penalty",
    number.min(REQUEST_LIMITS.leastRepetitionPenalty).max(REQUEST_LIMITS.mostRepetitionPenalty),
  ],
} as const satisfies Record<keyof ModelSampling, readonly [string, z.ZodType<number>]>;

/** What a generation config says that makes sense; without `do_sample`, which is another program's switch. */
export function modelSampling(config: Readonly<Record<string, unknown>> = {}): ModelSampling {
  const found: ModelSampling = {};
  for (const [name, [key, schema]] of Object.entries(FIELDS)) {
    const result = schema.safeParse(config[key]);
    if (result.success) found[name as keyof ModelSampling] = result.data;
  }
  return found;
}
