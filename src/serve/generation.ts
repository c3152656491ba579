/** From a translated request to an answer, streamed or whole. The client's going ends the work at once. */
import { randomUUID } from "node:crypto";
import type { FastifyReply, FastifyRequest } from "fastify";
import { collect } from "../engine/engine.js";
import type { GenerateEvent, Usage } from "../engine/request.js";
import {
  addUsage,
  type AnswerHead,
  type AnswerStream,
  type AnswerStyle,
  type Chunk,
} from "./answers.js";
import { describeError } from "./errors.js";
import { ClientGone, EventStream, type EventStreamOptions } from "./event-stream.js";
import { merge } from "./merge.js";
import type { Metrics } from "./metrics.js";
import type { Translated } from "./requests.js";

type Events = AsyncGenerator<GenerateEvent, void>;

export interface GenerationContext {
  readonly model: string;
  readonly metrics: Metrics;
  readonly stream: EventStreamOptions;
}

/** The body that answers a request, or nothing where it was streamed; `start` puts a prompt to the engine. */
export async function answer<Request>(
  context: GenerationContext,
  style: AnswerStyle,
  translated: Translated<Request>,
  start: (request: Request & { signal: AbortSignal }) => Events,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<unknown> {
  const { metrics } = context;
  const head: AnswerHead = {
    id: `${style.prefix}${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: context.model,
    logprobs: translated.logprobs,
    includeUsage: translated.includeUsage,
  };
  metrics.generations(1);
  try {
    return await whileThere(reply, async (signal) => {
      const sources = translated.requests.map((each) => timed(start({ ...each, signal }), metrics));
      try {
        if (translated.stream) {
          await stream(context, style, head, translated, sources, request, reply);
          return undefined;
        }
        const parts = await Promise.all(sources.map((source) => collect(source)));
        return style.whole(
          head,
          parts.flatMap(({ choices }) => choices),
          addUsage(parts),
        );
      } finally {
        // A sequence that was left in the middle cleans up when it is told that nobody goes on.
        for (const source of sources) source.return().catch(() => undefined);
      }
    });
  } finally {
    metrics.generations(-1);
  }
}

/** Does some work, whose signal ends it when the client goes; one part's failure ends the others. */
export async function whileThere<T>(
  reply: FastifyReply,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  const onClose = (): void => {
    if (!reply.raw.writableFinished) controller.abort(new ClientGone("the client has gone"));
  };
  reply.raw.on("close", onClose);
  try {
    return await work(controller.signal);
  } finally {
    controller.abort(new ClientGone("the request has ended"));
    reply.raw.off("close", onClose);
  }
}

async function stream<Request>(
  context: GenerationContext,
  style: AnswerStyle,
  head: AnswerHead,
  translated: Translated<Request>,
  sources: readonly Events[],
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<void> {
  // A refusal comes before the first event, and is answered with its status.
  const accepted = await Promise.all(sources.map((source) => source.next()));
  const perPrompt = choicesPerPrompt(translated);
  // Headers that hooks have set, such as the rate limit's.
  const headers = Object.entries(reply.getHeaders()).map(([name, value]) => [name, String(value)]);
  reply.hijack();
  const out = new EventStream(reply.raw, context.stream);
  try {
    out.open(Object.fromEntries(headers) as Record<string, string>);
    const answer = style.stream(head, accepted.length * perPrompt);
    const promptTokens = accepted.reduce((sum, first) => sum + promptTokensOf(first), 0);
    await send(out, answer.begin(promptTokens));
    await send(out, answer.end(await sendEvents(answer, perPrompt, sources, out)));
    out.end();
  } catch (error) {
    if (error instanceof ClientGone) {
      request.log.info({ reason: error.message }, "stream given up");
      reply.raw.destroy();
      return;
    }
    request.log.error({ err: error }, "stream failed");
    await out.send(describeError(error).body).catch(() => undefined);
    out.end();
  }
}

async function send(out: EventStream, chunks: readonly Chunk[]): Promise<void> {
  for (const { event, data } of chunks) await out.send(data, event);
}

function promptTokensOf(first: IteratorResult<GenerateEvent, void>): number {
  const event = first.value;
  return event?.type === "accepted" ? event.promptTokens : 0;
}

async function sendEvents(
  answer: AnswerStream,
  perPrompt: number,
  sources: readonly Events[],
  out: EventStream,
): Promise<Usage> {
  const usage = { promptTokens: 0, cachedTokens: 0, generatedTokens: 0 };
  const merged = merge(sources);
  for (;;) {
    const next = await out.awaiting(merged.next());
    if (next.done) return usage;
    const { source, item } = next.value;
    if (item.type === "token")
      await send(out, answer.token(source * perPrompt + item.choice, item));
    else if (item.type === "finish")
      await send(out, answer.finish(source * perPrompt + item.choice, item));
    else if (item.type === "end") {
      usage.promptTokens += item.usage.promptTokens;
      usage.cachedTokens += item.usage.cachedTokens;
      usage.generatedTokens += item.usage.generatedTokens;
    }
  }
}

function choicesPerPrompt<Request>({ requests }: Translated<Request>): number {
  const [first] = requests as readonly { readonly n?: number }[];
  return first.n ?? 1;
}

/** The same events; the first token's time is noted. */
async function* timed(events: Events, metrics: Metrics): Events {
  const started = performance.now();
  let isFirst = true;
  for await (const event of events) {
    if (event.type === "token" && isFirst) {
      isFirst = false;
      metrics.gotFirstToken((performance.now() - started) / 1000);
    }
    yield event;
  }
}
