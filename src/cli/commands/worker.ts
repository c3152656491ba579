/** `planish worker`: serves blocks of runs that other machines have put on a queue. */
import { Option, type Command } from "commander";
import { LIMITS, oneLine } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import { deviceClass } from "../../quantize/queue/documents.js";
import { queueAddress } from "../../quantize/queue/redis.js";
import { serveBlocks, type ServeSummary } from "../../quantize/queue/worker.js";
import { perform } from "../action.js";
import { WorkerMetrics } from "../../serve/worker-metrics.js";
import { decimal, integer } from "../flags.js";
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
  readonly metricsPort?: number;
  readonly metricsHost: string;
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
    .option(
      "--metrics-port <n>",
      "serve /metrics for Prometheus, and /health",
      integer({ min: 1, max: 65535 }),
    )
    .option("--metrics-host <address>", "where --metrics-port listens", "127.0.0.1")
    .action(
      perform<WorkerFlags, []>(
        async ({ reporter, signal }, flags) => {
          const metrics = new WorkerMetrics();
          const queue = queueAddress(givenQueue(flags.queue));
          const store = storePlace(flags.store);
          const server =
            flags.metricsPort === undefined
              ? undefined
              : await listen(metrics, flags.metricsPort, flags.metricsHost);
          try {
            const summary = await serveBlocks({
              ...flags,
              ...flags.device,
              device: flags.device?.device,
              queue,
              store,
              idleSeconds: flags.idle,
              takeoverSeconds: flags.takeover,
              progress: reporter,
              observe: (event) => metrics.observe(event),
              signal,
            });
            reporter.result(summary, () => render(summary));
          } finally {
            await server?.close();
          }
        },
        { signalsEndNormally: true },
      ),
    );
  addExamples(command, [
    "planish worker --queue redis://head:6379 --store /shared/planish",
    "planish worker --queue rediss://head:6379 --store s3://bucket/planish --device cuda:1 --idle 600",
  ]);
}

async function listen(metrics: WorkerMetrics, port: number, host: string) {
  try {
    return await metrics.listen(port, host);
  } catch (cause) {
    throw new PlanishError(
      `--metrics-port ${port} cannot be used: ${oneLine((cause as Error).message)}; choose another port, or another --metrics-host`,
      { cause },
    );
  }
}

function render({ machine, blocks, failed, bytesRead, bytesWritten }: ServeSummary): string {
  return (
    `${blocks} blocks done${failed > 0 ? `, ${failed} failed` : ""} on ${deviceClass(machine)}; ` +
    `${formatBytes(bytesRead)} fetched, ${formatBytes(bytesWritten)} kept`
  );
}
