/** The HTTP server: OpenAI's API over one engine, health, metrics, and a chat page. */
import cors from "@fastify/cors";
import bearerAuth from "@fastify/bearer-auth";
import rateLimit from "@fastify/rate-limit";
import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
} from "fastify";
import type { Engine } from "../engine/engine.js";
import { REQUEST_LIMITS } from "../engine/request.js";
import { chatStyle, completionStyle } from "./answers.js";
import { ApiError, describeError, describeParserError } from "./errors.js";
import { answer, whileThere, type GenerationContext } from "./generation.js";
import { checkHost, isLoopback, Keys } from "./guards.js";
import { Metrics } from "./metrics.js";
import { servePage } from "./page.js";
import { translateChat, translateCompletion, type Translated } from "./requests.js";
import { responseStyle } from "./responses/answer.js";
import { translateResponse } from "./responses/request.js";
import { ResponseStore } from "./responses/store.js";
import {
  embedAll,
  embeddingsBody,
  translateDetokenize,
  translateEmbeddings,
  translateTokenize,
} from "./vectors.js";

export interface ServerOptions {
  /** Name that requests call the model by. */
  readonly model: string;
  /** Address to listen on; for one of this machine only, other host names are refused. */
  readonly host: string;
  /** Keys of which requests must carry one; none: everybody may ask. */
  readonly apiKeys: readonly string[];
  /** Bytes of a request's body at most. */
  readonly bodyLimit: number;
  /** Requests a minute that one client (key or address) may make; 0: any number. */
  readonly requestsPerMinute: number;
  /** Connections at the same time at most. */
  readonly maxConnections: number;
  /** Milliseconds that a client may leave its answer untaken before it is given up. */
  readonly clientPatience: number;
  /** Whether the prefix cache is each key's own, so that none can find out what others ask (default: shared). */
  readonly separateKeys?: boolean;
  /** Settings of requests that are not known are refused (default: ignored, with a warning in the log). */
  readonly strict?: boolean;
  /** Origins whose pages may call this server from a browser, or `*` for all (default: none but its own). */
  readonly corsOrigins?: readonly string[];
  readonly logger: FastifyBaseLogger;
}

/** Milliseconds for a client to send its whole request: slow senders must not hold connections. */
const REQUEST_TIMEOUT = 30_000;
/** Characters of a model's name in a URL. */
const LONGEST_PARAMETER = 500;
/** Seconds for which a browser need not ask again whether a page may call. */
const PREFLIGHT_SECONDS = 600;
const HEARTBEAT = 15_000;
/** Bytes of conversations that are kept to be continued. */
const STORED_RESPONSES = 64 * 1024 ** 2;
/** Milliseconds that connections without answers under way get when the server closes. */
const LAST_MOMENT = 200;
/** What the metrics call the status of an answer whose client did not wait for it (as nginx does). */
const CLIENT_GONE = 499;

export interface ChatServer {
  readonly app: FastifyInstance;
  /** Requests that are being answered. */
  readonly active: number;
  /**
   * Refuses new requests, waits until those under way are answered (or for `patience` milliseconds), and closes. Returns
   * how many were cut off.
   */
  drain(patience: number): Promise<number>;
}

