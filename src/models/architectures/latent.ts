/**
 * Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) with its keys and values in full: they come from one narrow
 * latent per token, except that what turns of keys is one head's, which all heads share. Values are narrower than keys; the
 * cache holds them with zeros.
 */
import type { BlockBuilder } from "../builder.js";
import type { LatentConfig, ModelConfig } from "../config.js";
import type { StoredPart, ValueName } from "../../backend/contract/program.js";
import { rotaryOf } from "./common.js";

/** Epsilon of the latents' norms, whatever the configuration says. */
const LATENT_EPSILON = 1e-6;

/**
 * The order of a head's channels in which pair i is (i, i + half) and what turns comes first, from the checkpoint's, where
 * it comes last.
 */
function headOrder({ still, turning, interleaved }: LatentConfig): readonly number[] {
  const pairs = turning / 2;
  const [first, second] = [0, 1].map((half) =>
    Array.from(
      { length: pairs },
      (_, i) => still + (interleaved ? 2 * i + half : i + half * pairs),
    ),
  );
  const rest = Array.from({ length: still }, (_, i) => i);
  return [...first, ...rest.slice(0, still / 2), ...second, ...rest.slice(still / 2)];
}

/** Rows of every head, `from` … `from + order.length` of its `size`, in an order. */
function headRows(heads: number, size: number, order: readonly number[]): number[] {
  return Array.from({ length: heads }, (_, head) => order.map((i) => head * size + i)).flat();
}

/** The heads of a linear that is stored as a stack of them. */
function headStack(
  path: string,
  count: number,
  rows: number,
  transposed: boolean,
): readonly StoredPart[] {
  const stack = { count, weight: `${path}.weight`, bias: `${path}.bias` };
  return Array.from({ length: count }, (_, index) => ({
    path,
    rows,
    transposed,
    stack: { index, ...stack },
  }));
}

const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => from + i);

/** Attention from the normed residual stream to o's output. */
export function latentAttention(
  b: BlockBuilder,
  config: ModelConfig,
  layer: number,
  x: ValueName,
  latent: LatentConfig,
): ValueName {
  const { hiddenSize, numHeads: heads, headDim, attention, residualScale } = config;
  const { queries, keys, still, turning, values } = latent;
  const order = headOrder(latent);
  const query = {
    name: "q",
    path: queries === undefined ? "self_attn.q_proj" : "self_attn.q_b_proj",
    out: heads * headDim,
  };
  const queryRows = headRows(heads, headDim, order);
  const q = {
    ...query,
    stored: { parts: [{ path: query.path, rows: heads * headDim }], order: queryRows },
  };
  const both = { path: "self_attn.kv_a_proj_with_mqa", rows: keys + turning };
  const down = [
    {
      name: "kv_a",
      path: "self_attn.kv_a_proj",
      out: keys,
      stored: { parts: [both], order: range(0, keys) },
    },
    {
      name: "k_rope",
      path: "self_attn.k_rope_proj",
      out: turning,
      stored: { parts: [both], order: range(keys, turning) },
    },
  ];
  const first =
    queries === undefined ? q : { name: "q_a", path: "self_attn.q_a_proj", out: queries };
  const [own, compressed, turned] = b.site(x, "attn_in", [first, ...down], hiddenSize);
  const kind = { kind: "rms", epsilon: LATENT_EPSILON } as const;
  const normed = (value: ValueName, name: string, width: number): ValueName =>
    b.norm(value, { name, path: `self_attn.${name}_layernorm` }, width, kind);
  const wide =
    queries === undefined ? own : b.site(normed(own, "q_a", queries), "q_latent", [q], queries)[0];
  const expanded = { path: "self_attn.kv_b_proj", rows: heads * (still + values) };
  const [kStill, v] = b.site(
    normed(compressed, "kv_a", keys),
    "kv_latent",
    [
      {
        name: "k",
        path: "self_attn.k_b_proj",
        out: heads * still,
        stored: latent.split
          ? { parts: headStack("self_attn.k_b_proj", heads, still, true) }
          : { parts: [expanded], order: headRows(heads, still + values, range(0, still)) },
      },
      {
        name: "v",
        path: "self_attn.v_b_proj",
        out: heads * values,
        stored: latent.split
          ? { parts: headStack("self_attn.v_b_proj", heads, values, false) }
          : { parts: [expanded], order: headRows(heads, still + values, range(still, values)) },
      },
    ],
    keys,
  );
  const k = b.arrange(
    [
      { x: kStill, heads, dim: still },
      { x: turned, heads: 1, dim: turning },
    ],
    { heads, headDim, order },
  );
  const shorter = values < headDim;
  const padding = Array.from({ length: headDim - values }, () => -1);
  const padded = shorter
    ? b.arrange([{ x: v, heads, dim: values }], {
        heads,
        headDim,
        order: [...range(0, values), ...padding],
      })
    : v;
  const rotary = rotaryOf({ ...config, rotary: { dims: turning } }, layer);
  const [qTurned, kTurned] = [wide, k].map((value) =>
    rotary ? b.rope(value, rotary, heads, headDim) : value,
  );
  const mixed = b.attention(
    { q: qTurned, k: kTurned, v: padded },
    { heads, kvHeads: heads, headDim, scale: attention?.scale ?? 1 / Math.sqrt(headDim) },
  );
  const cut = shorter
    ? b.arrange([{ x: mixed, heads, dim: headDim }], {
        heads,
        headDim: values,
        order: range(0, values),
      })
    : mixed;
  const o = { name: "o", path: "self_attn.o_proj", out: hiddenSize, factor: residualScale };
  return b.site(cut, "attn_out", [o], heads * values)[0];
}
