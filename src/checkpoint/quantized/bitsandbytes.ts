/**
 * Weights of bitsandbytes: `quant_method` "bitsandbytes". In 4 bits (nf4, fp4) a weight is codes into a table of 16
 * values, two a byte with the first in the high half, times the largest magnitude of each run of `blocksize` values;
 * those magnitudes may be codes of 8 bits themselves ("double quantization"). In 8 bits a row's codes are times
 * `SCB/127`. What the table is and what the result's type is, the weight's `quant_state` says.
 */
import { z } from "zod";
import { parseJson, quoted } from "../../common/bounds.js";
import { firstIssue } from "../../common/issues.js";
import { rounderTo } from "./rounding.js";
import type { DenseType, QuantizedReading, QuantizedTensor, StoredSource } from "./reading.js";

const size = z.number().int().positive();
const stateSchema = z.looseObject({
  quant_type: z.enum(["nf4", "fp4"]),
  blocksize: size,
  dtype: z.enum(["bfloat16", "float16", "float32"]),
  shape: z.tuple([size, size]),
  nested_blocksize: size.optional(),
  nested_dtype: z.literal("float32").optional(),
  nested_offset: z.number().optional(),
});
type State = z.infer<typeof stateSchema>;

const TYPES: Readonly<Record<State["dtype"], DenseType>> = {
  bfloat16: "BF16",
  float16: "F16",
  float32: "F32",
};

/** The reciprocal of 127 as the package has it, in float32. */
const EIGHT_BIT_FACTOR = Math.fround(7.874015718698502e-3);

/** Reads a bitsandbytes checkpoint. @throws PlanishError naming what is missing, foreign or contradictory. */
export function readBitsAndBytes(source: StoredSource): QuantizedReading {
  const states = [...source.tensors.keys()].flatMap((name) => {
    const match = /^(.*)\.quant_state\.bitsandbytes__(nf4|fp4)$/.exec(name);
    return match ? [{ state: name, weight: match[1], kind: match[2] }] : [];
  });
  const rows = source.modules(".SCB");
  const four = states.map((entry) => readFourBits(source, entry));
  const eight = rows.map((module) => readEightBits(source, module));
  const formats = rows.map((module) => `${module}.weight_format`).filter((n) => source.has(n));
  // Zero is the only layout that the package still writes: rows.
  for (const name of formats) {
    source.need(name, ["U8"], [[], [1]]);
    if (source.bytes(name)[0] !== 0)
      source.refuse(`tensor ${quoted(name, 120)} names a layout other than rows`);
  }
  const kinds = [...new Set(states.map(({ kind }) => `4 bits (${kind}) in runs`))];
  return {
    tensors: [...four, ...eight],
    dropped: formats,
    notes: [],
    grid: [...kinds, ...(rows.length > 0 ? ["8 bits in rows"] : [])].join("; "),
  };
}

function readEightBits(source: StoredSource, module: string): QuantizedTensor {
  const [name, scale] = [`${module}.weight`, `${module}.SCB`];
  const [rows, columns] = source.need(name, ["I8"], [[-1, -1]]).shape;
  source.need(scale, ["F32"], [[rows]]);
  return {
    name,
    shape: [rows, columns],
    type: "F32",
    parts: [name, scale],
    read: () => {
      const values = source.floats(name);
      const scales = source.floats(scale);
      for (let i = 0; i < values.length; i++) {
        // Two products in float32, as the package takes them.
        const scaled = Math.fround(values[i] * scales[Math.floor(i / columns)]);
        values[i] = Math.fround(scaled * EIGHT_BIT_FACTOR);
      }
      return values;
    },
  };
}

function readFourBits(
  source: StoredSource,
  { state: stateName, weight, kind }: { state: string; weight: string; kind: string },
): QuantizedTensor {
  const state = readState(source, stateName);
  if (state.quant_type !== kind)
    source.refuse(`tensor ${quoted(stateName, 120)} says that its weight is ${state.quant_type}`);
  const [rows, columns] = state.shape;
  const count = rows * columns;
  const bytes = Math.ceil(count / 2);
  const blocks = Math.ceil(count / state.blocksize);
  const [absmax, map] = [`${weight}.absmax`, `${weight}.quant_map`];
  source.need(
    weight,
    ["U8"],
    [
      [bytes, 1],
      [1, bytes],
    ],
  );
  source.need(map, ["F32"], [[16]]);
  const nested = state.nested_blocksize !== undefined;
  source.need(absmax, [nested ? "U8" : "F32"], [[blocks]]);
  const nestedParts = nested ? nestedNames(source, weight, state, blocks) : [];
  const type = TYPES[state.dtype];
  return {
    name: weight,
    shape: [rows, columns],
    type,
    parts: [weight, absmax, map, stateName, ...nestedParts],
    read: () => {
      const codes = source.bytes(weight);
      const table = source.floats(map);
      const largest = nested ? nestedMaxima(source, weight, state) : source.floats(absmax);
      const round = rounderTo(type);
      const out = new Float32Array(count);
      for (let i = 0; i < count; i++) {
        const code = i & 1 ? codes[i >> 1] & 15 : codes[i >> 1] >> 4;
        out[i] = round(Math.fround(table[code] * largest[Math.floor(i / state.blocksize)]));
      }
      return out;
    },
  };
}

function readState(source: StoredSource, name: string): State {
  source.need(name, ["U8"], [[-1]]);
  const text = new TextDecoder().decode(source.bytes(name));
  const parsed = stateSchema.safeParse(
    parseJson(text, `${source.path}: tensor ${quoted(name, 120)}`),
  );
  if (parsed.success) return parsed.data;
  const { field, reason } = firstIssue(parsed.error);
  return source.refuse(`tensor ${quoted(name, 120)}: ${field || "the document"}: ${reason}`);
}

function nestedNames(
  source: StoredSource,
  weight: string,
  state: State,
  blocks: number,
): readonly string[] {
  const [absmax, map] = [`${weight}.nested_absmax`, `${weight}.nested_quant_map`];
  if (state.nested_blocksize === undefined || state.nested_offset === undefined)
    source.refuse(`tensor ${quoted(weight, 120)} has magnitudes in codes without their offset`);
  source.need(absmax, ["F32"], [[Math.ceil(blocks / state.nested_blocksize)]]);
  source.need(map, ["F32"], [[256]]);
  return [absmax, map];
}

/** Magnitudes that are codes: a table's value times a magnitude of theirs, plus their common offset. */
function nestedMaxima(source: StoredSource, weight: string, state: State): Float32Array {
  const codes = source.bytes(`${weight}.absmax`);
  const table = source.floats(`${weight}.nested_quant_map`);
  const outer = source.floats(`${weight}.nested_absmax`);
  const offset = Math.fround(state.nested_offset ?? 0);
  const run = state.nested_blocksize ?? codes.length;
  return Float32Array.from(codes, (code, i) =>
    Math.fround(Math.fround(table[code] * outer[Math.floor(i / run)]) + offset),
  );
}
