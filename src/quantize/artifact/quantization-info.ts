/** `quantization.json`: what it may hold, and reading it. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { readJsonObject } from "../../checkpoint/file-reader.js";
import { fileRecordSchema } from "../../checkpoint/file-record.js";
import { PlanishError } from "../../common/errors.js";
import { firstIssue } from "../../common/issues.js";
import { mapValues } from "../../common/records.js";
import {
  formatGrid,
  isScheme,
  parseGrid,
  parseScheme,
  type NarrowBits,
  type MatrixGrid,
  type OwnGrids,
  type Scheme,
} from "../../backend/contract/scheme.js";

export const QUANTIZATION_FILE = "quantization.json";
export const FORMAT_VERSION = 1;

/** More blocks than any model has, and a longer side than any tensor's. */
const MOST_BLOCKS = 1e5;
const LONGEST_SIDE = 2 ** 40;

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
/** A mean squared error, a loss or a relative change. */
const size = z.number().min(0);
const shape = z.array(z.number().int().min(0).max(LONGEST_SIDE)).max(8);

/** What computed a run: the same run on another machine may sum in another order (docs/decisions.md). */
export const machineSchema = z.strictObject({
  device: z.string(),
  /** Instruction set, or the GPU's name. */
  level: z.string().optional(),
  /** Of the process that calibrates: with `--workers`, of each worker. */
  threads: z.number().int().min(1).max(1e5).optional(),
  /** Of the process that rounds by GPTQ, where workers calibrated. */
  packingThreads: z.number().int().min(1).max(1e5).optional(),
});
export type Machine = z.infer<typeof machineSchema>;

const ownGrid = z.string().refine(isOwnGrid, {
  error: "give a grid such as 4g32o: bits, channels per scale, o for offsets",
});

function isOwnGrid(text: string): boolean {
  const grid = parseGrid(text);
  if (!grid) return false;
  const { bits, group, offset } = grid;
  return bits <= 8 ? !(offset && bits > 6) : bits === 16 && group === undefined;
}

const layerSchema = z.strictObject({
  layer: count,
  errorRounded: size.optional(),
  errorInitial: size.optional(),
  errorFinal: size.optional(),
  /** Of the block as packed; measured when its rounding is done after learning (GPTQ). */
  errorPacked: size.optional(),
  epochLoss: z.array(size).optional(),
  moved: z.record(z.string(), size).optional(),
  /** What the method found out about each linear, by its path. */
  linears: z.record(z.string(), z.record(z.string(), z.union([z.number(), z.string()]))).optional(),
  /** Calibration tokens that chose each expert. */
  expertTokens: z.array(count).optional(),
  /** What computed this block, in a run on a queue that took any device. */
  machine: machineSchema.optional(),
  parameters: z.record(z.string(), shape),
  /** Grids of linears, by path, that are not the scheme's; bits of sites' activations. */
  grids: z.record(z.string(), ownGrid).optional(),
  activationBits: z.record(z.string(), z.literal([2, 3, 4, 6, 8])).optional(),
});

/** `quantization.json`, validated. Nothing in it depends on when or how fast the run went. */
export const quantizationSchema = z.strictObject({
  formatVersion: z.literal(FORMAT_VERSION),
  planishVersion: z.string(),
  method: z.string(),
  preset: z.string().optional(),
  scheme: z.string().refine(isScheme, { error: "give a scheme such as w4a4kv4" }),
  /** What bits of single sites were chosen for, and what rounding to nearest at them costs. */
  budget: z
    .strictObject({
      size: count.optional(),
      kl: size.optional(),
      predictedKl: size,
      uniformKl: size,
    })
    .optional(),
  /** Grids of embedding and head by name, where they are not the scheme's; of those that are not listed: 16 bits. */
  tables: z.record(z.string(), ownGrid).optional(),
  recipe: z.record(z.string(), z.unknown()),
  seed: z.number(),
  source: z.strictObject({ name: z.string(), format: z.string(), hash: z.string() }),
  calibration: z
    .strictObject({ text: z.string(), samples: count.min(1), seqLen: count.min(1) })
    .optional(),
  machine: machineSchema.optional(),
  layers: z
    .array(layerSchema)
    .max(MOST_BLOCKS)
    .refine((layers) => layers.every(({ layer }, i) => layer === i), {
      error: "must list the blocks in order, from 0",
    }),
  refineLoss: z.array(size).optional(),
  /** Everything that was done otherwise than asked, in words. */
  fallbacks: z.array(z.string()),
  /** Every other file of the artifact; absent in artifacts of earlier versions. */
  files: z.record(z.string().regex(/^[^/\\]+$/), fileRecordSchema).optional(),
});

export type QuantizationInfo = z.infer<typeof quantizationSchema>;

export function isArtifact(path: string): boolean {
  return existsSync(join(path, QUANTIZATION_FILE));
}

/** Reads and validates `quantization.json`. @throws PlanishError saying which field is wrong. */
export function readQuantizationInfo(path: string): QuantizationInfo {
  const file = join(path, QUANTIZATION_FILE);
  return parseQuantizationInfo(readJsonObject(file), file);
}

/** @throws PlanishError saying which field is wrong; `where` names the document. */
export function parseQuantizationInfo(document: unknown, where: string): QuantizationInfo {
  const result = quantizationSchema.safeParse(document);
  if (result.success) return result.data;
  const { field, reason } = firstIssue(result.error);
  throw new PlanishError(`${where}: ${field || "document"}: ${reason}`);
}

/** The scheme of an artifact, with what single blocks and tables have instead. */
export function schemeOf({ scheme, layers, tables }: QuantizationInfo): Scheme {
  const own = layers.some(({ grids, activationBits }) => grids ?? activationBits);
  return {
    ...parseScheme(scheme),
    ...(own && {
      blocks: layers.map(({ grids, activationBits }) => ownGrids(grids, activationBits)),
    }),
    ...(tables && { tables: mapValues(tables, gridOf) }),
  };
}

function ownGrids(
  grids: Readonly<Record<string, string>> | undefined,
  activationBits: OwnGrids["activationBits"],
): OwnGrids {
  return { ...(grids && { weights: mapValues(grids, gridOf) }), activationBits };
}

function gridOf(text: string): MatrixGrid {
  const grid = parseGrid(text);
  if (!grid) throw new PlanishError(`"${text}" is no grid; give one such as 4g32o`);
  return grid;
}

/** What a block has of its own, as `layers[]` lists it. */
export function ownFields({ weights, activationBits }: OwnGrids = {}): Pick<
  QuantizationInfo["layers"][number],
  "grids" | "activationBits"
> {
  return {
    ...(weights && { grids: mapValues(weights, formatGrid) }),
    ...(activationBits && { activationBits: activationBits as Record<string, NarrowBits> }),
  };
}
