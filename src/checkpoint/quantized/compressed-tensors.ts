/**
 * Weights of compressed-tensors (llm-compressor and vLLM): `quant_method` "compressed-tensors", formats pack-quantized,
 * int-quantized, float-quantized and naive-quantized. A linear is `(code − zero) · scale` in the type of its scales; a
 * scale spans the tensor, a row, a group of a row's columns, or a block of rows and columns. What a linear has is said
 * by the group of the configuration that its name or class falls under, and every tensor is held against that.
 */
import { z } from "zod";
import { integerIn, quoted, shown } from "../../common/bounds.js";
import { firstIssue } from "../../common/issues.js";
import { PlanishError } from "../../common/errors.js";
import { unpackFields, wordsOf } from "./codes.js";
import { dequantize, groupsOf, type CodeRow } from "./linear.js";
import { gridSchema, type Grid, type Linear } from "./compressed-tensors-grid.js";
import { readPackedFloats } from "./packed-floats.js";
import type { DenseType, QuantizedReading, QuantizedTensor, StoredSource } from "./reading.js";

const groupSchema = z.looseObject({
  targets: z.array(z.string().max(1000)).min(1),
  weights: gridSchema.nullish(),
  input_activations: gridSchema.nullish(),
  output_activations: gridSchema.nullish(),
  format: z.string().nullish(),
});

const schema = z.looseObject({
  format: z.string(),
  quantization_status: z.string().optional(),
  config_groups: z.record(z.string(), groupSchema),
  ignore: z.array(z.string().max(1000)).nullish(),
  kv_cache_scheme: gridSchema.nullish(),
  sparsity_config: z.looseObject({ format: z.string().nullish() }).nullish(),
  transform_config: z.looseObject({ config_groups: z.looseObject({}).nullish() }).nullish(),
});

/** Reads a checkpoint of compressed-tensors. @throws PlanishError naming what is missing, foreign or contradictory. */
export function readCompressedTensors(source: StoredSource): QuantizedReading {
  const parsed = schema.safeParse(source.settings.value);
  if (!parsed.success) {
    const { field, reason } = firstIssue(parsed.error);
    source.refuse(`${field || "the document"} of its settings: ${reason}`);
  }
  const settings = parsed.data;
  refuseUnread(source, settings);
  const linears = quantizedModules(source).map((module) => findLinear(source, settings, module));
  const tensors = linears.map((linear) => readLinear(source, linear));
  return {
    tensors,
    dropped: [...source.tensors.keys()].filter((name) => RUNTIME.test(name)),
    notes: notesOf(settings),
    grid: gridsOf(linears.map(({ grid }) => grid)),
  };
}

/** Scales of what a program quantizes as it runs: they belong to no weight. */
const RUNTIME =
  /\.(?:(?:input|output)_(?:scale|zero_point|global_scale)|[qkv]_(?:scale|zero_point))$/;

/** What would make dequantized weights those of another model. */
function refuseUnread(source: StoredSource, settings: z.infer<typeof schema>): void {
  const { quantization_status: status, sparsity_config: sparsity } = settings;
  const transforms = settings.transform_config?.config_groups;
  if (status !== undefined && status !== "compressed")
    source.refuse(`quantization_status is ${shown(status)}, where only "compressed" is read`);
  if (sparsity?.format && sparsity.format !== "dense")
    source.refuse(`sparsity_config has format ${shown(sparsity.format)}, where only dense is read`);
  if (transforms && Object.keys(transforms).length > 0)
    source.refuse(
      "transform_config rotates activations as the model runs, so that its weights alone are not the original's",
    );
}

/** Modules whose weights are codes. */
function quantizedModules(source: StoredSource): string[] {
  const codes = source
    .modules(".weight")
    .filter((module) => /^(?:I8|F8_)/.test(source.tensors.get(`${module}.weight`)?.type ?? ""));
  const modules = new Set([...source.modules(".weight_packed"), ...codes]);
  const scaled = source.modules(".weight_scale").find((module) => !modules.has(module));
  if (scaled !== undefined)
    source.refuse(
      `tensor ${quoted(`${scaled}.weight_scale`, 120)} has no weight of codes beside it`,
    );
  return [...modules];
}

