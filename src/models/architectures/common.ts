/** Parts of blocks that architectures share. */
import { BlockBuilder } from "../builder.js";
import type { ModelConfig } from "../config.js";
import type {
  BlockProgram,
  Rotary,
  StoredRows,
  ValueName,
} from "../../backend/contract/program.js";

/** Names shared by every architecture that follows LLaMA's layout. */
export const LLAMA_NAMES = {
  embedding: "model.embed_tokens.weight",
  finalNorm: "model.norm.weight",
  lmHead: "lm_head.weight",
  blockPrefix: (layer: number) => `model.layers.${layer}.`,
} as const;

/** Paths of a block that follows LLaMA's layout. */
export const LLAMA_PATHS = {
  norms: { input: "input_layernorm", post: "post_attention_layernorm" },
  attention: {
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
  },
  mlp: { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj" },
} as const;

/** The same with norms of queries and keys. */
export const NORMED_ATTENTION = {
  ...LLAMA_PATHS.attention,
  qNorm: "self_attn.q_norm",
  kNorm: "self_attn.k_norm",
} as const;

/** Paths of attention's linears, and of the norms of queries and keys where there are some. */
export interface AttentionPaths {
  readonly q: string;
  readonly k: string;
  readonly v: string;
  readonly o: string;
  readonly qNorm?: string;
  readonly kNorm?: string;
}

/** How attention is computed, beside what the configuration says. */
export interface AttentionForm {
  /** One tensor of queries, keys and values, in this order. */
  readonly fused?: string;
  /** In that tensor every head has its queries, keys and values together. */
  readonly fusedByHead?: boolean;
  /** Matrices of attention and MLP are stored as [in, out]. */
  readonly transposed?: boolean;
  /** Norms of queries and keys: over each head (default), over all of them, or over each head with a gain for each. */
  readonly headNorms?: "head" | "row" | "each";
  /** Norms of each head without gains. */
  readonly unitNorms?: boolean;
  /** Where the heads' sinks are stored. */
  readonly sinks?: string;
  /** What scores of each head gain with every position that a key stands later. */
  readonly slopes?: readonly number[];
  /** Rows of q are of each head its query and a gate, whose sigmoid multiplies what the head mixes. */
  readonly gated?: boolean;
}

/** A layer's rotary positions; undefined for layers without, and models whose positions are learned. */
export function rotaryOf(config: ModelConfig, layer: number): Rotary | undefined {
  const { positions: own, growth } = config.layers?.[layer] ?? {};
  const positions = own ?? config.positions;
  const dims = config.headDim;
  // Growth is a part of the turn: without positions it is all that is left of it.
  if (own === null && growth)
    return { dims, turning: 0, theta: 1, scaling: { type: "default" }, growth };
  if (own === null || positions.kind !== "rope") return undefined;
  const { kind: _, ...rest } = positions;
  const turning = config.rotary?.dims;
  return turning === undefined || turning === dims ? { dims, ...rest } : { dims, turning, ...rest };
}

/**
 * The order of a head's channels in which pair i is (i, i + dims/2) and what turns comes first, from the checkpoint's:
 * neighbours as pairs, or a turning part of the head in front of the rest. Scores are the same in any order that queries and
 * keys share. Undefined where the checkpoint has this order.
 */
export function headOrder({ headDim, rotary }: ModelConfig): readonly number[] | undefined {
  if (!rotary) return undefined;
  const { dims = headDim, interleaved = false } = rotary;
  const pairs = dims / 2;
  const [first, second] = [0, 1].map((half) =>
    Array.from({ length: pairs }, (_, i) => (interleaved ? 2 * i + half : i + half * pairs)),
  );
  const still = Array.from({ length: headDim - dims }, (_, i) => dims + i);
  const split = headDim / 2 - pairs;
  return [...first, ...still.slice(0, split), ...second, ...still.slice(split)];
}

/** Rows of `heads` heads in that order, `skip` rows into a tensor of `rows`; a head begins every `stride` rows. */
function headRows(
  path: string,
  rows: number,
  skip: number,
  heads: number,
  headDim: number,
  order: readonly number[] | undefined,
  stride = headDim,
): StoredRows | undefined {
  if (!order && rows === heads * headDim) return undefined;
  const channels = order ?? Array.from({ length: headDim }, (_, i) => i);
  const all = Array.from({ length: heads }, (_, head) =>
    channels.map((i) => skip + head * stride + i),
  );
  return { parts: [{ path, rows }], order: all.flat() };
}

/** Rows of queries (`part` 0), keys or values of a tensor that has the three of each head together. */
function rowsByHead(heads: number, part: number, headDim: number): readonly number[] {
  return Array.from({ length: heads * headDim }, (_, row) => {
    const head = Math.floor(row / headDim);
    return (3 * head + part) * headDim + (row % headDim);
  });
}

/** The same rows of matrices stored as [in, out]. */
function turned(stored: StoredRows | undefined, path: string, rows: number): StoredRows {
  const { parts, ...rest } = stored ?? { parts: [{ path, rows }] };
  return { ...rest, parts: parts.map((part) => ({ ...part, transposed: true })) };
}

/** Attention from what q, k and v read to o's output. */
export function attentionPart(
  b: BlockBuilder,
  config: ModelConfig,
  layer: number,
  x: ValueName,
  paths: AttentionPaths,
  form: AttentionForm = {},
): ValueName {
  return attentionOutput(b, config, attentionMix(b, config, layer, x, paths, form), paths, form);
}

/** Attention from what q, k and v read to mixed values. */
export function attentionMix(
  b: BlockBuilder,
  config: ModelConfig,
  layer: number,
  x: ValueName,
  paths: AttentionPaths,
  form: AttentionForm = {},
): ValueName {
  const { fused, headNorms = "head", sinks, transposed, slopes, gated = false } = form;
  const { hiddenSize, numHeads, numKvHeads, headDim, norm } = config;
  const rotary = rotaryOf(config, layer);
  // A layer without positions may keep its order, and has the same scores in the other one.
  const order = headOrder(config);
  const all = fused === undefined ? undefined : (numHeads + 2 * numKvHeads) * headDim;
  const linear = (name: "q" | "k" | "v", count: number, before: number) => {
    const skip = all === undefined ? 0 : before * headDim;
    const rows = all ?? count * headDim;
    const stored = form.fusedByHead
      ? { parts: [{ path: fused ?? "", rows }], order: rowsByHead(count, before / count, headDim) }
      : headRows(
          fused ?? paths[name],
          rows,
          skip,
          count,
          headDim,
          name === "v" ? undefined : order,
        );
    return {
      name,
      path: paths[name],
      out: count * headDim,
      stored: transposed ? turned(stored, paths[name], rows) : stored,
    };
  };
  const half = (name: string, path: string, skip: number, own: typeof order) => {
    const [rows, stride] = [2 * numHeads * headDim, 2 * headDim];
    const stored = headRows(paths.q, rows, skip, numHeads, headDim, own, stride);
    return { name, path, out: numHeads * headDim, stored };
  };
  const [query, key, v, gate] = b.site(
    x,
    "attn_in",
    [
      gated ? half("q", paths.q, 0, order) : linear("q", numHeads, 0),
      linear("k", numKvHeads, numHeads),
      linear("v", numKvHeads, numHeads + numKvHeads),
      ...(gated ? [half("attn_gate", `${paths.q}_gate`, headDim, undefined)] : []),
    ],
    hiddenSize,
  );
  let [q, k] = [query, key];
  const normed = (value: ValueName, name: "q" | "k", path: string, count: number): ValueName => {
    const kind = { kind: norm.kind, epsilon: norm.epsilon };
    const offset = config.gainOffset;
    if (headNorms === "each") {
      const parts = Array.from({ length: count }, (_, i) => ({
        path: `${path}.norms.${i}`,
        rows: headDim,
      }));
      const stored = { parts, order: headRows(path, -1, 0, count, headDim, order)?.order };
      return b.norm(
        value,
        { name, path, stored, offset, channels: count * headDim },
        headDim,
        kind,
      );
    }
    const [width, groups] = headNorms === "row" ? [count * headDim, count] : [headDim, 1];
    const stored = headRows(path, width, 0, groups, headDim, order);
    return b.norm(value, { name, path, stored, offset }, width, kind);
  };
  const unit = (value: ValueName, name: "q" | "k"): ValueName => {
    const place = { name, path: `self_attn.${name}_norm`, unit: true };
    return b.norm(value, place, headDim, { kind: norm.kind, epsilon: norm.epsilon });
  };
  if (form.unitNorms) [q, k] = [unit(q, "q"), unit(k, "k")];
  if (paths.qNorm !== undefined) q = normed(q, "q", paths.qNorm, numHeads);
  if (paths.kNorm !== undefined) k = normed(k, "k", paths.kNorm, numKvHeads);
  if (rotary) {
    const { growth: _, ...plain } = rotary;
    q = b.rope(q, rotary, numHeads, headDim);
    k = b.rope(k, plain, numKvHeads, headDim);
  }
  const own = config.layers?.[layer];
  const { softcap } = config.attention ?? {};
  const mixed = b.attention(
    { q, k, v },
    {
      heads: numHeads,
      kvHeads: numKvHeads,
      headDim,
      scale: own?.scale ?? config.attention?.scale ?? 1 / Math.sqrt(headDim),
      window: own?.window ?? config.slidingWindow,
      chunk: own?.chunk,
      softcap,
      slopes,
      sinks: sinks === undefined ? undefined : b.kept("sinks", sinks, [numHeads]),
    },
  );
  return gated ? b.activation("sigmoid", mixed, gate) : mixed;
}

/** Mixed values through o. */
export function attentionOutput(
  b: BlockBuilder,
  { numHeads, headDim, hiddenSize, residualScale }: ModelConfig,
  mixed: ValueName,
  paths: Pick<AttentionPaths, "o">,
  { transposed }: Pick<AttentionForm, "transposed"> = {},
): ValueName {
  const stored = transposed ? turned(undefined, paths.o, hiddenSize) : undefined;
  const o = { name: "o", path: paths.o, out: hiddenSize, factor: residualScale, stored };
  return b.site(mixed, "attn_out", [o], numHeads * headDim)[0];
}

export interface MlpPaths {
  readonly gate?: string;
  readonly up: string;
  readonly down: string;
  /** One tensor of gate and up, in this order. */
  readonly fused?: string;
  /** Matrices are stored as [in, out]. */
  readonly transposed?: boolean;
}

/** act(gate)·up through down, or act(up) through down where there is no gate. */
export function mlpPart(
  b: BlockBuilder,
  config: ModelConfig,
  x: ValueName,
  paths: MlpPaths,
): ValueName {
  return mlpOutput(b, config, mlpHidden(b, config, x, paths), paths);
}

/** The part of an MLP that reads its input: what its activation function gives. */
export function mlpHidden(
  b: BlockBuilder,
  { hiddenSize, intermediateSize, mlp }: ModelConfig,
  x: ValueName,
  { gate, up, fused, transposed }: MlpPaths,
): ValueName {
  const place = (name: string, path: string, half: number) => ({
    name,
    path,
    out: intermediateSize,
    stored:
      fused === undefined
        ? undefined
        : headRows(
            fused,
            2 * intermediateSize,
            half * intermediateSize,
            1,
            intermediateSize,
            undefined,
          ),
  });
  const linear = (name: string, path: string, half: number) => {
    const found = place(name, path, half);
    return transposed ? { ...found, stored: turned(found.stored, path, found.out) } : found;
  };
  const read =
    gate === undefined ? [linear("up", up, 0)] : [linear("gate", gate, 0), linear("up", up, 1)];
  const outputs = b.site(x, "mlp_in", read, hiddenSize);
  return b.activation(
    mlp.activation,
    outputs[outputs.length - 1],
    gate === undefined ? undefined : outputs[0],
  );
}

export function mlpOutput(
  b: BlockBuilder,
  { hiddenSize, intermediateSize, residualScale }: ModelConfig,
  activated: ValueName,
  { down, transposed }: MlpPaths,
): ValueName {
  const stored = transposed ? turned(undefined, down, hiddenSize) : undefined;
  const linear = { name: "down", path: down, out: hiddenSize, factor: residualScale, stored };
  return b.site(activated, "mlp_down", [linear], intermediateSize)[0];
}

/** Paths of a whole block's parts. Norms that are absent are not computed. */
export interface BlockPaths {
  readonly norms: {
    /** Before attention and before the MLP. */
    readonly input?: string;
    readonly post?: string;
    /** Of what attention and the MLP give, before it is added. */
    readonly afterAttention?: string;
    readonly afterMlp?: string;
  };
  readonly attention: AttentionPaths;
  readonly mlp: MlpPaths;
}

/** Norms of the residual stream's width, by the parts they play. */
export function blockNorms(b: BlockBuilder, { hiddenSize, norm, gainOffset }: ModelConfig) {
  return (x: ValueName, name: string, path: string | undefined): ValueName =>
    path === undefined ? x : b.norm(x, { name, path, offset: gainOffset }, hiddenSize, norm);
}

/** The usual block: y = x + attention(norm(x)), then y + mlp(norm(y)), with norms of what is added where there are some. */
export function decoderBlock(
  config: ModelConfig,
  layer: number,
  { norms, attention, mlp }: BlockPaths,
  form: AttentionForm = {},
): BlockProgram {
  const b = new BlockBuilder();
  const normed = blockNorms(b, config);
  const read = normed(b.input, "input", norms.input);
  const mixed = normed(
    attentionPart(b, config, layer, read, attention, form),
    "after_attention",
    norms.afterAttention,
  );
  const y = b.add(b.input, mixed);
  const middle = normed(y, "post", norms.post);
  const { transposed } = form;
  const added = mlpPart(b, config, middle, transposed ? { ...mlp, transposed } : mlp);
  return b.finish(b.add(y, normed(added, "after_mlp", norms.afterMlp)));
}

/** Attention and MLP side by side, both of one norm of the input: y = x + attention(n) + mlp(n). */
export function parallelBlock(
  config: ModelConfig,
  layer: number,
  { norms, attention, mlp }: BlockPaths,
  form: AttentionForm = {},
): BlockProgram {
  const b = new BlockBuilder();
  const read = blockNorms(b, config)(b.input, "input", norms.input);
  // Everything that reads the input comes first: then the sums can take its place.
  const mixed = attentionMix(b, config, layer, read, attention, form);
  const activated = mlpHidden(b, config, read, mlp);
  const y = b.add(b.input, attentionOutput(b, config, mixed, attention));
  return b.finish(b.add(y, mlpOutput(b, config, activated, mlp)));
}
