/** What the journal's small files may hold. Their numbers are finite: `JSON.parse` lets through what JSON cannot mean. */
import { z } from "zod";
import { LIMITS } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { machineSchema } from "../artifact/quantization-info.js";
import { firstIssue } from "../../common/issues.js";

const error = z.number().min(0);
const facts = z.record(z.string(), z.record(z.string(), z.union([z.number(), z.string()])));

export const blockReportSchema = z.strictObject({
  errorRounded: error,
  errorInitial: error,
  errorFinal: error,
  epochLoss: z.array(error),
  moved: z.record(z.string(), error),
  notes: z.array(z.string()),
  linears: facts.optional(),
  alternatives: facts.optional(),
  expertTokens: z.array(z.number().int().min(0)).optional(),
  machine: machineSchema.optional(),
});

export const packReportSchema = z.strictObject({
  errorPacked: error.optional(),
  notes: z.array(z.string()),
});

export const refineSchema = z.strictObject({
  /** Of the file of tensors, without its ending. */
  name: z.string().regex(/^refine-\d{6,9}$/),
  step: z.number().int().min(0),
  blocks: z.number().int().min(1).max(LIMITS.layers),
  losses: z.array(z.number()),
});

/** @throws PlanishError saying which field of the file is wrong. */
export function parseContent<T>(schema: z.ZodType<T>, content: unknown, path: string): T {
  const result = schema.safeParse(content);
  if (result.success) return result.data;
  const { field, reason } = firstIssue(result.error);
  throw new PlanishError(
    `${path}: ${field || "content"}: ${reason}; remove the file and continue with --resume, which does its part again`,
  );
}
