/** A server over an engine that computes nothing, on a port of its own. */
import pino from "pino";
import type { Engine } from "../../src/engine/engine.js";
import { createServer, type ChatServer, type ServerOptions } from "../../src/serve/server.js";

/** A chat as the first letters of its roles, each before its content. */
export const TEMPLATE = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}w";

export interface Listening {
  readonly server: ChatServer;
  readonly url: string;
  /** Ends the server, then the engine. */
  readonly close: () => Promise<void>;
}

export async function listen(
  engine: Engine,
  options: Partial<ServerOptions> = {},
): Promise<Listening> {
  const server = await createServer(engine, {
    model: "fake",
    host: "127.0.0.1",
    apiKeys: [],
    bodyLimit: 10_000,
    requestsPerMinute: 0,
    maxConnections: 100,
    clientPatience: 1000,
    logger: pino({ level: "silent" }),
    ...options,
  });
  const url = await server.app.listen({ host: "127.0.0.1", port: 0 });
  const close = async (): Promise<void> => {
    await server.drain(0);
    await engine.close();
  };
  return { server, url, close };
}
