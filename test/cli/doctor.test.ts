/** `planish doctor` and `planish build` as a user starts them. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import type { Diagnosis } from "../../src/cli/commands/doctor.js";
import { platformName } from "../../src/backend/cpu/library-path.js";
import { planish } from "./run-program.js";

const cache = mkdtempSync(join(tmpdir(), "planish-doctor-"));
afterAll(() => rmSync(cache, { recursive: true, force: true }));

async function diagnosis(env: Record<string, string>): Promise<Diagnosis> {
  const { stdout, code } = await planish(["doctor", "--json"], { env });
  expect(code).toBe(0);
  return JSON.parse(stdout) as Diagnosis;
}

describe("planish doctor", () => {
  it("says what serves and where it was looked for", async () => {
    const { kernels, platform, node } = await diagnosis({ PLANISH_ISA: "portable" });
    expect({ platform, node }).toEqual({ platform: platformName(), node: process.version });
    expect(kernels).toMatchObject({ serves: "cpu", level: "portable" });
    expect(kernels.levels?.[0]).toBe("portable");
    expect(kernels.places.find(({ exists }) => exists)?.title).toBe("this source tree's build");
  });

  it("says why kernels do not serve, and what to do", async () => {
    const missing = join(cache, "missing.so");
    const { kernels, advice } = await diagnosis({ PLANISH_NATIVE_LIBRARY: missing });
    expect(kernels.places[0]).toEqual({
      title: "PLANISH_NATIVE_LIBRARY",
      path: missing,
      exists: false,
    });
    expect(kernels.serves).not.toBe("cpu");
    expect(advice.join("\n")).toContain("npm run build:native");
  });
});

describe("planish build", () => {
  it("without a compiler ends in one line", async () => {
    const env = { CXX: "no-such-compiler", XDG_CACHE_HOME: cache };
    const { stderr, code } = await planish(["build"], { env });
    expect(code).toBe(1);
    expect(stderr).toBe(
      'planish: cannot build the CPU kernels: $CXX is "no-such-compiler", which does not run\n',
    );
  });

  it("--clean removes what was built", async () => {
    const env = { XDG_CACHE_HOME: cache };
    const { stdout } = await planish(["build", "--clean"], { env });
    expect(stdout).toMatch(/^removed .+\n$/);
    expect(existsSync(stdout.slice("removed ".length).trim())).toBe(false);
    expect((await planish(["build", "--clean"], { env })).stdout).toMatch(/^nothing was built in /);
  });
});
