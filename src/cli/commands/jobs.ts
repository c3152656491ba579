/** `planish jobs`: the runs and workers of a queue. */
import type { Command } from "commander";
import { UsageError } from "../../common/errors.js";
import { formatDuration, formatTable } from "../../common/format.js";
import { queueAddress } from "../../quantize/queue/redis.js";
import { queueState, runState, type QueueState } from "../../quantize/queue/status.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";
import { givenQueue, queueOption } from "./queue-flags.js";

interface JobsFlags {
  readonly queue?: string | true;
  readonly cancel?: boolean;
}

export function register(program: Command): void {
  const command = program
    .command("jobs")
    .summary("show runs and workers of a queue, or cancel a run")
    .description(
      "Shows the runs that a queue knows of and the workers that serve it; with a run, its blocks. A cancelled run keeps its " +
        "finished blocks: `planish quantize … --resume` goes on with it.",
    )
    .argument("[run]", "a run's id, or how it begins")
    .addOption(queueOption("the queue to look at"))
    .option("--cancel", "stop the run")
    .action(
      perform<JobsFlags, [string | undefined]>(async ({ reporter }, { queue, cancel }, run) => {
        const address = queueAddress(givenQueue(queue));
        if (run === undefined) {
          if (cancel)
            throw new UsageError("--cancel needs the id of a run; `planish jobs` lists them");
          const state = await queueState(address);
          reporter.result(state, () => renderQueue(state));
          return;
        }
        const state = await runState(address, run, { cancel });
        reporter.result(state, () => renderRun(state));
      }),
    );
  addExamples(command, [
    "planish jobs --queue redis://head:6379",
    "planish jobs 3fa1 --queue redis://head:6379",
    "planish jobs 3fa1 --queue redis://head:6379 --cancel",
  ]);
}

function ago(time: number): string {
  return `${formatDuration(Math.max(0, Date.now() - time) / 1000)} ago`;
}

function renderQueue({ runs, workers }: QueueState): string {
  const shownRuns =
    runs.length === 0
      ? "no runs"
      : formatTable(
          ["run", "model", "method", "scheme", "device", "blocks done", "state", "last heard of"],
          runs.map((each) => [
            each.run,
            each.model,
            each.method,
            each.scheme,
            each.machine,
            `${each.done} of ${each.blocks}`,
            each.state,
            ago(each.updated),
          ]),
        );
  const shownWorkers =
    workers.length === 0
      ? "no workers"
      : formatTable(
          ["worker", "device", "label", "version", "at work on"],
          workers.map(({ name, machine, label, version, run, block }) => [
            name,
            machine,
            label,
            version,
            run === "" ? "" : `${run}, block ${block}`,
          ]),
        );
  return `${shownRuns}\n\n${shownWorkers}`;
}

function renderRun(state: Awaited<ReturnType<typeof runState>>): string {
  const head =
    `run ${state.run}: ${state.model} by ${state.method}, ${state.scheme}, for ${state.machine}; ${state.state}, ` +
    `${state.done} of ${state.blocks} blocks done, store ${state.store}, begun ${ago(state.began)} by ${state.host}`;
  const table = formatTable(
    ["block", "state", "attempts", "seconds", "worker"],
    state.layers.map(({ layer, state: each, attempts, seconds, worker }) => [
      layer,
      each,
      attempts,
      seconds === undefined ? "" : seconds.toFixed(1),
      worker ?? "",
    ]),
  );
  const errors = [
    ...(state.error === undefined ? [] : [`error: ${state.error}`]),
    ...state.layers.flatMap(({ layer, error }) =>
      error === undefined ? [] : [`block ${layer}: ${error}`],
    ),
  ];
  return [head, table, ...errors].join("\n\n");
}