/** The group of the configuration that a module falls under: by its name, by a pattern, or by its class. */
function findLinear(
  source: StoredSource,
  { format, config_groups: groups, ignore }: z.infer<typeof schema>,
  module: string,
): Linear {
  const where = `module ${quoted(module, 120)}`;
  const ignored = (ignore ?? []).find((target) => matches(source, module, target));
  if (ignored !== undefined)
    source.refuse(`${where} is quantized although "ignore" has ${quoted(ignored)}`);
  const targets = Object.values(groups)
    .flatMap((group) => group.targets.map((target) => ({ target, group, rank: rankOf(target) })))
    .filter(({ target }) => matches(source, module, target))
    .sort((a, b) => a.rank - b.rank || (a.target < b.target ? -1 : 1));
  if (targets.length === 0) source.refuse(`${where} is quantized, and no group has it as a target`);
  const [{ target, group }] = targets;
  const rival = targets.find((t) => t.target === target && t.group !== group);
  if (rival) source.refuse(`${where} falls under two groups by ${quoted(target)}`);
  if (!group.weights) source.refuse(`${where} is quantized, and its group has no "weights"`);
  return { module, format: group.format ?? format, grid: group.weights };
}

/** Names go before patterns, and patterns before classes. */
function rankOf(target: string): number {
  return target.startsWith("re:") ? 1 : target.includes(".") ? 0 : 2;
}

function matches(source: StoredSource, module: string, target: string): boolean {
  if (target === module) return true;
  if (target === "Linear" || target === "Embedding")
    return (
      (target === "Embedding") === /(?:^|\.)(?:embed_tokens|embed_positions|wte)$/.test(module)
    );
  if (!target.startsWith("re:")) return false;
  try {
    return new RegExp(`^(?:${target.slice(3)})`).test(module);
  } catch (cause) {
    throw new PlanishError(
      `${source.path}: ${source.settings.where} has the target ${quoted(target)}, which is no pattern that can be read; name the modules instead`,
      { cause },
    );
  }
}

function readLinear(source: StoredSource, linear: Linear): QuantizedTensor {
  switch (linear.format) {
    case "pack-quantized":
      return readScaled(source, linear, packedCodes(source, linear));
    case "int-quantized":
    case "float-quantized":
    case "naive-quantized":
      return readScaled(source, linear, plainCodes(source, linear));
    case "nvfp4-pack-quantized":
    case "mxfp4-pack-quantized":
    case "mxfp8-quantized":
      return readPackedFloats(source, linear);
    default:
      source.refuse(
        `module ${quoted(linear.module, 120)} has format ${shown(linear.format)} (read are pack-quantized, int-quantized, float-quantized, naive-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized and mxfp8-quantized)`,
      );
  }
}

/** Codes of a matrix and how its zero points are stored. */
interface Codes {
  readonly rows: number;
  readonly columns: number;
  readonly parts: readonly string[];
  /** Opens the codes: called when the weight is read. */
  open(): (row: number, out: CodeRow) => void;
  /** Whether zero points of rows and groups are packed as the codes are. */
  readonly packedZeros: boolean;
}

/** One stored element a code: integers of up to 8 bits, or 8-bit floats. */
export function plainCodes(source: StoredSource, { module, grid }: Linear): Codes {
  const name = `${module}.weight`;
  const float = grid.type === "float";
  if (grid.num_bits > 8 || (float && grid.num_bits !== 8))
    source.refuse(`module ${quoted(module, 120)} has ${grid.num_bits}-bit ${grid.type} codes`);
  const { shape } = source.need(name, [float ? "F8_E4M3" : "I8"], [[-1, -1]]);
  const [rows, columns] = shape;
  return {
    rows,
    columns,
    parts: [name],
    packedZeros: false,
    open: () => {
      const codes = source.floats(name);
      return (row, out) => out.set(codes.subarray(row * columns, (row + 1) * columns));
    },
  };
}

