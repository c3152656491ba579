/**
 * What travels between the process of a run and the workers of a queue. A job in Redis holds hashes and small numbers only; what
 * they point to lies in the store. Everything is validated by whoever reads it: whoever can write to the queue can make
 * workers compute, and nothing else, since no path, address or code is ever taken from it.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { fileRecordSchema, sha256OfText, type FileRecord } from "../../checkpoint/file-record.js";
import { LIMITS, parseJson } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { firstIssue } from "../../common/issues.js";
import { finiteJson } from "../../common/ratio.js";
import { isLegalBits, isScheme, parseScheme, type Scheme } from "../../backend/contract/scheme.js";
import { machineSchema, type Machine } from "../artifact/quantization-info.js";
import { blockReportSchema } from "../run/journal-schema.js";
import type { RemoteSettings } from "../run/remote.js";
import type { BlockReport } from "../schema/method.js";
import { VERSION } from "../../common/version.js";

const layer = z
  .number()
  .int()
  .min(0)
  .max(LIMITS.layers - 1);
const runId = z.string().regex(/^[0-9a-f]{16}$/);
const name = z.string().max(200);

/** What the blocks of a run have in common: a text in the store. */
export const descriptionSchema = z.strictObject({
  planishVersion: z.string().max(64),
  /** Shown by `planish jobs` and in logs. */
  model: name,
  method: name,
  scheme: z.string().max(64).refine(isScheme, { error: "is no scheme" }),
  queryBits: z.number().refine(isLegalBits, { error: "is no width" }),
  recipe: z.record(z.string(), z.unknown()),
  seed: z
    .number()
    .int()
    .min(0)
    .max(2 ** 32 - 1),
  /** The model's `config.json`. */
  config: z.record(z.string(), z.unknown()),
  samples: z.number().int().min(1).max(LIMITS.samples),
  time: z.number().int().min(1).max(LIMITS.tokens),
  /** What the run's own process computes on. */
  machine: machineSchema,
  /** Whether blocks may be done on other machines than that. */
  mixed: z.boolean(),
});
export type Description = z.infer<typeof descriptionSchema>;

/** A job: one block. */
export const blockJobSchema = z.strictObject({
  run: runId,
  layer,
  description: fileRecordSchema,
  /** Full-precision states that enter block `from`; blocks `from` … `layer − 1` are run to have those of the block. */
  states: fileRecordSchema,
  from: layer,
  /** Weights of blocks `from` … `layer`. */
  weights: z.array(fileRecordSchema).min(1).max(LIMITS.layers),
});
export type BlockJobData = z.infer<typeof blockJobSchema>;

/** What a finished block leaves in the store, as a record of the run. */
export const blockRecordSchema = z.strictObject({
  parameters: fileRecordSchema,
  report: blockReportSchema,
  machine: machineSchema,
  /** Who did it, how long it took, and how much of that was fetching and keeping. */
  worker: name,
  seconds: z.number().min(0),
  movingSeconds: z.number().min(0),
});
export type BlockRecord = Omit<z.infer<typeof blockRecordSchema>, "report"> & {
  readonly report: BlockReport;
};

/** What a job comes to: a block, or the finding that what it was given is damaged. */
export const outcomeSchema = z.union([
  z.strictObject({ outcome: z.literal("done"), seconds: z.number().min(0) }),
  z.strictObject({ outcome: z.literal("damaged"), sha256: z.string().regex(/^[0-9a-f]{64}$/) }),
]);
export type JobOutcome = z.infer<typeof outcomeSchema>;

/** @throws PlanishError saying which field is wrong. */
export function validated<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const { field, reason } = firstIssue(result.error);
  throw new PlanishError(`${what}: ${field || "content"}: ${reason}`);
}

const sealedSchema = z.strictObject({ sha256: z.string(), content: z.unknown() });

/** A text with the hash of what it says, so that a flipped bit shows. */
export function sealed(content: object): string {
  const text = finiteJson(content);
  return `{"sha256":"${sha256OfText(text)}","content":${text}}`;
}

/** @throws PlanishError when a text is not as it was written. */
export function opened<T>(schema: z.ZodType<T>, text: string, what: string): T {
  const { sha256, content } = validated(sealedSchema, parseJson(text, what), what);
  if (sha256OfText(finiteJson(content)) !== sha256)
    throw new PlanishError(`${what} does not hold what was written (SHA-256)`);
  return validated(schema, content, what);
}

export function schemeOf({ scheme, queryBits }: Description): Scheme {
  const parsed = parseScheme(scheme);
  return queryBits === 16 ? parsed : { ...parsed, queryBits: queryBits };
}

/** The same for the same run, so that whoever starts it again finds what was done. */
export function runIdOf(settings: RemoteSettings, mixed: boolean): string {
  return sha256OfText(finiteJson({ ...settings, mixed })).slice(0, 16);
}

/** One for each block of a run: a job that is added twice is one. */
export function jobIdOf(run: string, at: number): string {
  return `${run}-${String(at).padStart(3, "0")}`;
}

export function recordName(at: number): string {
  return `block-${String(at).padStart(3, "0")}`;
}

/** What decides on the bits of a result, in a few words: device, instruction set or GPU, and threads. */
export function deviceClass({ device, level, threads }: Machine): string {
  const parts = [device, level, threads === undefined ? undefined : `${threads} threads`];
  return parts.filter((part) => part !== undefined).join(", ");
}

/**
 * The queue that serves a class of devices, or any of them. The version is part of its name: what a worker of another version
 * makes of the same settings may differ, so it never sees the job.
 */
export function queueName(machine: Machine | "any", label: string | undefined): string {
  const what = machine === "any" ? "any" : deviceClass(machine);
  const words = ["blocks", VERSION, what, ...(label === undefined ? [] : [label])].join(" ");
  // BullMQ takes no colons; names stay short whatever a GPU is called.
  const plain = words.replace(/[^A-Za-z0-9.]+/g, "-");
  const tail = createHash("sha256").update(words).digest("hex").slice(0, 6);
  return `${plain.slice(0, 80)}-${tail}`;
}

export type { FileRecord };
