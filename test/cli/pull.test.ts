import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
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
});
