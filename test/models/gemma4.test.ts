/** Gemma 4: settings that the fixtures leave alone, keys and values of other layers, and columns in and out of rows. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { NoKernel, fuse } from "../../src/backend/contract/fuse.js";
import { attentionsOf, rotariesOf, type BlockProgram } from "../../src/backend/contract/program.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { blockPrograms, parseModelConfig } from "../../src/models/architectures/index.js";
import { BlockBuilder } from "../../src/models/builder.js";
import { parseSource } from "../../src/models/source.js";
import { spliceColumns, takeColumns } from "../../src/tensor/ops/index.js";
import { Graph, parameter } from "../../src/tensor/tensor.js";

type Json = Record<string, unknown>;

const folder = (name: string) => join(packageRoot, "test/fixtures/architectures", name);
const configOf = (name: string): Json =>
  JSON.parse(readFileSync(join(folder(name), "config.json"), "utf8")) as Json;
const parse = (change: Json, name = "gemma4") =>
  parseModelConfig({ ...configOf(name), ...change }).config;

describe("layers", () => {
  it("read keys of the last layer of their kind that has some", () => {
    const from = (change: Json) => parse(change).layers?.map(({ keysFrom }) => keysFrom);
    const none = undefined;
    expect(from({})).toEqual([none, none, none, 2, 1]);
    expect(from({ num_kv_shared_layers: 0 })).toEqual(Array(5).fill(none));
    expect(from({ num_kv_shared_layers: 3 })).toEqual([none, none, 0, 0, 1]);
    expect(() => parse({ num_kv_shared_layers: 4 })).toThrow(
      /num_kv_shared_layers 4 leaves no full_attention layer with keys of its own/,
    );
  });

  it("carry what later blocks read, and nothing where none does", () => {
    // 32 hidden, 5 layers' embeddings of 8, keys and values of a windowed layer (2·8 each) and of a full one (2·16 each).
    expect(parse({}).stateWidth).toBe(32 + 40 + 2 * 16 + 2 * 32);
    expect(parse({ num_kv_shared_layers: 0 }).stateWidth).toBe(32 + 40);
    // Values that are keys are carried once.
    expect(parse({ attention_k_eq_v: true }).stateWidth).toBe(32 + 40 + 2 * 16 + 32);
    expect(parse({}, "gemma4-moe").stateWidth).toBeUndefined();
  });

  it("have heads in either spelling", () => {
    const heads = (change: Json) =>
      blockPrograms(parse(change, "gemma4-moe")).flatMap((program) =>
        attentionsOf(program).map(({ kvHeads, headDim }) => [kvHeads, headDim]),
      );
    const older = { per_layer_config: null, global_head_dim: 16, num_global_key_value_heads: 1 };
    const expected = [...Array<number[]>(2).fill([2, 8]), [1, 16]];
    expect(heads({})).toEqual(expected);
    expect(heads(older)).toEqual(expected);
    // Their number is another one only where keys are values.
    expect(heads({ ...older, attention_k_eq_v: false })[2]).toEqual([2, 16]);
    expect(heads({ per_layer_config: { 0: { head_dim: 12 } } })[0]).toEqual([2, 12]);
  });

  it("turn a share of their pairs at a whole head's frequencies", () => {
    const rotary = (full: Json) => {
      const rope_parameters = { sliding_attention: { rope_theta: 50 }, full_attention: full };
      return rotariesOf(blockPrograms(parse({ rope_parameters }))).find(({ dims }) => dims === 16);
    };
    const proportional = { rope_type: "proportional", rope_theta: 256 };
    expect(rotary({ ...proportional, partial_rotary_factor: 0.25 })).toMatchObject({
      ...{ turning: 4, theta: 4, scaling: { type: "default" } },
    });
    expect(rotary({ ...proportional, factor: 8 })).toMatchObject({
      ...{ theta: 256, scaling: { type: "linear", factor: 8 } },
    });
    expect(rotary(proportional)?.turning).toBeUndefined();
    expect(rotary({ rope_type: "default", rope_theta: 3 })?.theta).toBe(3);
  });

  it("may have keys' and values' tensors that nobody reads", () => {
    using checkpoint = openCheckpoint(folder("gemma4"));
    const key = checkpoint.tensors.get("model.layers.0.self_attn.k_proj.weight");
    const more = (name: string) => ({
      ...checkpoint,
      tensors: new Map([...checkpoint.tensors, ...(key ? [[name, key] as const] : [])]),
    });
    expect(parseSource(more("model.layers.3.self_attn.k_proj.weight")).config.numLayers).toBe(5);
    expect(() => parseSource(more("model.layers.2.self_attn.r_proj.weight"))).toThrow(
      /has no place in it/,
    );
  });

  it.each<[RegExp, Json]>([
    [/use_bidirectional_attention is "all"/, { use_bidirectional_attention: "all" }],
    [/vocab_size_per_layer_input 96 is below vocab_size 104/, { vocab_size_per_layer_input: 96 }],
    [/enable_moe_block needs num_experts/, { enable_moe_block: true }],
    [/per_layer_config has "9"/, { per_layer_config: { 9: { head_dim: 16 } } }],
    [/per_layer_config.1 has "rope_theta"/, { per_layer_config: { 1: { rope_theta: 5 } } }],
    [/layer 1 has 3 KV heads/, { per_layer_config: { 1: { num_key_value_heads: 3 } } }],
    [/nothing for sliding_attention/, { rope_parameters: { full_attention: { rope_theta: 5 } } }],
    [
      /full_attention has "mscale", which goes with no rope type "proportional"/,
      {
        rope_parameters: {
          sliding_attention: {},
          full_attention: { rope_type: "proportional", mscale: 1 },
        },
      },
    ],
    [/layer_types must be/, { layer_types: ["full_attention"] }],
    [/"router_factor"/, { router_factor: 2 }],
  ])("refuse %s", (message, change) => {
    expect(() => parse(change)).toThrow(message);
  });
});

it("keys that are read after the engine prepared them where they lie have no kernel", () => {
  const block = (late: boolean): BlockProgram => {
    const b = new BlockBuilder();
    const linear = (name: string) => ({ name, path: name, out: 8 });
    const [q, k, v] = b.site(b.input, "attn_in", ["q", "k", "v"].map(linear), 8);
    const place = { x: k, at: 0, width: 8 };
    const early = late ? b.input : b.splice(b.input, [place], 8);
    const mixed = b.attention({ q, k, v }, { heads: 1, kvHeads: 1, headDim: 8, scale: 1 });
    const [out] = b.site(mixed, "attn_out", [linear("o")], 8);
    return b.finish(b.add(late ? b.splice(early, [place], 8) : early, out));
  };
  expect(() => fuse(block(true))).toThrow(NoKernel);
  expect(fuse(block(false)).map(({ op }) => op)).toContain("splice");
});

describe("columns of rows", () => {
  const backend = createReferenceBackend({ realType: "f64" });
  /** Three neighbouring stretches of columns, some of them perhaps of the whole row. */
  const widths = fc.tuple(
    fc.integer({ min: 0, max: 6 }),
    fc.integer({ min: 1, max: 6 }),
    fc.integer({ min: 0, max: 6 }),
  );

  it("come out and go in as loops say, and gradients go the same way back", () => {
    fc.assert(
      fc.property(widths, fc.integer({ min: 1, max: 3 }), ([before, width, behind], rows) => {
        const cols = before + width + behind;
        const numbers = (count: number, seed: number) =>
          Float64Array.from({ length: count }, (_, i) => Math.sin(seed + 7 * i));
        const x = parameter(backend, [rows, cols], numbers(rows * cols, 1));
        const part = parameter(backend, [rows, width], numbers(rows * width, 2));
        using g = new Graph(backend, { train: true });
        const spliced = spliceColumns(g, x, [{ x: part, at: before }]);
        const taken = takeColumns(g, x, before, width);
        const at = (values: ArrayLike<number>, of: number, r: number, c: number) =>
          values[r * of + c];
        const inside = (c: number) => c >= before && c < before + width;
        const [whole, some, xs, ps] = [spliced, taken, x, part].map((t) => g.read(t));
        for (let r = 0; r < rows; r++)
          for (let c = 0; c < cols; c++) {
            const expected = inside(c) ? at(ps, width, r, c - before) : at(xs, cols, r, c);
            expect(at(whole, cols, r, c)).toBe(expected);
            if (inside(c)) expect(at(some, width, r, c - before)).toBe(at(xs, cols, r, c));
          }
        // Both are linear: what comes back is the columns that went there.
        const cotangent = numbers(rows * cols, 3);
        g.backward(spliced, cotangent);
        const [gradX, gradPart] = [x, part].map(({ grad }) =>
          grad ? (backend.read(grad) as Float64Array) : new Float64Array(),
        );
        for (let r = 0; r < rows; r++)
          for (let c = 0; c < cols; c++) {
            const there = at(cotangent, cols, r, c);
            expect(at(gradX, cols, r, c)).toBe(inside(c) ? 0 : there);
            if (inside(c)) expect(at(gradPart, width, r, c - before)).toBe(there);
          }
        using other = new Graph(backend, { train: true });
        const y = parameter(backend, [rows, cols], numbers(rows * cols, 4));
        other.backward(takeColumns(other, y, before, width), numbers(rows * width, 5));
        const gradY = y.grad ? (backend.read(y.grad) as Float64Array) : new Float64Array();
        const given = numbers(rows * width, 5);
        for (let r = 0; r < rows; r++)
          for (let c = 0; c < cols; c++)
            expect(at(gradY, cols, r, c)).toBe(inside(c) ? at(given, width, r, c - before) : 0);
      }),
      { numRuns: 40 },
    );
  });
});
