/** Flags of runs on many machines, and what they mean together. */
import { InvalidArgumentError, Option, type Command } from "commander";
import { DEVICES, type Device } from "../../backend/open.js";
import { LIMITS } from "../../common/bounds.js";
import { UsageError } from "../../common/errors.js";
import { queueBlocks } from "../../quantize/queue/coordinator.js";
import { queueAddress } from "../../quantize/queue/redis.js";
import type { RemoteBlocks } from "../../quantize/run/remote.js";
import { integer } from "../flags.js";

export const queueOption = (purpose: string): Option =>
  new Option(
    "--queue [url]",
    `${purpose}: redis://host:6379, rediss:// for TLS; without an address the environment variable PLANISH_QUEUE has it`,
  );

export const storeOption = (): Option =>
  new Option(
    "--store <place>",
    "where the machines share data: a directory that all of them see, or s3://bucket/prefix",
  );

export const labelOption = (purpose: string): Option =>
  new Option("--label <name>", `with --queue: ${purpose}`).argParser((text) => {
    if (/^[\w.-]{1,32}$/.test(text)) return text;
    throw new InvalidArgumentError(
      "a label has at most 32 letters, digits, dots, dashes and underscores",
    );
  });

export interface QueueFlags {
  readonly queue?: string | true;
  readonly store?: string;
  readonly label?: string;
  readonly mix?: boolean;
  readonly statesEvery?: number;
  readonly workers?: number;
}

/** Adds what runs on a queue take beside `--queue`. */
export function addQueueFlags(command: Command): Command {
  return command
    .addOption(queueOption("have blocks calibrated by the workers of a queue"))
    .addOption(storeOption())
    .addOption(labelOption("only by workers with this label"))
    .option("--mix", "take workers of every device, instruction set and number of threads")
    .option(
      "--states-every <n>",
      "with --queue: keep the states of every n-th block in the store, and have the rest computed again (default: by measured cost)",
      integer({ min: 1, max: LIMITS.layers }),
    );
}

/** The store of a queue. @throws UsageError when none is given. */
export function storePlace(store: string | undefined): string {
  if (store !== undefined && store !== "") return store;
  throw new UsageError(
    "--queue needs --store: a directory that all machines see, or s3://bucket/prefix",
  );
}

export function givenQueue(queue: string | true | undefined): string | undefined {
  return queue === true ? undefined : queue;
}

/** Who calibrates blocks; undefined without --queue. @throws UsageError for flags that do not fit together. */
export function remoteBlocks(flags: QueueFlags): RemoteBlocks | undefined {
  const { queue, store, label, mix, statesEvery, workers = 1 } = flags;
  if (queue === undefined) {
    const alone = Object.entries({ store, label, mix, statesEvery }).find(
      ([, value]) => value !== undefined,
    );
    if (alone === undefined) return undefined;
    const flag = alone[0] === "statesEvery" ? "states-every" : alone[0];
    throw new UsageError(`--${flag} belongs to a run on a queue; give --queue as well`);
  }
  if (workers > 1)
    throw new UsageError(
      "--workers starts processes of this machine, and --queue has workers of its own; give one of them",
    );
  return queueBlocks({
    queue: queueAddress(givenQueue(queue)),
    store: storePlace(store),
    label,
    mixed: mix,
    statesEvery,
  });
}

/** `cuda:1`: a device and which of several; `cpu` alone. */
export function deviceUnit(text: string): { readonly device: Device; readonly unit?: number } {
  const [, name, unit] = /^([a-z]+)(?::(\d{1,2}))?$/.exec(text) ?? [];
  const device = DEVICES.find((each) => each === name);
  if (device === undefined || (unit !== undefined && device !== "cuda"))
    throw new InvalidArgumentError(
      `the devices are ${DEVICES.join(", ")}, and cuda:0, cuda:1, … where there are several GPUs`,
    );
  return unit === undefined ? { device } : { device, unit: Number(unit) };
}
