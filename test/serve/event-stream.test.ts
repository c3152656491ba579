import { createServer, type ServerResponse } from "node:http";
import { connect, type AddressInfo, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { ClientGone, EventStream } from "../../src/serve/event-stream.js";

const cleanup: (() => void)[] = [];
afterEach(() => {
  for (const each of cleanup.splice(0)) each();
});

/** A stream to a client that reads only when it is told to. */
async function streamTo(options: {
  patience: number;
  heartbeat: number;
}): Promise<{ out: EventStream; response: ServerResponse; client: Socket }> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const answered = new Promise<ServerResponse>((resolve) =>
    server.on("request", (_request, response) => resolve(response)),
  );
  const client = connect((server.address() as AddressInfo).port, "127.0.0.1");
  client.pause();
  client.write("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const response = await answered;
  cleanup.push(() => {
    client.destroy();
    server.closeAllConnections();
    server.close();
  });
  const out = new EventStream(response, options);
  out.open({});
  return { out, response, client };
}

/** More than the sockets' buffers take. */
async function flood(out: EventStream): Promise<void> {
  for (let i = 0; i < 400; i++) await out.send("x".repeat(100_000));
}

describe("EventStream", () => {
  it("gives a client up that takes nothing", async () => {
    const { out, response } = await streamTo({ patience: 50, heartbeat: 1000 });
    await expect(flood(out)).rejects.toThrow("does not take its answer");
    expect(response.destroyed).toBe(true);
  });

  it("waits for one that is slow", async () => {
    const { out, client } = await streamTo({ patience: 5000, heartbeat: 1000 });
    let taken = 0;
    client.on("data", (data) => (taken += data.length));
    client.resume();
    await flood(out);
    out.end();
    await new Promise((resolve) => client.on("end", resolve));
    expect(taken).toBeGreaterThan(400 * 100_000);
  });

  it("notices that a client has gone, waiting or not", async () => {
    const { out, client } = await streamTo({ patience: 5000, heartbeat: 1000 });
    const flooding = expect(flood(out)).rejects.toBeInstanceOf(ClientGone);
    await delay(20);
    client.destroy();
    await flooding;
    await expect(out.send("more")).rejects.toBeInstanceOf(ClientGone);
  });

  it("says that it is there while an item takes long", async () => {
    const { out, client } = await streamTo({ patience: 5000, heartbeat: 10 });
    let text = "";
    client.on("data", (data) => (text += String(data)));
    client.resume();
    expect(await out.awaiting(delay(60, "item"))).toBe("item");
    await out.send({ a: 1 });
    out.end();
    await new Promise((resolve) => client.on("end", resolve));
    expect(text).toContain(": still here\n\n");
    expect(text).toContain('data: {"a":1}\n\n');
    await expect(out.awaiting(Promise.reject(new Error("late")))).rejects.toThrow("late");
  });
});
