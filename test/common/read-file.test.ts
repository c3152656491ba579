/** Whole files from people's paths: what is no file, or too large, is refused at once. */
import { execFileSync } from "node:child_process";
import { mkdirSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { readUserFile, readUserJson, readUserText } from "../../src/common/read-file.js";
import { temporaryDirectory } from "../checkpoint/files.js";

const directory = temporaryDirectory();
const at = (name: string): string => join(directory, name);

describe("files of users", () => {
  it("are read whole, through links, up to the limit itself", () => {
    writeFileSync(at("text"), "\ufeffabc");
    symlinkSync("text", at("link"));
    expect(readUserText(at("link"), { most: 6 })).toBe("abc");
    expect(readUserFile(at("text"), { most: 6 })).toHaveLength(6);
    writeFileSync(at("empty"), "");
    expect(readUserFile(at("empty"), { most: 0 })).toHaveLength(0);
    // Its size is given as 0.
    expect(readUserText("/proc/self/status", { most: 1 << 20 })).toContain("Pid:");
  });

  it.each([
    ["a device without end", () => "/dev/zero", "it is a device"],
    ["a directory", () => directory, "it is a directory"],
    ["a pipe", () => pipe(), "it is a pipe; write it to a file first"],
    ["a path through a file", () => at("text/x"), "a part of its path is no directory"],
    ["a missing file", () => at("none"), "it does not exist"],
    ["links in a circle", () => circle(), "its links lead in a circle"],
    ["a null byte", () => at("a\u0000b"), "its path holds a null byte"],
    ["a file that is too large", () => sparse(), "1.00 GB is more than the 1.00 MB accepted"],
    ["a file of /proc that is too large", () => "/proc/kallsyms", "more than the 1.00 MB accepted"],
  ])("are refused when they are %s", (_, make, message) => {
    const path = make();
    const read = (): unknown =>
      readUserFile(path, { most: 1e6, what: "recipe", hint: "give JSON" });
    expect(read).toThrow(PlanishError);
    expect(read).toThrow(/^cannot read recipe [^\n]*; give JSON$/);
    expect(read).toThrow(message);
  });

  it("say where they are no text or no JSON", () => {
    writeFileSync(at("binary"), Uint8Array.of(0xff, 0xfe, 0x00));
    expect(() => readUserText(at("binary"), { most: 10 })).toThrow("it is no UTF-8 text");
    writeFileSync(at("broken.json"), "{");
    expect(() => readUserJson(at("broken.json"), { most: 10, what: "recipe" })).toThrow(
      /^recipe .*broken\.json is not valid JSON/,
    );
  });

  function pipe(): string {
    execFileSync("mkfifo", [at("pipe")]);
    return at("pipe");
  }

  function circle(): string {
    symlinkSync("b", at("a"));
    symlinkSync("a", at("b"));
    return at("a");
  }

  function sparse(): string {
    mkdirSync(at("d"));
    writeFileSync(at("d/sparse"), "");
    truncateSync(at("d/sparse"), 1e9);
    return at("d/sparse");
  }
});