/** Codes of 1 to 8 bits in 32-bit words along rows, offset to be unsigned. */
function packedCodes(source: StoredSource, { module, grid }: Linear): Codes {
  const bits = integerIn(grid.num_bits, `${module}: num_bits`, { min: 1, max: 8 });
  if (grid.type !== "int") source.refuse(`module ${quoted(module, 120)} packs ${grid.type} codes`);
  const [packed, shapeName] = [`${module}.weight_packed`, `${module}.weight_shape`];
  source.need(shapeName, ["I64", "I32"], [[2]]);
  const [rows, columns] = source.floats(shapeName);
  const dense = wordsOf(columns, bits);
  // Versions before 0.15 started a new word where a code did not fit into the rest of one.
  const whole = Math.ceil(columns / Math.floor(32 / bits));
  const { shape } = source.need(
    packed,
    ["I32"],
    [
      [rows, dense],
      [rows, whole],
    ],
  );
  if (dense === whole && columns > Math.floor(32 / bits) && 32 % bits !== 0)
    source.refuse(
      `tensor ${quoted(packed, 120)} is too narrow to tell which of two layouts of ${bits} bits it has`,
    );
  const words = shape[1];
  return {
    rows,
    columns,
    parts: [packed, shapeName],
    packedZeros: true,
    open: () => {
      const stored = source.words(packed);
      const fields = new Uint8Array(columns);
      const unpack = words === dense ? unpackFields : unpackWholeFields;
      return (row, out) => {
        unpack(stored, { start: row * words, stride: 1, count: columns, bits }, fields);
        for (let i = 0; i < columns; i++) out[i] = fields[i] - 2 ** (bits - 1);
      };
    },
  };
}

/** Fields of which each lies in one word: a word's last bits stay empty where another does not fit. */
function unpackWholeFields(
  words: Uint32Array,
  { start, count, bits }: { start: number; count: number; bits: number },
  out: Uint8Array,
): void {
  const each = Math.floor(32 / bits);
  for (let i = 0; i < count; i++)
    out[i] = (words[start + Math.floor(i / each)] >>> ((i % each) * bits)) & (2 ** bits - 1);
}

/** A matrix of codes with the scales and zero points that its grid says. */
function readScaled(source: StoredSource, { module, grid }: Linear, codes: Codes): QuantizedTensor {
  const { rows, columns } = codes;
  const spans = scaleSpans(source, module, grid, rows, columns);
  const scale = `${module}.weight_scale`;
  const { type } = source.need(scale, ["F32", "F16", "BF16"], spans.shapes);
  const zero = zeroPoints(source, module, grid, codes, spans);
  const order = columnOrder(source, module, grid, columns);
  const parts = [...codes.parts, scale, ...(zero?.parts ?? []), ...(order?.parts ?? [])];
  return {
    name: `${module}.weight`,
    shape: [rows, columns],
    type: type as DenseType,
    parts,
    read: () =>
      dequantize({
        rows,
        columns,
        type: type as DenseType,
        codes: codes.open(),
        scales: source.floats(scale),
        zeros: zero?.read(),
        scaleRow: spans.row,
        scaleColumn: order ? order.read() : spans.column,
      }),
  };
}

interface Spans {
  /** Shapes that the scales may have; all of one order. */
  readonly shapes: readonly (readonly number[])[];
  readonly scales: { readonly rows: number; readonly columns: number };
  /** Whether zero points are packed where codes are: those of rows and of groups. */
  readonly packs: boolean;
  readonly row: (row: number) => number;
  readonly column: ArrayLike<number>;
}

/** What part of a matrix each scale spans. */
export function scaleSpans(
  source: StoredSource,
  module: string,
  grid: Grid,
  rows: number,
  columns: number,
): Spans {
  const size = grid.group_size ?? undefined;
  const inferred = size === undefined ? "tensor" : size > 0 ? "group" : "channel";
  const strategy = grid.strategy ?? inferred;
  const where = `module ${quoted(module, 120)}`;
  if (size !== undefined && size > 0 && strategy !== "group" && strategy !== "tensor_group")
    source.refuse(`${where} has group_size ${size} with strategy ${strategy}`);
  switch (strategy) {
    case "tensor":
      return {
        shapes: [[1], [], [1, 1]],
        scales: { rows: 1, columns: 1 },
        packs: false,
        row: () => 0,
        column: new Uint8Array(columns),
      };
    case "channel":
      return {
        shapes: [[rows, 1], [rows]],
        scales: { rows, columns: 1 },
        packs: true,
        row: (row) => row,
        column: new Uint8Array(columns),
      };
    case "group":
    case "tensor_group": {
      if (size === undefined || size <= 0 || columns % size !== 0)
        source.refuse(`${where} of ${columns} columns has groups of ${size ?? "no size"}`);
      const groups = columns / size;
      return {
        shapes: [[rows, groups]],
        scales: { rows, columns: groups },
        packs: strategy === "group",
        row: (row) => row * groups,
        column: groupsOf(columns, size),
      };
    }
    case "block": {
      const [height, width] = blockOf(source, module, grid);
      const [down, across] = [Math.ceil(rows / height), Math.ceil(columns / width)];
      return {
        shapes: [[down, across]],
        scales: { rows: down, columns: across },
        packs: false,
        row: (row) => Math.floor(row / height) * across,
        column: groupsOf(columns, width),
      };
    }
    default:
      source.refuse(`${where} has strategy ${strategy}, which weights cannot have`);
  }
}

