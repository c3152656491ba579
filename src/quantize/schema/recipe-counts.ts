/** Counts that recipes hold, bounded: they size memory and loops. */
import { z } from "zod";
import { LIMITS } from "../../common/bounds.js";

/** Windows of text, windows per step, steps of a search: at least one. */
export const windowCount = z.number().int().min(1).max(LIMITS.samples);

/** Tokens of a window. */
export const tokenCount = z.number().int().min(1).max(LIMITS.tokens);

/** Passes over the windows, or steps; none at all may be asked for. */
export const passCount = z.number().int().min(0).max(LIMITS.samples);