/** Builds the server; `app.listen` starts it. The engine stays the caller's. */
export async function createServer(engine: Engine, options: ServerOptions): Promise<ChatServer> {
  const app = Fastify({
    loggerInstance: options.logger,
    bodyLimit: options.bodyLimit,
    // Node's own refusal has no body; see `checkHeaders`.
    http: { requireHostHeader: false },
    requestTimeout: REQUEST_TIMEOUT,
    // Sockets that are kept open between requests must not hold up closing.
    forceCloseConnections: "idle",
    return503OnClosing: false,
    routerOptions: {
      ignoreTrailingSlash: true,
      ignoreDuplicateSlashes: true,
      maxParamLength: LONGEST_PARAMETER,
    },
    frameworkErrors: (error, request, reply) => sendError(error, request, reply),
    clientErrorHandler: (error, socket) => {
      if (socket.writable) socket.end(describeParserError((error as NodeJS.ErrnoException).code));
      else socket.destroy();
    },
    requestIdHeader: false,
  });
  app.server.maxConnections = options.maxConnections;
  // Node answers expectations that it does not know by itself, without a body: they go the way of all requests.
  app.server.on("checkExpectation", (request, response) => app.routing(request, response));
  const metrics = new Metrics(engine);
  const keys = new Keys(options.apiKeys);
  let draining = false;
  let active = 0;

  app.removeContentTypeParser("text/plain");
  parseBodies(app);
  app.setErrorHandler(sendError);
  app.setNotFoundHandler((request) => {
    throw new ApiError(404, `there is no ${request.method} ${request.url.slice(0, 100)} here`);
  });
  app.addHook("onRequest", (request, reply, done) => {
    void reply.headers({ "x-request-id": request.id, "x-content-type-options": "nosniff" });
    // The last event of a response, whether it was sent to its end or its client has gone.
    reply.raw.once("close", () => {
      const route = request.routeOptions.url ?? "unknown";
      const status = reply.raw.writableFinished ? reply.raw.statusCode : CLIENT_GONE;
      metrics.answered(route, status, reply.elapsedTime / 1000);
    });
    checkHeaders(request);
    if (isLoopback(options.host)) checkHost(request);
    done();
  });
  app.addHook("onClose", (_instance, done) => {
    metrics.dispose();
    done();
  });
  const { corsOrigins = [], strict } = options;
  const { sampling } = engine.info;
  if (corsOrigins.length > 0)
    await app.register(cors, {
      origin: corsOrigins.includes("*") ? "*" : [...corsOrigins],
      methods: ["GET", "POST", "DELETE"],
      exposedHeaders: ["x-request-id", "retry-after"],
      maxAge: PREFLIGHT_SECONDS,
    });
  if (options.requestsPerMinute > 0)
    await app.register(rateLimit, {
      // As a hook of its own, before keys are asked for: guesses and wrong places count too.
      global: false,
      max: options.requestsPerMinute,
      timeWindow: "1 minute",
      keyGenerator: (request) => keys.clientOf(request),
      allowList: (request) => request.routeOptions.url === "/health",
      errorResponseBuilder: (_request, { max, after }) =>
        new ApiError(429, `more than ${max} requests in a minute; try again in ${after}`, {
          code: "rate_limit_exceeded",
        }),
    });

  if (options.requestsPerMinute > 0) app.addHook("onRequest", app.rateLimit());

  app.get("/health", (_request, reply) => {
    const status = draining ? "draining" : engine.isOpen ? "ok" : "failed";
    return reply.code(status === "ok" ? 200 : 503).send({ status });
  });
  servePage(app);

  await app.register(async (api) => {
    if (keys.areSet) {
      await api.register(bearerAuth, {
        keys: new Set<string>(),
        auth: (key) => keys.has(key),
        addHook: false,
        verifyErrorLogLevel: "info",
      });
      api.addHook("onRequest", api.verifyBearerAuth ?? refuseAll);
    }
    api.get("/metrics", async (_request, reply) =>
      reply.type(metrics.contentType).send(await metrics.text()),
    );
    const created = Math.floor(Date.now() / 1000);
    const model = { id: options.model, object: "model", created, owned_by: "planish" };
    api.get("/v1/models", () => ({ object: "list", data: [model] }));
    api.get<{ Params: { "*": string } }>("/v1/models/*", ({ params }) => {
      checkModel(params["*"], options.model);
      return model;
    });

    const context: GenerationContext = {
      model: options.model,
      metrics,
      stream: { patience: options.clientPatience, heartbeat: HEARTBEAT },
    };
    /** Counts what is under way, and takes nothing new while draining. */
    const post = (
      url: string,
      work: (request: FastifyRequest, reply: FastifyReply) => Promise<unknown>,
    ): void => {
      api.post(url, async (request, reply) => {
        if (draining)
          throw new ApiError(503, "the server is shutting down", { code: "shutting_down" });
        active += 1;
        reply.raw.once("close", () => (active -= 1));
        return work(request, reply);
      });
    };
    const translation = { strict, sampling };
    const askerOf = (request: FastifyRequest): { client: string; cacheSalt?: string } => {
      const client = keys.clientOf(request);
      return options.separateKeys === true ? { client, cacheSalt: client } : { client };
    };
    post("/v1/completions", (request, reply) => {
      const translated = checked(translateCompletion(request.body, translation), options, request);
      const asker = askerOf(request);
      return answer(
        context,
        completionStyle,
        translated,
        (each) => engine.generate({ ...each, ...asker }),
        request,
        reply,
      );
    });
    post("/v1/chat/completions", (request, reply) => {
      const translated = checked(translateChat(request.body, translation), options, request);
      const asker = askerOf(request);
      return answer(
        context,
        chatStyle,
        translated,
        (each) => engine.chat({ ...each, ...asker }),
        request,
        reply,
      );
    });
    const responses = new ResponseStore(STORED_RESPONSES);
    post("/v1/responses", (request, reply) => {
      const asker = askerOf(request);
      const { client } = asker;
      const translated = checked(
        translateResponse(request.body, translation, responses, client),
        options,
        request,
      );
      const { asked, items } = translated;
      const style = responseStyle(asked, (id, body, output) => {
        if (asked.store !== false)
          responses.add(client, id, { body, items: [...items, ...output] });
      });
      return answer(
        context,
        style,
        translated,
        (each) => engine.chat({ ...each, ...asker }),
        request,
        reply,
      );
    });
    type ById = { Params: { id: string } };
    const noResponse = (id: string): ApiError =>
      new ApiError(404, `there is no response ${id.slice(0, 100)} here (any more)`);
    api.get<ById>("/v1/responses/:id", (request) => {
      const { id } = request.params;
      const found = responses.get(keys.clientOf(request), id);
      if (!found) throw noResponse(id);
      return found.body;
    });
    api.delete<ById>("/v1/responses/:id", (request) => {
      const { id } = request.params;
      if (!responses.delete(keys.clientOf(request), id)) throw noResponse(id);
      return { id, object: "response", deleted: true };
    });
    post("/v1/embeddings", async (request, reply) => {
      const translated = checked(translateEmbeddings(request.body, translation), options, request);
      const { client } = askerOf(request);
      const vectors = await whileThere(reply, (signal) =>
        embedAll(translated.requests, (each) => engine.embed({ ...each, client, signal })),
      );
      return embeddingsBody(options.model, vectors, translated.base64);
    });
    post("/tokenize", async (request, reply) => {
      const translated = checked(translateTokenize(request.body, translation), options, request);
      const { client } = askerOf(request);
      const tokens = await whileThere(reply, (signal) =>
        engine.tokenize({ ...translated.request, client, signal }),
      );
      return { tokens, count: tokens.length, max_model_len: engine.info.contextTokens };
    });
    post("/detokenize", async (request) => {
      const translated = checked(translateDetokenize(request.body, translation), options, request);
      return { prompt: await engine.detokenize(translated.tokens) };
    });
  });

  return {
    app,
    get active() {
      return active;
    },
    async drain(patience) {
      draining = true;
      const deadline = performance.now() + patience;
      while (active > 0 && performance.now() < deadline)
        await new Promise((resolve) => setTimeout(resolve, 20));
      const left = active;
      // Connections without a request end; so do, after a moment, those that are cut off or have never sent one.
      const timer = setTimeout(() => app.server.closeAllConnections(), left > 0 ? 0 : LAST_MOMENT);
      await app.close();
      clearTimeout(timer);
      return left;
    },
  };
}

