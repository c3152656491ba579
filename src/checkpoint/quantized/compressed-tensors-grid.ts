/** Grids of compressed-tensors, as its settings write them. */
import { z } from "zod";

/** What a tensor's grid is; keys that say how it was found, such as observers, are not read. */
export const gridSchema = z.looseObject({
  num_bits: z.number().int().min(1).max(16).default(8),
  type: z.enum(["int", "float"]).default("int"),
  symmetric: z.boolean().default(true),
  strategy: z
    .enum(["tensor", "channel", "group", "block", "token", "tensor_group", "attn_head"])
    .nullish(),
  group_size: z.number().int().min(-1).nullish(),
  block_structure: z
    .union([z.tuple([z.number().int().positive(), z.number().int().positive()]), z.string()])
    .nullish(),
  dynamic: z.union([z.boolean(), z.string()]).nullish(),
  actorder: z.union([z.string(), z.boolean()]).nullish(),
});
export type Grid = z.infer<typeof gridSchema>;

/** A linear with all that its reading depends on. */
export interface Linear {
  readonly module: string;
  readonly format: string;
  readonly grid: Grid;
}
