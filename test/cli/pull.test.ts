import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { fileHashes, temporaryDirectory } from "./artifacts.js";
import { serveHub } from "./hub-server.js";
import { planish, root } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

/** Without the network, and with an empty cache. */
const offline = { HF_HUB_OFFLINE: "1", HF_HOME: directory.path, XDG_CACHE_HOME: directory.path };

describe("planish pull", () => {
  it("prints the path of a model that is here", async () => {
    const path = join(root, "models/tiny-llama");
    expect(await planish(["pull", "tiny-llama"])).toEqual({
      code: 0,
      stdout: `${path}\n`,
      stderr: "",
    });
    const { stdout } = await planish(["pull", "tiny-llama", "--json"]);
    expect(JSON.parse(stdout)).toEqual({ model: "tiny-llama", path });
  });

  it("names what works when the hub cannot be reached", async () => {
    const { code, stdout, stderr } = await planish(["pull", "hf:Qwen/Qwen3-0.6B"], {
      env: offline,
    });
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(
      /^planish: cannot fetch Qwen\/Qwen3-0\.6B from the hub: .*a path.*tiny-llama.*SmolLM2[^\n]*\n$/,
    );
  });

  it("lists the short names for a name of no known form", async () => {
    const { code, stderr } = await planish(["pull", "no-such-model"]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^planish: no model "no-such-model": .*smollm2-135m-instruct[^\n]*\n$/);
  });

  it("of two that fetch one model, one says who is at it and the other ends in the right bytes", async () => {
    const cache = directory.file("two");
    let second: ReturnType<typeof planish> | undefined;
    const args = ["pull", "hf:org/tiny", "--cache-dir", cache];
    const env: Record<string, string> = {};
    // Half of the weights are under way when the second comes, the rest follows when it has gone.
    const hub = await serveHub(join(root, "models/tiny-llama"), async () => {
      second ??= planish(args, { env });
      await second;
    });
    Object.assign(env, { HF_ENDPOINT: hub.url, HF_HUB_OFFLINE: "" });
    try {
      const first = await planish(args, { env });
      expect(first.code).toBe(0);
      const loser = await second;
      expect(loser?.code).toBe(1);
      expect(loser?.stderr).toMatch(
        /^planish: another planish \(pid \d+\) works on org\/tiny in [^\n]*\n$/,
      );
      const path = first.stdout.trim();
      expect(fileHashes(path)).toEqual(fileHashes(join(root, "models/tiny-llama")));
      expect((await planish([...args, "--verify"], { env: { HF_HUB_OFFLINE: "1" } })).code).toBe(0);
    } finally {
      hub.close();
    }
  });

  it("killed half-way, the next one ends in the right bytes and leaves nothing else", async () => {
    const cache = directory.file("killed");
    const args = ["pull", "hf:org/tiny", "--cache-dir", cache];
    let reached = (): void => undefined;
    const halfway = new Promise<void>((resolve) => (reached = resolve));
    let times = 0;
    const hub = await serveHub(join(root, "models/tiny-llama"), () => {
      reached();
      return times++ === 0 ? new Promise(() => undefined) : Promise.resolve();
    });
    const env = { HF_ENDPOINT: hub.url, HF_HUB_OFFLINE: "" };
    try {
      let sent = false;
      const first = await planish(args, {
        env,
        onStderr: (child) => {
          void halfway.then(() => {
            if (!sent) sent = child.kill("SIGKILL");
          });
        },
      });
      expect({ sent, code: first.code }).toEqual({ sent: true, code: null });
      const second = await planish(args, { env });
      expect(second.code).toBe(0);
      expect(fileHashes(second.stdout.trim())).toEqual(fileHashes(join(root, "models/tiny-llama")));
      const blobs = readdirSync(join(cache, "models--org--tiny/blobs"));
      expect(blobs.filter((name) => !/^[0-9a-f]+$/.test(name))).toEqual([]);
    } finally {
      hub.close();
    }
  });
});
