/** `planish chat` with lines from a pipe. */

import { spawn } from "node:child_process";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { temporaryDirectory } from "./artifacts.js";
import { chatModel } from "./chat-model.js";
import { root, type Outcome } from "./run-program.js";

const directory = temporaryDirectory();
const model = chatModel(directory.file("chat-llama"));
afterAll(() => directory[Symbol.dispose]());

function chat(input: string, ...flags: string[]): Promise<Outcome> {
  const args = ["chat", model, "--max-tokens", "8", "--temperature", "0", ...flags];
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), ...args], { cwd: root });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data) => (stdout += String(data)));
  child.stderr.on("data", (data) => (stderr += String(data)));
  child.stdin.end(input);
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, stdout, stderr })));
}

describe("planish chat", () => {
  it("answers line by line, keeps the conversation, and forgets it on /reset", async () => {
    const { code, stdout } = await chat(
      "Who?\nWhere is he?\n/reset\nWho?\n/exit\nlost\n",
      "--json",
    );
    expect(code).toBe(0);
    const { messages } = JSON.parse(stdout) as { messages: { role: string; content: string }[] };
    // Only what was said after /reset is left, and nothing after /exit was said.
    expect(messages.map(({ role }) => role)).toEqual(["user", "assistant"]);
    expect(messages[0].content).toBe("Who?");
    const plain = await chat("Who?\nWhere is he?\n");
    expect(plain.stdout.startsWith(`${messages[1].content}\n`)).toBe(true);
    expect(plain.stderr).toMatch(/\[8 tokens, [\d.]+ tokens\/s; \d+ tokens before/);
  });

  it("joins lines that end in a backslash, and takes a system message", async () => {
    const { stdout } = await chat("One \\\nand two\n", "--json", "--system", "Be brief.");
    const { messages } = JSON.parse(stdout) as { messages: { content: string }[] };
    expect(messages.slice(0, 2).map(({ content }) => content)).toEqual([
      "Be brief.",
      "One \nand two",
    ]);
  });

  it("explains itself, and goes on after a message that is too long", async () => {
    const { code, stderr } = await chat(`/help\n/what\n${"word ".repeat(2000)}\nWho?\n`);
    expect(code).toBe(0);
    expect(stderr).toContain("/reset   forget the conversation");
    expect(stderr).toContain("there is no /what");
    expect(stderr).toMatch(/warning: the prompt has .* \/reset starts anew/);
    expect(stderr).toContain("[8 tokens");
  });

  it("says what to do with a model that has no template", async () => {
    const child = spawn(process.execPath, ["dist/cli/main.js", "chat", "models/tiny-llama"], {
      cwd: root,
    });
    let stderr = "";
    child.stderr.on("data", (data) => (stderr += String(data)));
    child.stdin.end("");
    const code = await new Promise((resolve) => child.on("close", resolve));
    expect(code).toBe(1);
    expect(stderr).toMatch(/no chat template .*--chat-template FILE/);
  });
});
