/** `planish serve`: an OpenAI-compatible server over one model, with a chat page. */

import { createServer as createSocketServer } from "node:net";
import { basename, extname, resolve } from "node:path";
import { InvalidArgumentError, Option, type Command } from "commander";
import pino from "pino";
import { resolveModel } from "../../checkpoint/hub.js";
import { PlanishError } from "../../common/errors.js";
import { formatBytes, formatNumber } from "../../common/format.js";
import { Engine, MOST_PROMPT_SECONDS } from "../../engine/engine.js";
import { isLoopback, readApiKeys } from "../../serve/guards.js";
import { createServer, type ChatServer } from "../../serve/server.js";
import { perform } from "../action.js";
import { decimal, integer } from "../flags.js";
import type { Reporter } from "../output.js";
import { addExamples } from "../program.js";
import {
  byteCount,
  chatTemplateOption,
  dequantizeOption,
  engineOptions,
  kvBitsOption,
  kvMemoryOption,
  lookUpOption,
  simulatedOption,
  type EngineFlags,
} from "./engine-flags.js";
import { deviceOption, MODEL_ARGUMENT, threadsOption, type DeviceFlags } from "./shared.js";

interface ServeFlags extends DeviceFlags, EngineFlags {
  readonly host: string;
  readonly port: number;
  readonly apiKeyFile?: string;
  readonly modelName?: string;
  readonly separateKeys?: boolean;
  readonly strict?: boolean;
  readonly toolFallback: boolean;
  readonly cors?: readonly string[];
  readonly concurrency: number;
  readonly queue: number;
  readonly rateLimit: number;
  readonly maxBody: number;
  readonly maxConnections: number;
  readonly clientTimeout: number;
  readonly promptTimeout: number;
  readonly drainTimeout: number;
  readonly logLevel: string;
}

const LOG_LEVELS = ["error", "warn", "info", "debug"];

export function register(program: Command): void {
  const command = program
    .command("serve")
    .summary("serve a model over HTTP, as OpenAI's API")
    .description(
      "Serves a model over HTTP: OpenAI's API under /v1, a chat page at /, /health and /metrics. " +
        "SIGTERM or Ctrl-C lets running answers finish, then it ends.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .option("--host <address>", "address to listen on; 0.0.0.0 for every network", "127.0.0.1")
    .option("--port <n>", "0 takes a free one", integer({ min: 0, max: 65535 }), 8080)
    .option("--api-key-file <file>", "API keys, one on each line; requests must carry one")
    .option("--model-name <name>", "name of the model in the API (default: its file's name)")
    .option("--separate-keys", "no key finds another's prompts in the cache (needs --api-key-file)")
    .option("--strict", "refuse settings of requests that are not known (default: warn in the log)")
    .option(
      "--no-tool-fallback",
      "refuse tools where the chat template has no form for them (default: they are told in plain messages)",
    )
    .addOption(
      new Option(
        "--cors <origin>",
        "let a web page of this origin call from a browser; may be repeated; * for every page",
      ).argParser(origin),
    )
    .option("--concurrency <n>", "sequences at the same time", integer({ min: 1, max: 1024 }), 32)
    .option(
      "--queue <n>",
      "requests that may wait; more get 503",
      integer({ min: 0, max: 1_000_000 }),
      256,
    )
    .option(
      "--rate-limit <n>",
      "requests a minute for each key or address; more get 429; 0 for no limit",
      integer({ min: 0, max: 1_000_000 }),
      600,
    )
    .addOption(
      new Option("--max-body <size>", "size of a request; larger ones get 413")
        .argParser(byteCount)
        .default(1_000_000, "1MB"),
    )
    .option(
      "--max-connections <n>",
      "connections at the same time",
      integer({ min: 1, max: 1_000_000 }),
      1024,
    )
    .option(
      "--prompt-timeout <seconds>",
      "a chat or text that takes longer to be turned into tokens gets 400",
      decimal({ above: 0, max: MOST_PROMPT_SECONDS }),
      10,
    )
    .option(
      "--client-timeout <seconds>",
      "a client that takes nothing for so long is given up",
      decimal({ min: 0.1, max: 86_400 }),
      30,
    )
    .option(
      "--drain-timeout <seconds>",
      "time that running answers get when the server is told to end",
      decimal({ min: 0, max: 86_400 }),
      60,
    )
    .addOption(simulatedOption())
    .addOption(dequantizeOption())
    .addOption(kvBitsOption())
    .addOption(kvMemoryOption())
    .addOption(chatTemplateOption())
    .addOption(lookUpOption())
    .addOption(new Option("--log-level <level>", "logs on stderr").choices(LOG_LEVELS))
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<ServeFlags, [string]>(
        async ({ reporter, signal }, flags, name) => {
          const apiKeys = flags.apiKeyFile === undefined ? [] : readApiKeys(flags.apiKeyFile);
          if (flags.separateKeys && apiKeys.length === 0)
            throw new PlanishError("--separate-keys has no keys to separate; give --api-key-file");
          await checkAddress(flags);
          const path = await resolveModel(name, { progress: reporter, signal });
          await using engine = await Engine.load(path, {
            ...engineOptions(flags, reporter),
            maxRunning: flags.concurrency,
            maxWaiting: flags.queue,
            promptSeconds: flags.promptTimeout,
            toolFallback: flags.toolFallback,
          });
          const model = flags.modelName ?? nameOf(name);
          const level = flags.logLevel ?? (reporter.quiet ? "warn" : "info");
          const server = await createServer(engine, {
            model,
            host: flags.host,
            apiKeys,
            separateKeys: flags.separateKeys,
            strict: flags.strict,
            corsOrigins: flags.cors,
            bodyLimit: flags.maxBody,
            requestsPerMinute: flags.rateLimit,
            maxConnections: flags.maxConnections,
            clientPatience: flags.clientTimeout * 1000,
            logger: pino({ level, base: undefined }, pino.destination({ dest: 2, sync: true })),
          });
          await listen(server, flags, reporter);
          announce(engine, model, flags, apiKeys.length, server, reporter);
          const started = performance.now();
          const failure = await Promise.race([aborted(signal), engine.failure]);
          const cutOff = await server.drain(failure ? 0 : flags.drainTimeout * 1000);
          if (failure) throw failure;
          if (cutOff > 0) reporter.warn(`${cutOff} answers were cut off by --drain-timeout`);
          const { promptTokens, cachedTokens, generatedTokens } = engine.stats;
          const seconds = Math.round((performance.now() - started) / 1000);
          reporter.result(
            { model, seconds, promptTokens, cachedTokens, generatedTokens, cutOff },
            () =>
              `served ${formatNumber(promptTokens)} prompt tokens (${formatNumber(cachedTokens)} from the cache) ` +
              `and ${formatNumber(generatedTokens)} new tokens in ${formatNumber(seconds)} s`,
          );
        },
        { signalsEndNormally: true },
      ),
    );
  addExamples(command, [
    "planish serve smollm2-w4a4kv4",
    "planish serve smollm2-135m-instruct --port 8000 --api-key-file keys.txt --kv-memory 2GB",
  ]);
}