function blockOf(source: StoredSource, module: string, grid: Grid): readonly [number, number] {
  const given = grid.block_structure;
  const sizes = typeof given === "string" ? given.split("x").map(Number) : (given ?? []);
  if (sizes.length !== 2 || !sizes.every((n) => Number.isSafeInteger(n) && n > 0))
    source.refuse(`module ${quoted(module, 120)} has block_structure ${shown(given ?? null)}`);
  return [sizes[0], sizes[1]];
}

/** Zero points: packed down the rows where codes are packed, else one stored integer each. */
function zeroPoints(
  source: StoredSource,
  module: string,
  grid: Grid,
  codes: Codes,
  spans: Spans,
): { parts: readonly string[]; read(): ArrayLike<number> } | undefined {
  const name = `${module}.weight_zero_point`;
  if (!source.has(name)) {
    if (grid.symmetric) return undefined;
    source.refuse(`tensor ${quoted(name, 120)} is missing, and its grid is not symmetric`);
  }
  if (grid.type === "float") {
    source.need(name, ["F8_E4M3", "I8"], spans.shapes);
    return { parts: [name], read: () => source.floats(name) };
  }
  const { rows, columns } = spans.scales;
  const packed = codes.packedZeros && !grid.symmetric && spans.packs;
  if (!packed) {
    source.need(name, ["I8"], spans.shapes);
    return { parts: [name], read: () => source.floats(name) };
  }
  const bits = grid.num_bits;
  source.need(name, ["I32"], [[wordsOf(rows, bits), columns]]);
  return {
    parts: [name],
    read: () => {
      const words = source.words(name);
      const zeros = new Float32Array(rows * columns);
      const fields = new Uint8Array(rows);
      for (let column = 0; column < columns; column++) {
        unpackFields(words, { start: column, stride: columns, count: rows, bits }, fields);
        for (let row = 0; row < rows; row++)
          zeros[row * columns + column] = fields[row] - 2 ** (bits - 1);
      }
      return zeros;
    },
  };
}

/** Which group each column belongs to, where they were ordered by activations. */
function columnOrder(
  source: StoredSource,
  module: string,
  grid: Grid,
  columns: number,
): { parts: readonly string[]; read(): ArrayLike<number> } | undefined {
  const name = `${module}.weight_g_idx`;
  const ordered = grid.actorder === "group" || grid.actorder === "dynamic";
  if (!source.has(name)) {
    if (!ordered) return undefined;
    source.refuse(
      `tensor ${quoted(name, 120)} is missing, and actorder is ${shown(grid.actorder)}`,
    );
  }
  if (!ordered) source.refuse(`tensor ${quoted(name, 120)} is there, and actorder is not "group"`);
  source.need(name, ["I32", "I64"], [[columns]]);
  const size = grid.group_size ?? columns;
  return {
    parts: [name],
    read: () => {
      const groups = source.floats(name);
      const members = new Int32Array(Math.ceil(columns / size));
      for (const group of groups) members[group]++;
      if (!members.every((n) => n === size))
        source.refuse(`tensor ${quoted(name, 120)} does not give each group ${size} columns`);
      return groups;
    },
  };
}

function notesOf(settings: z.infer<typeof schema>): string[] {
  const inputs = Object.values(settings.config_groups).flatMap(({ input_activations: grid }) =>
    grid ? [`inputs at ${grid.num_bits} bits`] : [],
  );
  const cache = settings.kv_cache_scheme
    ? [`cache at ${settings.kv_cache_scheme.num_bits} bits`]
    : [];
  return [...new Set([...inputs, ...cache])];
}

/** The grids of all linears, in a few words. */
function gridsOf(grids: readonly Grid[]): string {
  return [...new Set(grids.map(describeGrid))].sort().join("; ");
}

function describeGrid(grid: Grid): string {
  const { num_bits: bits, type, group_size: size, symmetric, strategy } = grid;
  const spans =
    size && size > 0
      ? `groups of ${size}`
      : strategy === "block"
        ? "blocks"
        : strategy === "channel" || size === -1
          ? "rows"
          : "tensors";
  return `${bits} bits (${type}${symmetric ? "" : ", with zero points"}) in ${spans}`;
}
