/** `planish bench`: what this machine does, beside what it could do. */

import { Argument, type Command } from "commander";
import { benchKernels, formatBenchReport } from "../../bench/kernels.js";
import { perform } from "../action.js";
import { integer } from "../flags.js";
import { addExamples } from "../program.js";
import { threadsOption } from "./shared.js";

interface BenchFlags {
  readonly rounds: number;
  readonly threads?: number;
  /** Commander's form of `--no-peer`. */
  readonly peer: boolean;
}

export function register(program: Command): void {
  const command = program
    .command("bench")
    .summary("measure kernels beside the machine's ceilings")
    .description(
      "Measures matrix products in f32, bf16 and int8 at the shapes of a small model, each as a fraction of the " +
        "ceiling measured in the same run, beside onnxruntime-node where bench/peers has it.",
    )
    .addArgument(new Argument("<what>", "what to measure").choices(["kernels"]))
    .option("--rounds <n>", "measured rounds after the warm-up", integer({ min: 1, max: 1000 }), 9)
    .option("--no-peer", "leave onnxruntime-node out")
    .addOption(threadsOption())
    .action(
      perform<BenchFlags, [string]>(async ({ reporter, signal }, flags) => {
        const task = reporter.task("measuring", flags.rounds);
        const report = await benchKernels({
          rounds: flags.rounds,
          threads: flags.threads,
          withoutPeer: !flags.peer,
          onRound: () => task.advance(),
          signal,
        });
        task.done();
        reporter.result(report, () => formatBenchReport(report));
      }),
    );
  addExamples(command, ["planish bench kernels", "planish bench kernels --threads 1 --json"]);
}
