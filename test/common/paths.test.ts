/** Files that a bundler does not see are found beside the code, or where the application says. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { setPaths, startedFile } from "../../src/common/paths.js";

let folder: string;
let asker: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "planish-paths-"));
  asker = pathToFileURL(join(folder, "app.js")).href;
  for (const name of ["PLANISH_ENGINE_THREAD", "PLANISH_NATIVE_LIBRARY"])
    vi.stubEnv(name, undefined);
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true, force: true });
});

describe("files started by name", () => {
  it("lie beside the file that asks, with its extension", () => {
    writeFileSync(join(folder, "worker.js"), "");
    expect(startedFile("engineThread", "./worker", asker).href).toBe(
      pathToFileURL(join(folder, "worker.js")).href,
    );
  });

  it("are named by setPaths, as a path or a URL, for threads and processes too", () => {
    const file = join(folder, "thread.js");
    writeFileSync(file, "");
    setPaths({ engineThread: pathToFileURL(file), nativeLibrary: file });
    expect(startedFile("engineThread", "./worker", asker).href).toBe(pathToFileURL(file).href);
    expect(process.env.PLANISH_NATIVE_LIBRARY).toBe(file);
  });

  it("that are missing are told with what to do in a bundle", () => {
    expect(() => startedFile("engineThread", "./worker", asker)).toThrow(
      /worker\.js is missing; in a bundle, build planish\/engine-thread as an entry of its own and name it with setPaths\(\{ engineThread \}\)/,
    );
    expect(() => setPaths({ engineThread: join(folder, "none.js") })).toThrow(
      `setPaths: engineThread: there is no file ${join(folder, "none.js")}`,
    );
  });

  it("in Electron's archive start from beside it, where they are unpacked", () => {
    const inside = join(folder, "app.asar", "engine");
    const outside = join(folder, "app.asar.unpacked", "engine");
    for (const path of [inside, outside]) {
      mkdirSync(path, { recursive: true });
      writeFileSync(join(path, "worker.js"), "");
    }
    const file = startedFile("engineThread", "./worker", pathToFileURL(join(inside, "a.js")).href);
    expect(file.href).toBe(pathToFileURL(join(outside, "worker.js")).href);
  });
});
