/** A hub on this machine that has one small model, for tests that start the real program. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";

const COMMIT = "0123456789abcdef0123456789abcdef01234567";

export interface HubServer {
  readonly url: string;
  /** Files sent, in order. */
  readonly sent: string[];
  /** What is said of the files' version; may be changed. */
  readonly options: { etag?: string };
  close(): void;
}

/** Serves the files of `directory` as `org/tiny`. `ready` is waited for before half of the weights are sent. */
export async function serveHub(directory: string, ready: () => Promise<void>): Promise<HubServer> {
  const sent: string[] = [];
  const options: HubServer["options"] = {};
  const contents = new Map(
    readdirSync(directory).map((name) => [name, readFileSync(join(directory, name))]),
  );
  const hash = (kind: string, ...parts: (string | Buffer)[]): string =>
    parts.reduce((sum, part) => sum.update(part), createHash(kind)).digest("hex");
  const tree = [...contents].map(([path, content]) => ({
    type: "file",
    path,
    size: content.length,
    oid: hash("sha1", `blob ${content.length}\0`, content),
    ...(path.endsWith(".safetensors")
      ? { lfs: { oid: hash("sha256", content), size: content.length } }
      : {}),
  }));
  const server = createServer((request, response) => {
    const path = new URL(request.url ?? "/", "http://hub").pathname;
    const json = (value: unknown): void => {
      response.setHeader("content-type", "application/json").end(JSON.stringify(value));
    };
    if (path.startsWith("/api/models/org/tiny/revision/")) {
      json({ _id: "1", id: "org/tiny", sha: COMMIT, private: false, gated: false });
      return;
    }
    if (path === `/api/models/org/tiny/tree/${COMMIT}`) {
      json(tree);
      return;
    }
    const name = path.replace(`/org/tiny/resolve/${COMMIT}/`, "");
    const content = contents.get(name);
    if (content === undefined) {
      response.writeHead(404).end("{}");
      return;
    }
    const etag = `"${options.etag ?? "e"}"`;
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
    const validator = request.headers["if-range"];
    const isRange = first !== undefined && (validator === undefined || validator === etag);
    const from = isRange ? Number(first) : 0;
    const part = content.subarray(from, isRange && last !== "" ? Number(last) + 1 : undefined);
    if (isRange)
      response.writeHead(206, {
        "content-range": `bytes ${from}-${from + part.length - 1}/${content.length}`,
        etag,
      });
    else response.writeHead(200, { etag });
    // One byte is asked for to learn the size.
    if (!(isRange && part.length === 1)) sent.push(from > 0 ? `${name} from ${from}` : name);
    if (!name.endsWith(".safetensors") || from > 0 || part.length === 1) {
      response.end(part);
      return;
    }
    const half = content.length >> 1;
    response.write(content.subarray(0, half));
    void ready().then(() => response.end(content.subarray(half)));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    sent,
    options,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
