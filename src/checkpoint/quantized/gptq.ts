/**
 * Weights of GPTQ checkpoints (GPTQModel, AutoGPTQ, Optimum): `quant_method` "gptq". Of a linear, `qweight` packs codes
 * down the columns of the transposed weight, `qzeros` packs zero points along rows of groups, `scales` is [groups, out],
 * and `g_idx` names each input channel's group. The weight is `scales · (code − zero)` in the type of the scales.
 *
 * In the first version of the layout ("gptq") zero points are stored less one. GPTQModel takes the one off and adds it
 * back over whole 32-bit words, with carries; AutoGPTQ adds it to each field and wraps. They differ where a zero point
 * is 0, so the writer's name decides.
 */
import { z } from "zod";
import { quoted, shown } from "../../common/bounds.js";
import { firstIssue } from "../../common/issues.js";
import { unpackFields, wordsOf } from "./codes.js";
import { dequantize } from "./linear.js";
import type { DenseType, QuantizedReading, QuantizedTensor, StoredSource } from "./reading.js";

const schema = z.looseObject({
  bits: z.number().int().min(2).max(8),
  group_size: z.number().int().min(-1),
  desc_act: z.boolean(),
  sym: z.boolean().nullish(),
  checkpoint_format: z.string().nullish(),
  format: z.string().nullish(),
  pack_dtype: z.string().nullish(),
  /** As AutoGPTQ wrote it before layouts had names. */
  is_marlin_format: z.boolean().nullish(),
  dynamic: z.record(z.string(), z.unknown()).nullish(),
  meta: z
    .looseObject({ quantizer: z.union([z.string(), z.array(z.string())]).nullish() })
    .nullish(),
});
type GptqSettings = z.infer<typeof schema>;

/** How stored zero points become zero points. */
type ZeroPoints = "as stored" | "words plus one" | "fields plus one";

/** Reads a GPTQ checkpoint. @throws PlanishError naming what is missing, foreign or contradictory. */
export function readGptq(source: StoredSource): QuantizedReading {
  const parsed = schema.safeParse(source.settings.value);
  if (!parsed.success) {
    const { field, reason } = firstIssue(parsed.error);
    source.refuse(`${field || "the document"} of its settings: ${reason}`);
  }
  const settings = parsed.data;
  const zeros = zeroPointsOf(source, settings);
  const modules = source.modules(".qweight");
  const tensors = modules.map((module) => readLinear(source, settings, zeros, module));
  const { bits, group_size: size, desc_act: ordered } = settings;
  const spans = size === -1 ? "rows" : `groups of ${size}`;
  return {
    tensors,
    // Buffers that AutoGPTQ stores for every linear, whether the model has biases or not, are read as biases.
    dropped: [],
    notes: [],
    grid: `${bits} bits in ${spans}${ordered ? ", ordered by activations" : ""}`,
  };
}

function zeroPointsOf(source: StoredSource, settings: GptqSettings): ZeroPoints {
  const { checkpoint_format: stored, format: other, meta, bits } = settings;
  if (stored && other && stored !== other)
    source.refuse(`checkpoint_format is ${shown(stored)} and format is ${shown(other)}`);
  if (settings.pack_dtype && settings.pack_dtype !== "int32")
    source.refuse(`pack_dtype is ${shown(settings.pack_dtype)}, where only "int32" is read`);
  const format = stored ?? other ?? (settings.is_marlin_format ? "marlin" : "gptq");
  if (format === "gptq_v2") return "as stored";
  // Planes of fields are the same words for widths that divide 32.
  if (format === "gptq_p" && 32 % bits === 0) return "as stored";
  if (format !== "gptq")
    source.refuse(
      `its layout is ${shown(format)} at ${bits} bits (read are "gptq" and "gptq_v2", and "gptq_p" at 2, 4 and 8 bits)`,
    );
  const writers = [meta?.quantizer ?? []].flat();
  return writers.some((name) => /^gptqmodel\b/i.test(name)) ? "words plus one" : "fields plus one";
}

