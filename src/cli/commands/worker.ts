/** `planish worker`: serves blocks of runs that other machines have put on a queue. */
import { Option, type Command } from "commander";
import { LIMITS } from "../../common/bounds.js";
import { formatBytes } from "../../common/format.js";
import { deviceClass } from "../../quantize/queue/documents.js";
import { queueAddress } from "../../quantize/queue/redis.js";
import { serveBlocks, type ServeSummary } from "../../quantize/queue/worker.js";
import { perform } from "../action.js";
import { decimal } from "../flags.js";
import { addExamples } from "../program.js";
import {
  deviceUnit,
  givenQueue,
  labelOption,
  queueOption,
  storeOption,
  storePlace,
} from "./queue-flags.js";
import { threadsOption } from "./shared.js";

interface WorkerFlags {
  readonly queue?: string | true;
  readonly store?: string;
  readonly label?: string;
  readonly device?: ReturnType<typeof deviceUnit>;
  readonly threads?: number;
  readonly once?: boolean;
  readonly idle?: number;
  readonly takeover: number;
  readonly patience: number;
  readonly scratch?: string;
}

const seconds = decimal({ min: 1, max: LIMITS.samples });

export function register(program: Command): void {
  const command = program
    .command("worker")
    .summary("serve blocks of runs on many machines")
    .description(
      "Takes blocks of runs that `planish quantize --queue` has put on a queue, calibrates them, and leaves the results in the " +
        "store. Any number of workers may come and go; a block whose worker is lost is done by another one. A worker serves " +
        "runs of its own device, instruction set and number of threads, and runs with --mix.",
    )
    .addOption(queueOption("the queue to serve"))
    .addOption(storeOption())
    .addOption(labelOption("serve only runs with this label"))
    .addOption(
      new Option(
        "--device <name>",
        "what computes, as for quantize; cuda:1 is the second of several GPUs",
      ).argParser(deviceUnit),
    )
    .addOption(threadsOption())
    .option("--once", "end after one block")
    .option("--idle <seconds>", "end after so long without work (default: never)", seconds)
    .option(
      "--takeover <seconds>",
      "silence after which others take over this worker's block",
      seconds,
      30,
    )
    .option(
      "--patience <seconds>",
      "how long a store that is full or away is waited for",
      seconds,
      600,
    )
    .option(
      "--scratch <dir>",
      "where fetched data lie while they are used (default: the system's temporary directory)",
    )
    .action(
      perform<WorkerFlags, []>(
        async ({ reporter, signal }, flags) => {
          const summary = await serveBlocks({
            ...flags,
            ...flags.device,
            device: flags.device?.device,
            queue: queueAddress(givenQueue(flags.queue)),
            store: storePlace(flags.store),
            idleSeconds: flags.idle,
            takeoverSeconds: flags.takeover,
            progress: reporter,
            signal,
          });
          reporter.result(summary, () => render(summary));
        },
        { signalsEndNormally: true },
      ),
    );
  addExamples(command, [
    "planish worker --queue redis://head:6379 --store /shared/planish",
    "planish worker --queue rediss://head:6379 --store s3://bucket/planish --device cuda:1 --idle 600",
  ]);
}

function render({ machine, blocks, failed, bytesRead, bytesWritten }: ServeSummary): string {
  return (
    `${blocks} blocks done${failed > 0 ? `, ${failed} failed` : ""} on ${deviceClass(machine)}; ` +
    `${formatBytes(bytesRead)} fetched, ${formatBytes(bytesWritten)} kept`
  );
}
