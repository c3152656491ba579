/**
 * Server-sent events to one client. Writes wait for the client to take what it was sent; one that takes nothing for too
 * long is given up, so that it does not hold its place for ever.
 */
import { once } from "node:events";
import type { ServerResponse } from "node:http";
import { setTimeout as delay } from "node:timers/promises";

export class ClientGone extends Error {
  override readonly name = "ClientGone";
}

export interface EventStreamOptions {
  /** Milliseconds that a client may leave data untaken. */
  readonly patience: number;
  /** Milliseconds of silence after which a comment is sent, so that proxies and clients know that we are there. */
  readonly heartbeat: number;
}

export class EventStream {
  constructor(
    private readonly response: ServerResponse,
    private readonly options: EventStreamOptions,
  ) {}

  /** Sends the headers. */
  open(headers: Readonly<Record<string, string>>): void {
    this.response.writeHead(200, {
      ...headers,
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache, no-store",
      "x-accel-buffering": "no",
    });
    this.response.flushHeaders();
  }

  /** @param event its name, where it has one */
  send(data: unknown, event?: string): Promise<void> {
    const name = event === undefined ? "" : `event: ${event}\n`;
    return this.write(`${name}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);
  }

  /** The next item of an iterator, with comments sent while it takes long. */
  async awaiting<T>(next: Promise<T>): Promise<T> {
    for (;;) {
      const timer = new AbortController();
      const pause = delay(this.options.heartbeat, undefined, { signal: timer.signal, ref: false });
      const silence = pause.then(() => true).catch(() => false);
      try {
        const settled = await Promise.race([
          next.then(
            () => "item",
            () => "item",
          ),
          silence,
        ]);
        if (settled === "item") return await next;
        await this.write(": still here\n\n");
      } finally {
        timer.abort();
      }
    }
  }

  end(): void {
    this.response.end();
  }

  /** @throws ClientGone when the client has gone, or takes nothing for too long. */
  private async write(text: string): Promise<void> {
    const { response } = this;
    if (response.destroyed || response.closed) throw new ClientGone("the client has gone");
    if (response.write(text)) return;
    const timer = new AbortController();
    const { signal } = timer;
    try {
      const outcome = await Promise.race([
        once(response, "drain", { signal }).then(() => "taken"),
        once(response, "close", { signal }).then(() => "closed"),
        delay(this.options.patience, "slow", { signal }),
      ]);
      if (outcome === "taken") return;
      if (outcome === "slow") response.destroy();
      throw new ClientGone(
        outcome === "slow" ? "the client does not take its answer" : "the client has gone",
      );
    } finally {
      timer.abort();
    }
  }
}