function readLinear(
  source: StoredSource,
  settings: GptqSettings,
  zeroPoints: ZeroPoints,
  module: string,
): QuantizedTensor {
  const names = ["qweight", "qzeros", "scales", "g_idx"].map((part) => `${module}.${part}`);
  const [qweight, qzeros, scales, order] = names;
  const [packed, rows] = source.need(qweight, ["I32"], [[-1, -1]]).shape;
  const { shape, type } = source.need(scales, ["F16", "BF16", "F32"], [[-1, rows]]);
  const groups = shape[0];
  const { bits, columns } = widthOf(source, settings, module, packed, groups);
  const size = settings.group_size === -1 ? columns : settings.group_size;
  if (!settings.dynamic && groups !== Math.ceil(columns / size))
    source.refuse(
      `tensor ${quoted(scales, 120)} has ${groups} groups for ${columns} channels in groups of ${size}`,
    );
  source.need(qzeros, ["I32"], [[groups, wordsOf(rows, bits)]]);
  const ordered = source.has(order);
  if (ordered) source.need(order, ["I32", "I64"], [[columns]]);
  else if (settings.desc_act)
    source.refuse(`tensor ${quoted(order, 120)} is missing, and desc_act is true`);
  return {
    name: `${module}.weight`,
    shape: [rows, columns],
    type: type as DenseType,
    parts: ordered ? names : names.slice(0, 3),
    read: () => {
      const span = Math.ceil(columns / groups);
      const group = ordered
        ? groupIndex(source, order, groups, settings.desc_act ? undefined : span)
        : Float32Array.from({ length: columns }, (_, column) => Math.floor(column / span));
      const words = source.words(qweight);
      const fields = new Uint8Array(columns);
      return dequantize({
        rows,
        columns,
        type: type as DenseType,
        codes: (row, out) => {
          unpackFields(words, { start: row, stride: rows, count: columns, bits }, fields);
          out.set(fields);
        },
        scales: source.floats(scales),
        zeros: readZeros(source.words(qzeros), groups, rows, bits, zeroPoints),
        scaleRow: (row) => row,
        scaleColumn: group.map((index) => index * rows),
      });
    },
  };
}

/** Bits and input channels of a linear: those of the settings, or where modules differ, those that its shapes have. */
function widthOf(
  source: StoredSource,
  settings: GptqSettings,
  module: string,
  packed: number,
  groups: number,
): { bits: number; columns: number } {
  const order = source.tensors.get(`${module}.g_idx`);
  const channels = order?.shape.length === 1 ? order.shape[0] : undefined;
  let { bits } = settings;
  if (settings.dynamic) {
    if (channels === undefined)
      source.refuse(
        `module ${quoted(module, 120)} has no g_idx, and "dynamic" gives modules other bits`,
      );
    bits = (packed * 32) / channels;
  }
  const columns = channels ?? (packed * 32) / bits;
  if (![2, 3, 4, 8].includes(bits) || wordsOf(columns, bits) !== packed || groups > columns)
    source.refuse(
      `tensor ${quoted(`${module}.qweight`, 120)} has ${packed} rows of words for ${columns} channels of ${bits} bits`,
    );
  return { bits, columns };
}

/** @param span channels of each group, where they stand in order. */
function groupIndex(
  source: StoredSource,
  name: string,
  groups: number,
  span: number | undefined,
): Float32Array {
  const index = source.floats(name);
  for (const [channel, group] of index.entries()) {
    if (group < 0 || group >= groups)
      source.refuse(
        `tensor ${quoted(name, 120)} puts channel ${channel} in group ${group} of ${groups}`,
      );
    if (span !== undefined && group !== Math.floor(channel / span))
      source.refuse(`tensor ${quoted(name, 120)} is not in order, and desc_act is false`);
  }
  return index;
}

/** Zero points [groups, rows], of what is stored. */
function readZeros(
  words: Uint32Array,
  groups: number,
  rows: number,
  bits: number,
  how: ZeroPoints,
): Float32Array {
  const zeros = new Float32Array(groups * rows);
  const fields = new Uint8Array(rows);
  const width = wordsOf(rows, bits);
  const whole = how === "words plus one" && 32 % bits === 0;
  // A word with a one in every field.
  const ones = whole ? Math.round((2 ** 32 - 1) / (2 ** bits - 1)) : 0;
  const stored = whole ? words.map((word) => word + ones) : words;
  const one = how === "as stored" || whole ? 0 : 1;
  for (let group = 0; group < groups; group++) {
    unpackFields(stored, { start: group * width, stride: 1, count: rows, bits }, fields);
    for (let row = 0; row < rows; row++)
      zeros[group * rows + row] = (fields[row] + one) & (2 ** bits - 1);
  }
  return zeros;
}
