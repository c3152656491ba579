/**
 * Falcon-H1 (TII, 2025): Mamba-2 and attention side by side in every layer, both of one norm, with multipliers of what most
 * linears read or give.
 */
import { finiteIn, LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder } from "../builder.js";
import type { Architecture, ConfigReader, ModelConfig } from "../config.js";
import type { BlockProgram, LinearPlace } from "../../backend/contract/program.js";
import { mapValues } from "../../common/records.js";
import { attentionPart, blockNorms, LLAMA_NAMES, LLAMA_PATHS, mlpPart } from "./common.js";
import { mambaConfig, mambaMixer } from "./mamba.js";
import { factor, llamaShape } from "./shape.js";

const MLP = {
  gate: "feed_forward.gate_proj",
  up: "feed_forward.up_proj",
  down: "feed_forward.down_proj",
};
const INPUT = LLAMA_PATHS.norms.input;

/** A list of so many factors; ones where it is absent. */
function factors(c: ConfigReader, key: string, count: number): readonly number[] {
  const value = c.optional(key) ?? undefined;
  if (value === undefined) return Array.from({ length: count }, () => 1);
  if (!Array.isArray(value) || value.length !== count)
    throw new PlanishError(`config.json: ${key} must be ${count} factors, found ${shown(value)}`);
  return value.map((each: unknown, i) => finiteIn(each, `config.json: ${key}[${i}]`, { above: 0 }));
}

function lower(config: ModelConfig, layer: number): BlockProgram {
  const b = new BlockBuilder();
  const { recurrent, hiddenSize, norm, multipliers } = config;
  if (recurrent?.kind !== "mamba") throw new PlanishError("falcon_h1 has a mixer in every layer");
  // Both read the same norm, each times a number of its own.
  const read = (name: string, path: string, times = 1) =>
    b.norm(
      b.input,
      { name, path, factor: times, stored: { parts: [{ path: INPUT, rows: hiddenSize }] } },
      hiddenSize,
      norm,
    );
  const [forAttention, forMixer] = [
    read("input", INPUT, multipliers?.attention_in),
    read("mixer_input", `${INPUT}_mixer`, multipliers?.mixer_in),
  ];
  const mixed = mambaMixer(b, config, recurrent, forMixer);
  const attended = attentionPart(b, config, layer, forAttention, LLAMA_PATHS.attention);
  const y = b.add(b.add(b.input, mixed), attended);
  const middle = blockNorms(b, config)(y, "post", "pre_ff_layernorm");
  const program = b.finish(b.add(y, mlpPart(b, config, middle, MLP)));
  const multiplied = (place: LinearPlace, name: string): LinearPlace => {
    const times = multipliers?.[name];
    return times === undefined ? place : { ...place, factor: (place.factor ?? 1) * times };
  };
  return { ...program, linears: mapValues(program.linears, multiplied) };
}

export const falconH1: Architecture = {
  name: "falcon_h1",
  modelTypes: ["falcon_h1"],
  parse: (c) => {
    const hidden = c.integer("hidden_size", LIMITS.width);
    const width = c.optional("mamba_d_ssm");
    const inner =
      width === null
        ? c.integer("mamba_expand", LIMITS.width, 2) * hidden
        : c.integer("mamba_d_ssm", LIMITS.width, 1024);
    for (const key of ["mamba_expand", "num_logits_to_keep", "mamba_use_mlp"]) c.optional(key);
    const [gate, down] = factors(c, "mlp_multipliers", 2);
    const [z, x, keys, queries, step] = factors(c, "ssm_multipliers", 5);
    const normed = c.boolean("mamba_rms_norm", false);
    const before = c.boolean("mamba_norm_before_gate", true);
    const biases = [
      ...(c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : []),
      ...(c.boolean("mlp_bias", false) ? ["gate", "up", "down"] : []),
      ...(c.boolean("mamba_proj_bias", false) ? ["z", "xbc", "step"] : []),
      ...(c.boolean("projectors_bias", false) ? ["out"] : []),
    ];
    return {
      ...llamaShape(c, "falcon_h1", {
        ...{ biases, kvHeads: 8, maxPositions: 8192, epsilon: 1e-5, layers: [] },
        embeddingScale: factor(c, "embedding_multiplier", 1),
        logitScale: factor(c, "lm_head_multiplier", 1),
      }),
      layers: undefined,
      recurrent: {
        ...mambaConfig(c, inner, { heads: 128, groups: 1, state: 256 }),
        norm: normed ? (before ? "before" : "after") : undefined,
        factors: { z, x, b: keys, c: queries, step },
      },
      multipliers: {
        attention_in: factor(c, "attention_in_multiplier", 1),
        mixer_in: factor(c, "ssm_in_multiplier", 1),
        k: factor(c, "key_multiplier", 1),
        o: factor(c, "attention_out_multiplier", 1),
        out: factor(c, "ssm_out_multiplier", 1),
        ...{ gate, down },
      },
    };
  },
  lower,
  names: { ...LLAMA_NAMES, finalNorm: "model.final_layernorm.weight" },
};