/** Adds an origin to those given before. */
function origin(text: string, before: readonly string[] = []): readonly string[] {
  if (text !== "*" && (!URL.canParse(text) || new URL(text).origin !== text))
    throw new InvalidArgumentError("Give an origin such as https://example.org, or *.");
  return [...before, text];
}

/** A model's name by its path, also where that is `.` or ends in a slash. */
function nameOf(path: string): string {
  const absolute = resolve(path);
  return basename(absolute, extname(absolute) === ".gguf" ? ".gguf" : "") || "model";
}

/** Finds out that an address is taken before a model is loaded for it. @throws PlanishError */
async function checkAddress({ host, port }: ServeFlags): Promise<void> {
  const probe = createSocketServer();
  try {
    await new Promise<void>((listening, reject) => {
      probe.once("error", reject);
      probe.listen({ host, port, exclusive: true }, listening);
    });
  } catch (cause) {
    throw addressError(host, port, cause);
  } finally {
    probe.close();
  }
}

function addressError(host: string, port: number, cause: unknown): PlanishError {
  const { code } = cause as NodeJS.ErrnoException;
  const reason =
    code === "EADDRINUSE"
      ? "is taken by another program; give another --port"
      : `cannot be used (${code ?? "unknown error"}); give another --host or --port`;
  return new PlanishError(`address ${host}:${port} ${reason}`, { cause });
}

async function listen(
  { app }: ChatServer,
  { host, port }: ServeFlags,
  reporter: Reporter,
): Promise<void> {
  try {
    await app.listen({ host, port, listenTextResolver: (address) => `listening at ${address}` });
  } catch (cause) {
    await app.close();
    reporter.debug(String(cause));
    throw addressError(host, port, cause);
  }
}

function announce(
  engine: Engine,
  model: string,
  { host }: ServeFlags,
  keys: number,
  { app }: ChatServer,
  reporter: Reporter,
): void {
  const { description, contextTokens, cacheBytes, pages, pageTokens } = engine.info;
  const address = app.server.address();
  const port = typeof address === "object" && address ? address.port : 0;
  const shown = host.includes(":") ? `[${host}]` : host;
  if (!isLoopback(host) && keys === 0)
    reporter.warn(
      `everybody who reaches ${host} may use this server; give --api-key-file to ask for keys`,
    );
  if (!engine.info.hasChatTemplate)
    reporter.warn(
      `${model} has no chat template, so /v1/chat/completions and the page answer 400; give --chat-template FILE`,
    );
  reporter.info(`${model}: ${description}`);
  reporter.info(
    `context ${formatNumber(contextTokens)} tokens, KV cache ${formatBytes(cacheBytes)} for ${formatNumber(pages * pageTokens)} tokens`,
  );
  reporter.info(`listening on http://${shown}:${port}`);
}

function aborted(signal: AbortSignal): Promise<undefined> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined);
    signal.addEventListener("abort", () => resolve(undefined), { once: true });
  });
}