/** @throws ApiError for what HTTP/1.1 does not allow in a request's headers. */
function checkHeaders({ headers, raw }: FastifyRequest): void {
  if (headers.host === undefined && raw.httpVersion === "1.1")
    throw new ApiError(400, "the request has no Host header");
  if (headers.expect !== undefined && !/^100-continue$/i.test(headers.expect))
    throw new ApiError(417, "of expectations only 100-continue is known");
}

/** JSON, refused before it is parsed where it is nested deeper than any request. */
function parseBodies(app: FastifyInstance): void {
  const parse = app.getDefaultJsonParser("error", "error");
  app.removeContentTypeParser("application/json");
  app.addContentTypeParser<string>(
    "application/json",
    { parseAs: "string" },
    (request, body, done) => {
      if (nestedDeeper(body, REQUEST_LIMITS.depth))
        done(
          new ApiError(400, `the body is nested more than ${REQUEST_LIMITS.depth} deep`, {
            code: "nested_too_deep",
          }),
        );
      else void parse(request, body, done);
    },
  );
}

function nestedDeeper(json: string, most: number): boolean {
  let depth = 0;
  let inString = false;
  for (let i = 0; i < json.length; i++) {
    const char = json[i];
    if (inString) {
      if (char === "\\") i += 1;
      else if (char === '"') inString = false;
    } else if (char === '"') inString = true;
    else if (char === "[" || char === "{") {
      depth += 1;
      if (depth > most) return true;
    } else if (char === "]" || char === "}") depth -= 1;
  }
  return false;
}

/** Where the plugin's hook is missing, keys could not be checked. */
function refuseAll(): void {
  throw new ApiError(500, "API keys cannot be checked");
}

function sendError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const { status, body } = describeError(error);
  if (status >= 500 && status !== 503) request.log.error({ err: error }, "request failed");
  if (status === 503) void reply.header("retry-after", "2");
  void reply.code(status).type("application/json; charset=utf-8").send(body);
}

function checked<T extends Pick<Translated<unknown>, "model" | "ignored">>(
  translated: T,
  { model }: ServerOptions,
  { log }: FastifyRequest,
): T {
  if (translated.model !== undefined) checkModel(translated.model, model);
  const { ignored } = translated;
  if (ignored.length > 0) log.warn({ ignored }, "settings that are not known were ignored");
  return translated;
}

function checkModel(asked: string, served: string): void {
  if (asked !== served)
    throw new ApiError(404, `model "${asked.slice(0, 100)}" is not served; this is ${served}`, {
      code: "model_not_found",
      param: "model",
    });
}
