/**
 * A process that turns prompts into token ids for the engine (prompt-pool.ts starts it). A process, not a thread: a
 * template that makes a huge list ends V8's whole process, whatever limits a thread was given.
 */
import { createContext, Script } from "node:vm";
import { openCheckpoint } from "../checkpoint/open.js";
import { loadTokenizer } from "../checkpoint/tokenizer.js";
import { PlanishError } from "../common/errors.js";
import { PromptWriter } from "./prompt.js";
import { OVER_TIME, type FromPromptProcess, type ToPromptProcess } from "./protocol.js";
import { EngineError } from "./request.js";

let writer: PromptWriter | undefined;

function load({ path, chatTemplate }: ToPromptProcess & { type: "load" }): FromPromptProcess {
  try {
    using checkpoint = openCheckpoint(path);
    writer = new PromptWriter(loadTokenizer(checkpoint), chatTemplate);
    return { type: "ready" };
  } catch (error) {
    if (!(error instanceof PlanishError)) throw error;
    return { type: "unloadable", message: error.message };
  }
}

function write({
  prompt,
  contextTokens,
  milliseconds,
}: ToPromptProcess & { type: "write" }): FromPromptProcess {
  try {
    if (!writer) throw new EngineError("the tokenizer is not loaded", "failed");
    const tokens = within(milliseconds, () => writer?.write(prompt, contextTokens) ?? []);
    return { type: "written", tokens: Uint32Array.from(tokens) };
  } catch (error) {
    // What was interrupted may have left the tokenizer's caches half done.
    if ((error as NodeJS.ErrnoException).code === "ERR_SCRIPT_EXECUTION_TIMEOUT")
      process.exit(OVER_TIME);
    if (!(error instanceof PlanishError)) throw error;
    const code = error instanceof EngineError ? error.code : "failed";
    return { type: "refused", error: { message: error.message, code } };
  }
}

/** Does some work, or throws ERR_SCRIPT_EXECUTION_TIMEOUT; a process that its engine left behind ends so too. */
function within<T>(milliseconds: number, work: () => T): T {
  return new Script("work()").runInContext(createContext({ work }), {
    timeout: milliseconds,
  }) as T;
}

process.on("message", (message: ToPromptProcess) => {
  process.send?.(message.type === "load" ? load(message) : write(message));
});
process.on("disconnect", () => process.exit());
// A terminal sends these to the whole group of processes: the engine may want to finish first.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);
