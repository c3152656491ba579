/**
 * Weights of 8-bit floats: `quant_method` "fp8", as DeepSeek, Qwen and others publish them and transformers and vLLM
 * load them. With `weight_block_size` a linear has `weight_scale_inv`, one scale for each block (what it is called
 * notwithstanding, it multiplies); without, `weight_scale` or `weight_scale_inv` for the whole tensor. The product is
 * taken in float32 and rounded to the model's type.
 */
import { z } from "zod";
import { quoted, shown } from "../../common/bounds.js";
import { firstIssue } from "../../common/issues.js";
import { dequantize, groupsOf } from "./linear.js";
import type { QuantizedReading, QuantizedTensor, StoredSource } from "./reading.js";

const side = z
  .number()
  .int()
  .positive()
  .max(1 << 20);
const schema = z.looseObject({
  weight_block_size: z.tuple([side, side]).nullish(),
  activation_scheme: z.enum(["dynamic", "static"]).nullish(),
  /** How the scales were chosen; "ue8m0" are powers of two. They are stored as they are used either way. */
  fmt: z.enum(["e4m3", "float8_e4m3fn"]).nullish(),
});
type Block = readonly [number, number] | undefined;

/** Reads an FP8 checkpoint. @throws PlanishError naming what is missing, foreign or contradictory. */
export function readFp8(source: StoredSource): QuantizedReading {
  const parsed = schema.safeParse(source.settings.value);
  if (!parsed.success) {
    const { field, reason } = firstIssue(parsed.error);
    source.refuse(`${field || "the document"} of its settings: ${reason}`);
  }
  const { weight_block_size: block, activation_scheme: scheme } = parsed.data;
  const names = [...source.tensors.values()].filter(({ type }) => type === "F8_E4M3");
  const tensors = names.map(({ name }) => readTensor(source, block ?? undefined, name));
  const known = new Set(tensors.flatMap(({ parts }) => parts));
  const lone = [...source.tensors.keys()].find(
    (name) => /_scale(?:_inv)?$/.test(name) && !known.has(name) && !RUNTIME.test(name),
  );
  if (lone !== undefined)
    source.refuse(`tensor ${quoted(lone, 120)} has no weight of 8-bit floats`);
  return {
    tensors,
    dropped: [...source.tensors.keys()].filter((name) => RUNTIME.test(name)),
    notes: !scheme ? [] : [`inputs at 8 bits (${scheme})`],
    grid: `8-bit floats in ${block ? `blocks of ${block.join("×")}` : "tensors"}`,
  };
}

/** Scales of what a program quantizes as it runs. */
const RUNTIME = /\.(?:(?:input|activation|[qkv])_scale|[kv]_proj\.[kv]_scale)$/;

function readTensor(source: StoredSource, block: Block, name: string): QuantizedTensor {
  const { shape } = source.need(
    name,
    ["F8_E4M3"],
    [
      [-1, -1],
      [-1, -1, -1],
    ],
  );
  const [rows, columns] = shape.slice(-2);
  const stack = shape.length === 3 ? shape[0] : 1;
  const found = [`${name}_scale_inv`, `${name}_scale`].filter((scale) => source.has(scale));
  if (found.length !== 1)
    source.refuse(
      `tensor ${quoted(name, 120)} has ${found.length === 0 ? "no scale" : `two scales`} (${shown(`${name}_scale_inv`, 120)} or ${shown(`${name}_scale`, 120)})`,
    );
  const [scale] = found;
  const [height, width] = block ?? [rows, columns];
  const grid = [Math.ceil(rows / height), Math.ceil(columns / width)] as const;
  const single = block === undefined && stack === 1 ? [[], [1], [1, 1]] : [];
  const outer = shape.slice(0, -2);
  source.need(scale, ["F32", "BF16", "F16", "F8_E8M0"], [...single, [...outer, ...grid]]);
  const type = source.modelType ?? "F32";
  return {
    name,
    shape,
    type,
    parts: [name, scale],
    read: () => {
      const codes = source.floats(name);
      return dequantize({
        rows: stack * rows,
        columns,
        type,
        codes: (row, out) => out.set(codes.subarray(row * columns, (row + 1) * columns)),
        scales: source.floats(scale),
        scaleRow: (row) =>
          (Math.floor(row / rows) * grid[0] + Math.floor((row % rows) / height)) * grid[1],
        scaleColumn: groupsOf(columns, width),
      });
    },
  };
}
