/** config.json of strangers: what is read, what is passed over, and what is refused because nobody reads it. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PlanishError } from "../../src/common/errors.js";
import { packageRoot } from "../../src/common/package.js";
import { parseModelConfig } from "../../src/models/architectures/index.js";

type Json = Record<string, unknown>;

const LLAMA: Json = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 100,
  max_position_embeddings: 128,
  hidden_act: "silu",
  rms_norm_eps: 1e-5,
  rope_theta: 500,
};
const with_ = (change: Json): Json => ({ ...LLAMA, ...change });
const parse = (change: Json) => parseModelConfig(with_(change)).config;

/** The error's text; fails when there is none, or it is no single short line. */
function refusal(config: Json): string {
  try {
    parseModelConfig(config);
  } catch (error) {
    expect(error).toBeInstanceOf(PlanishError);
    const { message } = error as PlanishError;
    expect(message).not.toContain("\n");
    expect(message.length).toBeLessThan(400);
    return message;
  }
  throw new Error(`accepted: ${JSON.stringify(config).slice(0, 500)}`);
}

/** Configurations of tiny random models as transformers 5.24 writes them, and in the hub's older spelling. */
const configs = JSON.parse(
  readFileSync(join(packageRoot, "test/fixtures/models/configs.json"), "utf8"),
) as Record<string, Json>;
/** Those whose logits are checked too (architectures.test.ts). */
const READ = readdirSync(join(packageRoot, "test/fixtures/architectures"));

describe("configurations of 44 families", () => {
  it("are read in both spellings alike where the architecture is supported", () => {
    for (const name of READ) {
      const newer = parseModelConfig(configs[`${name}/config.json`]).config;
      expect(parseModelConfig(configs[`${name}/config-hub.json`]).config).toEqual(newer);
    }
  });

  it.each(Object.keys(configs).filter((name) => !READ.includes(name.split("/")[0])))(
    "%s is refused",
    (name) => {
      const { model_type } = configs[name];
      expect(refusal(configs[name])).toContain(
        `architecture "${model_type as string}" is not supported`,
      );
    },
  );
});

describe("keys that change the arithmetic", () => {
  it.each<[string, Json]>([
    ["partial_rotary_factor", { partial_rotary_factor: 0.5 }],
    ["rotary_pct", { rotary_pct: 0.25 }],
    ["layer_types", { layer_types: ["full_attention", "sliding_attention"] }],
    ["layer_types", { layer_types: ["full_attention"] }],
    ["sliding_window", { sliding_window: 8 }],
    ["attn_logit_softcapping", { attn_logit_softcapping: 50 }],
    ["final_logit_softcapping", { final_logit_softcapping: 30 }],
    ["query_pre_attn_scalar", { query_pre_attn_scalar: 144 }],
    ["logit_scale", { logit_scale: 0.0625 }],
    ["logits_scaling", { logits_scaling: 8 }],
    ["residual_multiplier", { residual_multiplier: 0.22 }],
    ["embedding_multiplier", { embedding_multiplier: 12 }],
    ["attention_multiplier", { attention_multiplier: 0.015625 }],
    ["use_qk_norm", { use_qk_norm: true }],
    ["clip_qkv", { clip_qkv: 8 }],
    ["alibi", { alibi: true }],
    ["parallel_residual", { use_parallel_residual: true }],
    ["parallel_attn", { parallel_attn: true }],
    ["no_rope_layers", { no_rope_layers: [1, 0] }],
    ["num_experts", { num_experts: 8 }],
    ["num_local_experts", { num_local_experts: 8 }],
    ["layer_norm_eps", { layer_norm_eps: 1e-3 }],
    ["is_causal", { is_causal: false }],
    ["hidden_activation", { hidden_activation: "gelu" }],
    ["mamba_d_state", { mamba_d_state: 16 }],
    ["betaFactor", { betaFactor: 0.1 }],
    ["attnScale", { attnScale: "half" }],
    ["lora", { lora: { r: 8 } }],
    ["activation", { hidden_act: "gelu_fast" }],
    ["quantization_config", { quantization_config: { quant_method: "gptq", bits: 4 } }],
    ["gptq, 4 bits", { quantization_config: { quant_method: "gptq", bits: 4 } }],
    ["mlx, 4 bits", { quantization: { group_size: 64, bits: 4 } }],
    [
      "rope_scaling",
      { rope_parameters: { rope_theta: 500 }, rope_scaling: { type: "linear", factor: 2 } },
    ],
    ["disagree", { rope_parameters: { rope_theta: 700 } }],
    ["without a type", { rope_scaling: { factor: 2 } }],
    ["mrope", { rope_scaling: { type: "mrope", factor: 2 } }],
    ["mscale", { rope_scaling: { type: "linear", factor: 2, mscale: 0.7 } }],
    ["full_attention", { rope_parameters: { full_attention: { rope_theta: 500 } } }],
    [
      "partial_rotary_factor",
      { rope_parameters: { rope_type: "default", partial_rotary_factor: 0.5 } },
    ],
    [
      "original_max_position_embeddings",
      { rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 } },
    ],
  ])("refuses %s", (named, change) => {
    expect(refusal(with_(change))).toContain(named);
  });

  it("passes them where they change nothing", () => {
    const plain = parse({});
    for (const change of [
      {
        partial_rotary_factor: 1,
        rotary_dim: 16,
        query_pre_attn_scalar: 16,
        attention_multiplier: 0.25,
      },
      { layer_types: ["full_attention", "full_attention"], sliding_window: null, num_experts: 0 },
      { attn_logit_softcapping: null, clip_qkv: null, alibi: false, no_rope_layers: [1, 1] },
      { layer_norm_eps: 1e-5, hidden_activation: "swish", is_causal: true, rope_scaling: null },
      {
        rope_parameters: { rope_theta: 500, rope_type: "default" },
        rope_scaling: { type: "default" },
      },
    ])
      expect(parse(change)).toEqual(plain);
  });

  it("passes the bookkeeping of published checkpoints", () => {
    expect(
      parse({
        _name_or_path: "x/y",
        attention_dropout: 0.1,
        bos_token_id: 1,
        eos_token_id: [2, 3],
        pretraining_tp: 2,
        initializer_range: 0.02,
        torch_dtype: "float16",
        transformers_version: "4.31.0",
        use_cache: true,
        unsloth_fixed: true,
        auto_map: { AutoModel: "a.B" },
        max_sequence_length: 2048,
        tokenizer_class: "LlamaTokenizer",
        id2label: { 0: "a" },
        pruned_heads: {},
        _attn_implementation_autoset: true,
        neftune_noise_alpha: 5,
        resid_pdrop: 0,
      }),
    ).toEqual(parse({}));
    // As Qwen publishes its second and third generation.
    for (const model_type of ["qwen2", "qwen3"])
      parseModelConfig({
        ...LLAMA,
        model_type,
        architectures: [model_type === "qwen2" ? "Qwen2ForCausalLM" : "Qwen3ForCausalLM"],
        max_window_layers: 28,
        sliding_window: 32768,
        use_sliding_window: false,
        attention_dropout: 0,
      });
  });
});

