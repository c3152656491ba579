/**
 * Weights of AWQ checkpoints (AutoAWQ, GPTQModel): `quant_method` "awq" in the gemm layout. Of a linear, `qweight`
 * [in, out/8] and `qzeros` [groups, out/8] hold eight 4-bit fields a word along the outputs, in the order of
 * `FIELD_ORDER`, and `scales` is [groups, out]. The weight is `(code − zero) · scale` in the type of the scales.
 */
import { z } from "zod";
import { quoted, shown } from "../../common/bounds.js";
import { firstIssue } from "../../common/issues.js";
import { dequantize, groupsOf } from "./linear.js";
import type { DenseType, QuantizedReading, QuantizedTensor, StoredSource } from "./reading.js";

/** AutoAWQ's own configuration file has the names on the right, everything else those on the left. */
const schema = z.looseObject({
  bits: z.number().int().optional(),
  w_bit: z.number().int().optional(),
  group_size: z.number().int().min(-1).optional(),
  q_group_size: z.number().int().min(-1).optional(),
  zero_point: z.boolean().optional(),
  version: z.string().optional(),
  checkpoint_format: z.string().nullish(),
  format: z.string().nullish(),
});

/** Of the eight outputs of a word, which one's field stands at output `i`: even ones come first. */
const FIELD_ORDER = [0, 4, 1, 5, 2, 6, 3, 7];

/** Reads an AWQ checkpoint. @throws PlanishError naming what is missing, foreign or contradictory. */
export function readAwq(source: StoredSource): QuantizedReading {
  const parsed = schema.safeParse(source.settings.value);
  if (!parsed.success) {
    const { field, reason } = firstIssue(parsed.error);
    source.refuse(`${field || "the document"} of its settings: ${reason}`);
  }
  const settings = parsed.data;
  const one = (names: readonly (keyof typeof settings)[]): unknown => {
    const given = [
      ...new Set(
        names.map((name) => lower(settings[name])).filter((v) => v !== undefined && v !== null),
      ),
    ];
    if (given.length > 1)
      source.refuse(`${names.join(" and ")} are ${given.map((v) => shown(v)).join(" and ")}`);
    return given[0];
  };
  const bits = one(["bits", "w_bit"]);
  if (bits !== 4) source.refuse(`its codes have ${shown(bits ?? null)} bits, where AWQ has 4`);
  const layout = one(["version", "checkpoint_format", "format"]);
  if (layout !== "gemm")
    source.refuse(`its layout is ${shown(layout ?? null)}, where only "gemm" is read`);
  if (settings.zero_point === false)
    source.refuse("zero_point is false, which the gemm layout has not");
  const size = one(["group_size", "q_group_size"]);
  if (typeof size !== "number" || size === 0) source.refuse(`group_size is ${shown(size ?? null)}`);
  return {
    tensors: source.modules(".qweight").map((module) => readLinear(source, size, module)),
    dropped: [],
    notes: [],
    grid: `4 bits in ${size === -1 ? "rows" : `groups of ${size}`}, with zero points`,
  };
}

/** Tools spell layouts in either case. */
function lower(value: unknown): unknown {
  return typeof value === "string" ? value.toLowerCase() : value;
}

function readLinear(source: StoredSource, groupSize: number, module: string): QuantizedTensor {
  const parts = ["qweight", "qzeros", "scales"].map((part) => `${module}.${part}`);
  const [qweight, qzeros, scales] = parts;
  const [columns, width] = source.need(qweight, ["I32"], [[-1, -1]]).shape;
  const rows = 8 * width;
  const size = groupSize === -1 ? columns : groupSize;
  if (columns % size !== 0)
    source.refuse(`tensor ${quoted(qweight, 120)} has ${columns} channels in groups of ${size}`);
  const groups = columns / size;
  source.need(qzeros, ["I32"], [[groups, width]]);
  const type = source.need(scales, ["F16", "BF16", "F32"], [[groups, rows]]).type as DenseType;
  return {
    name: `${module}.weight`,
    shape: [rows, columns],
    type,
    parts,
    read: () => {
      const words = source.words(qweight);
      return dequantize({
        rows,
        columns,
        type,
        codes: (row, out) => {
          const [word, shift] = [row >> 3, 4 * FIELD_ORDER[row & 7]];
          for (let i = 0; i < columns; i++) out[i] = (words[i * width + word] >>> shift) & 15;
        },
        scales: source.floats(scales),
        zeros: unpackAll(source.words(qzeros)),
        scaleRow: (row) => row,
        scaleColumn: groupsOf(columns, size).map((group) => group * rows),
      });
    },
  };
}

/** Every field of the words, by output. */
function unpackAll(words: Uint32Array): Uint8Array {
  const out = new Uint8Array(8 * words.length);
  for (let i = 0; i < out.length; i++) out[i] = (words[i >> 3] >>> (4 * FIELD_ORDER[i & 7])) & 15;
  return out;
}
