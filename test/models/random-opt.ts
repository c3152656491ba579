/** Small OPT checkpoints with random weights, in every arrangement that OPT's config can ask for. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { writeSafetensors } from "../../src/checkpoint/safetensors.js";
import { Random } from "../../src/common/random.js";

export interface OptVariant {
  readonly do_layer_norm_before: boolean;
  readonly word_embed_proj_dim: number;
  readonly _remove_final_layer_norm: boolean;
}

export const OPT_VARIANTS: Readonly<Record<string, OptVariant>> = {
  "norms first": {
    do_layer_norm_before: true,
    word_embed_proj_dim: 24,
    _remove_final_layer_norm: false,
  },
  "norms after, narrow embedding (350M)": {
    do_layer_norm_before: false,
    word_embed_proj_dim: 10,
    _remove_final_layer_norm: false,
  },
  "norms first, none at the end": {
    do_layer_norm_before: true,
    word_embed_proj_dim: 24,
    _remove_final_layer_norm: true,
  },
};

export const SIZES = { hidden: 24, ffn: 36, heads: 4, layers: 3, vocab: 31, positions: 20 };

export type OptTensors = ReadonlyMap<string, { shape: readonly number[]; data: Float32Array }>;

/** Writes a checkpoint directory and returns what is in it. */
export async function writeRandomOpt(
  directory: string,
  variant: OptVariant,
  seed: number,
  vocab = SIZES.vocab,
): Promise<OptTensors> {
  const { hidden, ffn, heads, layers, positions } = SIZES;
  const width = variant.word_embed_proj_dim;
  const random = new Random(seed);
  const tensors = new Map<string, { shape: readonly number[]; data: Float32Array }>();
  const put = (name: string, shape: readonly number[], scale: number, centre = 0) => {
    const length = shape.reduce((a, b) => a * b, 1);
    const data = Float32Array.from({ length }, () => centre + scale * random.normal());
    tensors.set(`model.decoder.${name}`, { shape, data });
  };
  const norm = (name: string) => {
    put(`${name}.weight`, [hidden], 0.2, 1);
    put(`${name}.bias`, [hidden], 0.2);
  };
  const linear = (name: string, out: number, input: number) => {
    put(`${name}.weight`, [out, input], 1 / Math.sqrt(input));
    put(`${name}.bias`, [out], 0.2);
  };
  put("embed_tokens.weight", [vocab, width], 1);
  put("embed_positions.weight", [positions + 2, hidden], 0.5);
  if (width !== hidden) {
    put("project_in.weight", [hidden, width], 1 / Math.sqrt(width));
    put("project_out.weight", [width, hidden], 1 / Math.sqrt(hidden));
  }
  for (let i = 0; i < layers; i++) {
    for (const part of ["q_proj", "k_proj", "v_proj", "out_proj"])
      linear(`layers.${i}.self_attn.${part}`, hidden, hidden);
    norm(`layers.${i}.self_attn_layer_norm`);
    linear(`layers.${i}.fc1`, ffn, hidden);
    linear(`layers.${i}.fc2`, hidden, ffn);
    norm(`layers.${i}.final_layer_norm`);
  }
  if (variant.do_layer_norm_before && !variant._remove_final_layer_norm) norm("final_layer_norm");
  mkdirSync(directory, { recursive: true });
  writeFileSync(
    join(directory, "config.json"),
    JSON.stringify({
      model_type: "opt",
      activation_function: "relu",
      hidden_size: hidden,
      ffn_dim: ffn,
      num_attention_heads: heads,
      num_hidden_layers: layers,
      vocab_size: vocab,
      max_position_embeddings: positions,
      tie_word_embeddings: true,
      ...variant,
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
  return tensors;
}
