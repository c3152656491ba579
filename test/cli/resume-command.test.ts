import { spawnSync } from "node:child_process";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { quoteForShell, resumeCommand } from "../../src/cli/resume-command.js";

describe("the command that goes on", () => {
  it("names the program as it was started", () => {
    const args = ["quantize", "m", "--out", "o"];
    const rest = "quantize m --out o --resume";
    expect(resumeCommand(args, "/usr/bin/planish", {})).toBe(`planish ${rest}`);
    const npx = { npm_command: "exec" };
    expect(resumeCommand(args, "/x/node_modules/.bin/planish", npx)).toBe(`npx planish ${rest}`);
    expect(resumeCommand(args, `${process.cwd()}/dist/cli/main.js`, npx)).toBe(
      `node dist/cli/main.js ${rest}`,
    );
  });

  it("says --resume once, and before arguments that are no flags", () => {
    expect(resumeCommand(["sweep", "--resume", "m"], "planish", {})).toBe(
      "planish sweep --resume m",
    );
    expect(resumeCommand(["quantize", "--out", "o", "--", "-m"], "planish", {})).toBe(
      "planish quantize --out o --resume -- -m",
    );
  });

  it.skipIf(process.platform === "win32")("quotes so that a shell reads the same", () => {
    const text = fc.string({ unit: "binary" }).filter((s) => !s.includes("\0"));
    fc.assert(
      fc.property(fc.array(text, { minLength: 1, maxLength: 20 }), (args) => {
        const line = args.map((argument) => quoteForShell(argument, "linux")).join(" ");
        const print = "process.stdout.write(JSON.stringify(process.argv.slice(1)))";
        const { stdout } = spawnSync("sh", [
          "-c",
          `${quoteForShell(process.execPath, "linux")} -e '${print}' -- ${line}`,
        ]);
        expect(JSON.parse(String(stdout))).toEqual(args.map((s) => Buffer.from(s).toString()));
      }),
      { numRuns: 10 },
    );
  });
});
