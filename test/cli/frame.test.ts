/** Exit codes, streams and signals of the frame that every command runs in. */

import { describe, expect, it } from "vitest";
import { runProbe } from "./run-program.js";

describe("streams", () => {
  it("prints the result on stdout and everything else on stderr", async () => {
    const { code, stdout, stderr } = await runProbe(["succeed"]);
    expect({ code, stdout }).toEqual({ code: 0, stdout: "answer: 42\n" });
    expect(stderr).toBe("remark\nplanish: warning: odd value\nworking …\n");
  });

  it("keeps warnings, and only them, with --quiet", async () => {
    const { stdout, stderr } = await runProbe(["succeed", "--quiet"]);
    expect({ stdout, stderr }).toEqual({
      stdout: "answer: 42\n",
      stderr: "planish: warning: odd value\n",
    });
  });

  it("adds internals with --verbose", async () => {
    const { stderr } = await runProbe(["--verbose", "succeed"]);
    expect(stderr).toMatch(/^internals\nremark\n/);
  });

  it("prints one JSON document with --json, wherever the flag stands", async () => {
    for (const args of [
      ["--json", "succeed"],
      ["succeed", "--json"],
    ]) {
      const { code, stdout, stderr } = await runProbe(args);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toEqual({ answer: 42, infinite: "Infinity", codes: [-8, 7] });
      expect(stderr).toContain("remark");
    }
  });
});

describe("failures", () => {
  it("prints a PlanishError as one line and exits 1", async () => {
    expect(await runProbe(["fail"])).toEqual({
      code: 1,
      stdout: "",
      stderr: 'planish: no model at "here"; give a directory\n',
    });
  });

  it("exits 2 on a UsageError, pointing to the command's help", async () => {
    expect(await runProbe(["misuse"])).toEqual({
      code: 2,
      stdout: "",
      stderr: "planish: scheme w5 is not legal; see `planish misuse --help`\n",
    });
  });

  it("names the way to the stack of an unexpected failure", async () => {
    expect(await runProbe(["crash"])).toEqual({
      code: 1,
      stdout: "",
      stderr:
        "planish: unexpected failure: undefined is not a tensor; run with --verbose for the stack\n",
    });
  });

  it("prints stack and causes with --verbose", async () => {
    const { code, stderr } = await runProbe(["crash", "--verbose"]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/TypeError: undefined is not a tensor\n\s+at .*probe\.mjs/);
    expect(stderr).toContain("caused by Error: deep down");
  });

  it.each([
    [["fail"], 1, 'no model at "here"; give a directory'],
    [["misuse"], 2, "scheme w5 is not legal; see `planish misuse --help`"],
    [
      ["flags", "--count", "0"],
      2,
      "option '--count <n>' argument '0' is invalid. Give a whole number from 1 to 10; see `planish flags --help`",
    ],
  ])("leaves a JSON document of the error with --json: %j", async (args, exitCode, message) => {
    const { code, stdout } = await runProbe([...args, "--json"]);
    expect(code).toBe(exitCode);
    expect(JSON.parse(stdout)).toEqual({ error: { message, exitCode } });
  });
});

describe("flag values", () => {
  it("accepts legal ones", async () => {
    const { stdout } = await runProbe(
      "flags --count 10 --rate 1e-3 --names gptq,rtn --json".split(" "),
    );
    expect(JSON.parse(stdout)).toEqual({ count: 10, rate: 1e-3, names: ["gptq", "rtn"] });
  });

  it.each([
    ["--count", "11", "Give a whole number from 1 to 10"],
    ["--count", "1e1", "Give a whole number from 1 to 10"],
    ["--count", "2.5", "Give a whole number from 1 to 10"],
    ["--rate", "-1", "Give a number, at least 0"],
    ["--rate", "fast", "Give a number, at least 0"],
    ["--rate", "Infinity", "Give a number, at least 0"],
    ["--names", "a,,b", "Give distinct names separated by commas"],
    ["--names", "a,a", "Give distinct names separated by commas"],
  ])("refuses %s %s", async (flag, value, accepted) => {
    const { code, stdout, stderr } = await runProbe(["flags", flag, value]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr.split("\n")).toHaveLength(2);
    expect(stderr).toContain(flag);
    expect(stderr).toContain(`'${value}'`);
    expect(stderr).toContain(accepted);
  });
});

describe("signals", () => {
  it.each(["SIGINT", "SIGTERM"] as const)("stops cleanly on %s and exits 130", async (name) => {
    let sent = false;
    const { code, stdout, stderr } = await runProbe(["wait"], {
      onStderr: (child, text) => {
        if (!sent && text.includes("ready")) sent = child.kill(name);
      },
    });
    expect({ code, stdout }).toEqual({ code: 130, stdout: "" });
    expect(stderr).toBe(
      "ready\nstopping after the current step; press again to quit at once\n" +
        "planish: stopped after block 3; continue with --resume\n",
    );
  });

  it("quits at once on the second signal", async () => {
    let sent = 0;
    const { code } = await runProbe(["hang"], {
      onStderr: (child, text) => {
        if (sent === 0 && text.includes("ready")) sent += Number(child.kill("SIGINT"));
        else if (sent === 1 && text.includes("press again")) sent += Number(child.kill("SIGINT"));
      },
    });
    expect({ code, sent }).toEqual({ code: 130, sent: 2 });
  });
});
