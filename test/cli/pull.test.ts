import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { fileHashes, temporaryDirectory } from "./artifacts.js";
import { serveHub, type HubServer } from "./hub-server.js";
import { planish, root } from "./run-program.js";
import { until } from "../until.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

/** Without the network, and with an empty cache. */
const offline = { HF_HUB_OFFLINE: "1", HF_HOME: directory.path, XDG_CACHE_HOME: directory.path };

function flipByte(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length >> 1] ^= 1;
  writeFileSync(path, bytes);
}

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

  interface Change {
    readonly what: string;
    /** Changes the hub, or the part of the weights that came; whether the rest is asked for all the same. */
    readonly change: (hub: HubServer, part: string) => boolean;
  }
  it.each<Change>([
    { what: "fetches the rest", change: () => true },
    {
      what: "begins again where the server has another version",
      change: (hub) => {
        hub.options.etag = "f";
        return false;
      },
    },
    {
      what: "begins again where the part was damaged",
      change: (_, part) => {
        flipByte(part);
        return true;
      },
    },
  ])("killed half-way, the next one $what", async ({ what, change }) => {
    const cache = directory.file(what.replaceAll(" ", "-"));
    const args = ["pull", "hf:org/tiny", "--cache-dir", cache];
    const folder = join(cache, "models--org--tiny/blobs");
    const partOfWeights = (): string =>
      join(folder, readdirSync(folder).find((name) => name.endsWith(".planish-part")) ?? "none");
    const sizeOfPart = (): number =>
      statSync(partOfWeights(), { throwIfNoEntry: false })?.size ?? 0;
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
          void halfway
            .then(() => until(() => sizeOfPart() > 0))
            .then(() => {
              if (!sent) sent = child.kill("SIGKILL");
            });
        },
      });
      expect({ sent, code: first.code }).toEqual({ sent: true, code: null });
      const size = sizeOfPart();
      expect(size).toBeGreaterThan(0);
      hub.sent.length = 0;
      const isAskedFor = change(hub, partOfWeights());
      const second = await planish(args, { env });
      expect(second.code).toBe(0);
      expect(fileHashes(second.stdout.trim())).toEqual(fileHashes(join(root, "models/tiny-llama")));
      const whole = "model.safetensors";
      const rest = `${whole} from ${size}`;
      if (what === "fetches the rest") expect(hub.sent).toEqual([rest]);
      else expect(hub.sent).toEqual(isAskedFor ? [rest, whole] : [whole]);
      const blobs = readdirSync(join(cache, "models--org--tiny/blobs"));
      expect(blobs.filter((name) => !/^[0-9a-f]+$/.test(name))).toEqual([]);
    } finally {
      hub.close();
    }
  });
});
