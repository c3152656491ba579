/** Small checkpoints of LLaMA's kin with random weights: what the two trained models do not have. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeSafetensors } from "../../../../src/checkpoint/safetensors.js";
import { Random } from "../../../../src/common/random.js";

export interface LlamaVariant {
  readonly model_type: "llama" | "mistral" | "qwen2" | "qwen3";
  readonly head_dim: number;
  readonly sliding_window?: number;
  readonly biases?: boolean;
  readonly headNorms?: boolean;
  readonly tie_word_embeddings: boolean;
}

export const LLAMA_VARIANTS: Readonly<Record<string, LlamaVariant>> = {
  "mistral, a window of 70": {
    model_type: "mistral",
    head_dim: 12,
    sliding_window: 70,
    tie_word_embeddings: false,
  },
  "qwen2, biases": { model_type: "qwen2", head_dim: 12, biases: true, tie_word_embeddings: true },
  "qwen3, head norms, heads wider than the states": {
    model_type: "qwen3",
    head_dim: 40,
    headNorms: true,
    tie_word_embeddings: true,
  },
};

const SHAPE = { hidden: 48, ffn: 80, heads: 4, kvHeads: 2, layers: 2, vocab: 61, positions: 512 };

export async function writeRandomLlama(
  directory: string,
  variant: LlamaVariant,
  seed: number,
): Promise<void> {
  const { hidden, ffn, heads, kvHeads, layers, vocab, positions } = SHAPE;
  const { head_dim: dim } = variant;
  const random = new Random(seed);
  const tensors = new Map<string, { shape: readonly number[]; data: Float32Array }>();
  const put = (name: string, shape: readonly number[], scale: number, centre = 0) => {
    const length = shape.reduce((a, b) => a * b, 1);
    tensors.set(name, {
      shape,
      data: Float32Array.from({ length }, () => centre + scale * random.normal()),
    });
  };
  const linear = (name: string, out: number, input: number, bias = false) => {
    put(`${name}.weight`, [out, input], 1 / Math.sqrt(input));
    if (bias) put(`${name}.bias`, [out], 0.3);
  };
  put("model.embed_tokens.weight", [vocab, hidden], 1);
  if (!variant.tie_word_embeddings) put("lm_head.weight", [vocab, hidden], 0.3);
  for (let i = 0; i < layers; i++) {
    const at = `model.layers.${i}`;
    linear(`${at}.self_attn.q_proj`, heads * dim, hidden, variant.biases);
    linear(`${at}.self_attn.k_proj`, kvHeads * dim, hidden, variant.biases);
    linear(`${at}.self_attn.v_proj`, kvHeads * dim, hidden, variant.biases);
    linear(`${at}.self_attn.o_proj`, hidden, heads * dim);
    linear(`${at}.mlp.gate_proj`, ffn, hidden);
    linear(`${at}.mlp.up_proj`, ffn, hidden);
    linear(`${at}.mlp.down_proj`, hidden, ffn);
    put(`${at}.input_layernorm.weight`, [hidden], 0.2, 1);
    put(`${at}.post_attention_layernorm.weight`, [hidden], 0.2, 1);
    if (variant.headNorms) {
      put(`${at}.self_attn.q_norm.weight`, [dim], 0.2, 1);
      put(`${at}.self_attn.k_norm.weight`, [dim], 0.2, 1);
    }
  }
  put("model.norm.weight", [hidden], 0.2, 1);
  mkdirSync(directory, { recursive: true });
  const { model_type, head_dim, sliding_window, tie_word_embeddings } = variant;
  writeFileSync(
    join(directory, "config.json"),
    JSON.stringify({
      model_type,
      head_dim,
      sliding_window,
      tie_word_embeddings,
      hidden_act: "silu",
      hidden_size: hidden,
      intermediate_size: ffn,
      num_attention_heads: heads,
      num_key_value_heads: kvHeads,
      num_hidden_layers: layers,
      vocab_size: vocab,
      max_position_embeddings: positions,
      rms_norm_eps: 1e-5,
      rope_theta: 10000,
    }),
  );
  await writeSafetensors(
    join(directory, "model.safetensors"),
    [...tensors].map(([name, { shape, data }]) => ({
      name,
      type: "F32" as const,
      shape,
      data: () => new Uint8Array(data.buffer),
    })),
  );
}
