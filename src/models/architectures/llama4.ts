/**
 * Llama 4 (text): attention in chunks of positions, layers without positions whose queries grow, norms of queries and keys
 * without gains, experts that read their input times a sigmoid score beside a shared expert (Meta, 2025; Hugging Face's
 * Llama4TextModel).
 */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Architecture, ConfigReader, LayerConfig, ModelConfig } from "../config.js";
import type { BlockProgram, QueryGrowth, StoredRows } from "../../backend/contract/program.js";
import { LLAMA_NAMES, LLAMA_PATHS } from "./common.js";
import { expertCounts, expertsBlock, type GatedPaths } from "./experts.js";
import { llamaShape } from "./shape.js";
import { ropeLayers } from "./smollm3.js";

const KINDS = ["chunked_attention", "full_attention"];

/** Of each layer whether it sees its own chunk only. */
function chunkedLayers(c: ConfigReader, rope: readonly boolean[], chunk: unknown): boolean[] {
  const types = c.optional("layer_types") ?? undefined;
  if (types === undefined) return rope.map((turns) => turns && chunk !== undefined);
  if (
    !Array.isArray(types) ||
    types.length !== rope.length ||
    types.some((type) => !KINDS.includes(type as string))
  )
    throw new PlanishError(
      `config.json: layer_types must be ${KINDS.map((kind) => `"${kind}"`).join(" or ")} for each of ${rope.length} layers, found ${shown(types)}`,
    );
  if (chunk === undefined && types.includes(KINDS[0]))
    throw new PlanishError(
      "config.json: layer_types has chunked_attention, and attention_chunk_size is not given",
    );
  return types.map((type) => type === KINDS[0]);
}

/** Of each layer whether its MLP consists of experts. */
function expertLayers(c: ConfigReader, layers: number): readonly boolean[] {
  const step = c.integer("interleave_moe_layer_step", LIMITS.layers, 1);
  const given = c.optional("moe_layers") ?? undefined;
  if (given === undefined) return Array.from({ length: layers }, (_, i) => (i + 1) % step === 0);
  if (
    !Array.isArray(given) ||
    given.some((layer) => !Number.isInteger(layer) || layer < 0 || layer >= layers)
  )
    throw new PlanishError(
      `config.json: moe_layers must list layers from 0 to ${layers - 1}, found ${shown(given)}`,
    );
  return Array.from({ length: layers }, (_, layer) => given.includes(layer));
}

function queryGrowth(c: ConfigReader): QueryGrowth | undefined {
  const growth = {
    beta: c.number("attn_scale", 0.1, { min: 0 }),
    length: c.integer("floor_scale", LIMITS.positions, 8192),
    first: 1,
  };
  // Published files have the switch as a number too.
  const tuned = c.optional("attn_temperature_tuning") ?? true;
  if (typeof tuned !== "boolean" && typeof tuned !== "number")
    throw new PlanishError(
      `config.json: attn_temperature_tuning must be true or false, found ${shown(tuned)}`,
    );
  return tuned ? growth : undefined;
}

function parse(c: ConfigReader): ModelConfig {
  const rope = ropeLayers(c);
  const layers = rope.length;
  const given = c.optional("attention_chunk_size");
  const chunk =
    given === null ? undefined : c.integer("attention_chunk_size", LIMITS.positions, 8192);
  const chunked = chunkedLayers(c, rope, chunk);
  const growth = queryGrowth(c);
  const width = c.integer("intermediate_size", LIMITS.width, 8192);
  const experts = expertLayers(c, layers);
  const counts = expertCounts(c, ["num_local_experts", "num_experts"], { experts: 16, chosen: 1 });
  const config = llamaShape(c, "llama4", {
    layers: rope.map((turns, i): LayerConfig => ({
      chunk: chunked[i] ? chunk : undefined,
      ...(!turns && { positions: null, growth }),
    })),
    qkNorm: c.boolean("use_qk_norm", true),
    interleaved: true,
    headDim: 128,
    kvHeads: 8,
    epsilon: 1e-5,
    maxPositions: 131_072,
    rope: { theta: 500_000 },
    biases: c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : [],
  });
  const { positions } = config;
  // The norm comes after the turn in the original, and undoes what multiplies it.
  if (config.qkNorm && positions.kind === "rope" && "attentionFactor" in positions.scaling)
    throw new PlanishError(
      `config.json: rope type ${positions.scaling.type} is not supported with use_qk_norm in llama4; accepted: default, linear, llama3, dynamic`,
    );
  return {
    ...config,
    intermediateSize: c.integer("intermediate_size_mlp", LIMITS.width, 16_384),
    experts: {
      ...counts,
      width,
      scores: "sigmoid",
      normalize: false,
      factor: 1,
      weighInputs: true,
      sharedWidth: width,
      dense: experts.map((has) => !has),
    },
  };
}

/** Of an expert's gate and up, which follow one another in one matrix, or of its down; all are stored as [in, out]. */
function stored(config: ModelConfig, expert: number, part: keyof GatedPaths): StoredRows {
  const { count = 0, width = 0 } = config.experts ?? {};
  const name = `feed_forward.experts.${part === "down" ? "down" : "gate_up"}_proj`;
  const rows = part === "down" ? config.hiddenSize : 2 * width;
  const stack = { index: expert, count, weight: name, bias: `${name}_bias` };
  const parts = [{ path: name, rows, transposed: true, stack }];
  if (part === "down") return { parts };
  const first = part === "gate" ? 0 : width;
  return { parts, order: Array.from({ length: width }, (_, i) => first + i) };
}

function gatedPaths(path: string): GatedPaths {
  return { gate: `${path}.gate_proj`, up: `${path}.up_proj`, down: `${path}.down_proj` };
}

function lower(config: ModelConfig, layer: number): BlockProgram {
  const experts = {
    router: "feed_forward.router.weight",
    expert: (e: number) => gatedPaths(`feed_forward.experts.${e}`),
    stored: (e: number, part: keyof GatedPaths) => stored(config, e, part),
    shared: gatedPaths("feed_forward.shared_expert"),
  };
  const turns = config.layers?.[layer]?.positions !== null;
  return expertsBlock(
    config,
    layer,
    { ...LLAMA_PATHS, mlp: gatedPaths("feed_forward"), experts },
    { unitNorms: config.qkNorm && turns },
  );
}

export const llama4: Architecture = {
  name: "llama4",
  modelTypes: ["llama4_text"],
  parse,
  lower,
  names: LLAMA_NAMES,
};
