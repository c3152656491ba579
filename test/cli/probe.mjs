/** A program in the same frame as `planish`, whose commands end in every way that a command can end. */

import { InterruptedError, PlanishError, UsageError } from "../../dist/common/errors.js";
import { perform } from "../../dist/cli/action.js";
import { decimal, integer, nameList } from "../../dist/cli/flags.js";
import { addExamples, run } from "../../dist/cli/program.js";

const command = (name, register) => ({ name, load: () => Promise.resolve(register) });
const add = (name, work) =>
  command(name, (program) =>
    addExamples(program.command(name).action(perform(work)), [`planish ${name}`]),
  );

const commands = [
  add("succeed", ({ reporter }) => {
    reporter.debug("internals");
    reporter.info("remark");
    reporter.warn("odd value");
    const task = reporter.task("working", 2);
    task.advance();
    task.advance();
    task.done();
    reporter.result(
      { answer: 42, infinite: Infinity, codes: new Int8Array([-8, 7]) },
      () => "answer: 42",
    );
  }),
  add("fail", () => {
    throw new PlanishError('no model at "here";\ngive a directory');
  }),
  add("misuse", () => {
    throw new UsageError("scheme w5 is not legal");
  }),
  add("crash", () => {
    throw new TypeError("undefined is not a tensor", { cause: new Error("deep down") });
  }),
  add("wait", async ({ reporter, signal }) => {
    reporter.info("ready");
    while (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, 5));
    throw new InterruptedError("stopped after block 3; continue with --resume");
  }),
  add("hang", async ({ reporter }) => {
    reporter.info("ready");
    await new Promise((resolve) => setTimeout(resolve, 60_000));
  }),
  command("flags", (program) =>
    program
      .command("flags")
      .option("--count <n>", "a count", integer({ min: 1, max: 10 }))
      .option("--rate <x>", "a rate", decimal({ min: 0 }))
      .option("--names <list>", "names", nameList)
      .action(perform(({ reporter }, flags) => reporter.result(flags, () => "ok"))),
  ),
];

process.exitCode = await run(process.argv.slice(2), commands);
