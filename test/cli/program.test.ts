/** The real program: version, help, and command lines that do not parse. */

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { planish, root } from "./run-program.js";

const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
  version: string;
};

/** Names of all commands, read from the help page itself. */
async function commandNames(): Promise<string[]> {
  const { stdout } = await planish(["--help"]);
  const list = stdout.slice(stdout.indexOf("Commands:")).split("\n").slice(1);
  return list.flatMap((line) => /^ {2}(\w+)/.exec(line)?.[1] ?? []);
}

describe("planish", () => {
  it("prints the package's version", async () => {
    expect(await planish(["--version"])).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  it("gives every command a help page with examples and the global flags", async () => {
    const names = await commandNames();
    expect(names).toContain("help");
    for (const name of names.filter((name) => name !== "help")) {
      const { code, stdout, stderr } = await planish([name, "--help"]);
      expect({ name, code, stderr }).toEqual({ name, code: 0, stderr: "" });
      expect(stdout).toMatch(new RegExp(`Examples:\\n  \\$ planish ${name}`));
      for (const flag of ["--json", "--quiet", "--verbose"]) expect(stdout).toContain(flag);
    }
  });

  it("knows its commands behind global flags, and shows its own help where that is asked for first", async () => {
    const help = await planish(["--quiet", "pull", "--help"]);
    expect(help.stdout).toMatch(/^Usage: planish pull /);
    const whole = await planish(["--help", "pull"]);
    for (const name of ["pull", "quantize", "serve"]) expect(whole.stdout).toContain(`  ${name} `);
    const asked = await planish(["help", "pull"]);
    expect(asked).toEqual({ ...help, stderr: "" });
  });

  it("shows its help on stderr and exits 2 when no command is given", async () => {
    const { code, stdout, stderr } = await planish([]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain("Usage: planish");
  });

  it("suggests the nearest command", async () => {
    const { code, stdout, stderr } = await planish(["hepl"]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toBe(
      "planish: unknown command 'hepl' (Did you mean help?); see `planish --help`\n",
    );
  });

  it("lists the commands when none is near", async () => {
    const { code, stderr } = await planish(["zzzzzzzz"]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^planish: unknown command 'zzzzzzzz' \(commands: .+\); see [^\n]+\n$/);
  });

  it("refuses --quiet together with --verbose", async () => {
    const { code, stderr } = await planish([
      "inspect",
      "models/tiny-llama",
      "--quiet",
      "--verbose",
    ]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^planish: .*--verbose.* cannot be used with .*--quiet.*\n$/);
  });

  it("is quiet when its reader stops early", () => {
    // The pipe's reading end closes before the program has started to print.
    const { stdout, stderr } = spawnSync(
      "bash",
      ["-c", `set -o pipefail; "$0" dist/cli/main.js --help | true; echo "$?"`, process.execPath],
      { cwd: root, encoding: "utf8" },
    );
    expect({ stdout, stderr }).toEqual({ stdout: "0\n", stderr: "" });
  });
});
