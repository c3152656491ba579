/**
 * Gated delta net (Yang et al. 2024, arXiv 2412.06464) as Qwen3-Next and Qwen3.5 have it: queries, keys and values through a
 * short convolution, a state for each head of values that learns by the delta rule, a norm of each head, and a gate.
 */
import type { BlockBuilder, NamedLinear } from "../builder.js";
import type { ModelConfig } from "../config.js";
import type { DeltaConfig } from "../recurrent-config.js";
import type { StoredRows, ValueName } from "../../backend/contract/program.js";

/** Of the norms of queries and keys, whatever the configuration says. */
const LENGTH_EPSILON = 1e-6;

/** How the projections are stored: each by itself, or in two tensors, head of keys by head of keys. */
export type DeltaStorage = "separate" | "fused";

interface Rows {
  readonly qkv: StoredRows;
  readonly z: StoredRows;
  readonly b: StoredRows;
  readonly a: StoredRows;
}

const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => from + i);

/** Of each head of keys: its query, its key, and its values' v and z (or b and a) in this order. */
function fusedRows({ keyHeads, valueHeads, keyDim, valueDim }: DeltaConfig): Rows {
  const own = valueHeads / keyHeads;
  const values = own * valueDim;
  const size = 2 * keyDim + 2 * values;
  const all = (stride: number, from: number, count: number): number[] =>
    range(0, keyHeads).flatMap((head) => range(head * stride + from, count));
  const wide = [{ path: "linear_attn.in_proj_qkvz", rows: keyHeads * size }];
  const narrow = [{ path: "linear_attn.in_proj_ba", rows: 2 * valueHeads }];
  return {
    qkv: {
      parts: wide,
      order: [
        ...all(size, 0, keyDim),
        ...all(size, keyDim, keyDim),
        ...all(size, 2 * keyDim, values),
      ],
    },
    z: { parts: wide, order: all(size, 2 * keyDim + values, values) },
    b: { parts: narrow, order: all(2 * own, 0, own) },
    a: { parts: narrow, order: all(2 * own, own, own) },
  };
}

/** From the normed residual stream to out's output. */
export function deltaNet(
  b: BlockBuilder,
  { hiddenSize, norm, residualScale }: ModelConfig,
  delta: DeltaConfig,
  x: ValueName,
  storage: DeltaStorage,
): ValueName {
  const { keyHeads, valueHeads, keyDim, valueDim, taps, activation } = delta;
  const [keys, values] = [keyHeads * keyDim, valueHeads * valueDim];
  const channels = 2 * keys + values;
  const rows = storage === "fused" ? fusedRows(delta) : undefined;
  const linear = (name: keyof Rows, out: number): NamedLinear => ({
    name,
    path: `linear_attn.in_proj_${name}`,
    out,
    stored: rows?.[name],
  });
  const [qkv, z, beta, step] = b.site(
    x,
    "mixer_in",
    [
      linear("qkv", channels),
      linear("z", values),
      linear("b", valueHeads),
      linear("a", valueHeads),
    ],
    hiddenSize,
  );
  const weight = b.kept("conv", "linear_attn.conv1d.weight", [channels, 1, taps]);
  const mixed = b.activation(activation, b.conv(qkv, { weight, channels, taps }));
  const read = b.recurrence({
    heads: valueHeads,
    ...{ keyHeads, keyDim, valueDim },
    width: channels,
    at: { q: 0, k: keys, v: 2 * keys },
    scale: 1 / Math.sqrt(keyDim),
    epsilon: LENGTH_EPSILON,
    ...{ x: mixed, step, beta },
    rate: b.kept("rate", "linear_attn.A_log", [valueHeads]),
    bias: b.kept("step_bias", "linear_attn.dt_bias", [valueHeads]),
  });
  const kind = { kind: "rms", epsilon: norm.epsilon } as const;
  const normed = b.norm(read, { name: "mixer", path: "linear_attn.norm" }, valueDim, kind);
  const out = {
    name: "out",
    path: "linear_attn.out_proj",
    ...{ out: hiddenSize, factor: residualScale },
  };
  return b.site(b.activation("silu", normed, z), "mixer_out", [out], values)[0];
}