describe("model heads", () => {
  it.each([
    "LlamaForSequenceClassification",
    "LlamaForTokenClassification",
    "LlamaForQuestionAnswering",
    "LlamaModel",
    "LlamaForCausalLMEagle3",
    "MistralForCausalLM",
  ])("refuses %s", (name) => {
    expect(refusal(with_({ architectures: [name] }))).toContain(name);
  });
});

describe("numbers", () => {
  const sizes = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
  ];
  it("refuses sizes that are not positive whole numbers of a model", () => {
    const wrong = fc.oneof(
      fc.constantFrom(0, -1, 0.5, 2e9, 2 ** 53, Number.NaN, Infinity, "4", true, [4], {}),
      fc.double({ max: 0 }),
      fc.double({ min: 2 ** 31 }),
    );
    fc.assert(
      fc.property(fc.constantFrom(...sizes), wrong, (key, value) => {
        expect(refusal(with_({ [key]: value }))).toContain(key);
      }),
    );
  });

  it.each<[string, Json]>([
    ["num_hidden_layers", { num_hidden_layers: 2e6 }],
    ["rope_theta", { rope_theta: 0 }],
    ["rope_theta", { rope_theta: -1 }],
    ["rope_theta", { rope_theta: undefined, rope_parameters: { rope_theta: "500" } }],
    ["rms_norm_eps", { rms_norm_eps: -1e-5 }],
    ["factor", { rope_scaling: { type: "linear", factor: 0 } }],
    ["head_dim", { num_attention_heads: 6, num_key_value_heads: 6 }],
    ["KV heads", { num_key_value_heads: 3 }],
    ["sliding_window", { model_type: "mistral", architectures: undefined, sliding_window: -0.5 }],
  ])("refuses a wrong %s", (key, change) => {
    expect(refusal(with_(change))).toContain(key);
  });

  it("answers any value of any key with a configuration or one line", () => {
    const key = fc.oneof(
      fc.constantFrom(...Object.keys(LLAMA), "rope_scaling", "rope_parameters", "layer_types"),
      fc.string(),
    );
    fc.assert(
      fc.property(fc.dictionary(key, fc.jsonValue(), { maxKeys: 3 }), (change) => {
        const config = with_(change);
        try {
          parseModelConfig(config);
        } catch {
          refusal(config);
        }
      }),
      { numRuns: 1000 },
    );
  });
});
