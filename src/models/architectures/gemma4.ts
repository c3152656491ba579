/**
 * Gemma 4 (text): sandwich norms with plain gains, norms of heads, keys and values, heads of another size (and number) in layers
 * that see everything, proportional rotary positions there, layers that read an earlier layer's keys and values, embeddings of
 * their own for every layer, and experts beside the MLP (Google, 2026; Hugging Face's Gemma4TextModel).
 *
 * What reaches a block from elsewhere than the block before it travels behind the hidden states: embeddings of all layers, and
 * the linear outputs that shared keys and values are made of.
 */
import { LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { BlockBuilder } from "../builder.js";
import type { Architecture, ConfigReader, LayerConfig, ModelConfig } from "../config.js";
import {
  BLOCK_INPUT,
  type BlockProgram,
  type SpliceStep,
  type ValueName,
} from "../../backend/contract/program.js";
import { attentionOutput, blockNorms, LLAMA_NAMES, LLAMA_PATHS, mlpPart } from "./common.js";
import { down, gated, type GatedPaths } from "./experts.js";
import { layerHeads, layerRotaries } from "./gemma4-layers.js";
import { llamaShape, optionalFactor, window, windowed } from "./shape.js";
import type { LayerKind } from "./rope-config.js";

/** `layer_types`, or five windowed layers for one that sees everything; the last one always does. */
function kindsOf(c: ConfigReader, layers: number): readonly LayerKind[] {
  const given = c.optional("layer_types") ?? undefined;
  const kinds: unknown =
    given ??
    Array.from({ length: layers }, (_, i) =>
      (i + 1) % 6 === 0 ? "full_attention" : "sliding_attention",
    );
  const known = (kind: unknown): kind is LayerKind =>
    kind === "full_attention" || kind === "sliding_attention";
  if (!Array.isArray(kinds) || kinds.length !== layers || !kinds.every(known))
    throw new PlanishError(
      `config.json: layer_types must be "full_attention" or "sliding_attention" for each of ${layers} layers, found ${shown(kinds)}`,
    );
  return [...kinds.slice(0, -1), "full_attention"];
}

/** Of each layer the one whose keys and values it reads, where it has none of its own: the last of its kind that has. */
function sharing(c: ConfigReader, kinds: readonly LayerKind[]): (number | undefined)[] {
  const shared = c.integer("num_kv_shared_layers", LIMITS.layers, 0, 0);
  const first = kinds.length - shared;
  return kinds.map((kind, layer) => {
    if (layer < first) return undefined;
    const from = kinds.slice(0, Math.max(0, first)).lastIndexOf(kind);
    if (from < 0)
      throw new PlanishError(
        `config.json: num_kv_shared_layers ${shared} leaves no ${kind} layer with keys of its own, which layer ${layer} would read; at least one of each kind is needed`,
      );
    return from;
  });
}

function mixtureOf(c: ConfigReader): ModelConfig["experts"] {
  const has = c.boolean("enable_moe_block", false);
  const [count, chosen, width] = ["num_experts", "top_k_experts", "moe_intermediate_size"].map(
    (key) => c.optional(key) ?? undefined,
  );
  if (!has) return undefined;
  if (count === undefined || chosen === undefined || width === undefined)
    throw new PlanishError(
      "config.json: enable_moe_block needs num_experts, top_k_experts and moe_intermediate_size beside it",
    );
  const experts = c.integer("num_experts", LIMITS.experts);
  return {
    count: experts,
    chosen: c.integer("top_k_experts", experts),
    width: c.integer("moe_intermediate_size", LIMITS.width),
    scores: "softmax",
    normalize: true,
    factor: 1,
  };
}

function parse(c: ConfigReader): ModelConfig {
  if (c.optional("use_bidirectional_attention") === "all")
    throw new PlanishError(
      'config.json: use_bidirectional_attention is "all": that is an encoder; only causal Gemma models are supported',
    );
  const layers = c.integer("num_hidden_layers", LIMITS.layers, 30);
  const hidden = c.integer("hidden_size", LIMITS.width, 2304);
  const kinds = kindsOf(c, layers);
  const keysAsValues = c.boolean("attention_k_eq_v", false);
  const heads = layerHeads(c, kinds, keysAsValues);
  const rotaries = layerRotaries(c, kinds, heads);
  const from = sharing(c, kinds);
  const wide = c.boolean("use_double_wide_mlp", false);
  const inner = c.integer("intermediate_size", LIMITS.width, 9216);
  const own = windowed(kinds, window(c, 512)).map((layer, i): LayerConfig => ({
    ...layer,
    ...heads[i],
    positions: rotaries[i],
    ...(from[i] !== undefined && { keysFrom: from[i] }),
    ...(from[i] !== undefined && wide && { intermediateSize: 2 * inner }),
    ...(keysAsValues && kinds[i] === "full_attention" && { keysAsValues }),
  }));
  const vocabulary = c.integer("vocab_size", LIMITS.vocabulary, 262_144);
  const perLayer = c.integer("hidden_size_per_layer_input", LIMITS.width, 256, 0);
  const rows = c.integer("vocab_size_per_layer_input", LIMITS.vocabulary, 262_144);
  if (perLayer > 0 && rows < vocabulary)
    throw new PlanishError(
      `config.json: vocab_size_per_layer_input ${rows} is below vocab_size ${vocabulary}: some tokens would have no embeddings of layers`,
    );
  const base = llamaShape(c, "gemma4", {
    tied: true,
    headDim: 256,
    kvHeads: 4,
    maxPositions: 131_072,
    qkNorm: true,
    positions: rotaries[0],
    layers: own,
    embeddingScale: Math.sqrt(hidden),
    attention: { scale: 1 },
    logitSoftcap: optionalFactor(c, "final_logit_softcapping"),
    activation: { key: "hidden_activation", fallback: "gelu_pytorch_tanh" },
    biases: c.boolean("attention_bias", false) ? ["q", "k", "v", "o"] : [],
  });
  const config = {
    ...base,
    ...(perLayer > 0 && {
      // Half of the squares are the token's, half the projection's.
      side: { rows, width: layers * perLayer, scale: Math.sqrt(perLayer / 2) },
    }),
    experts: mixtureOf(c),
  };
  const { width } = stateOf(config);
  return width === hidden ? config : { ...config, stateWidth: width };
}

/** Columns of what goes from block to block: hidden states, embeddings of layers, outputs of shared linears by their layer. */
function stateOf(config: Pick<ModelConfig, "hiddenSize" | "side" | "layers" | "headDim">): {
  readonly width: number;
  readonly shared: ReadonlyMap<number, { readonly k: number; readonly v: number }>;
} {
  const shared = new Map<number, { k: number; v: number }>();
  let at = config.hiddenSize + (config.side?.width ?? 0);
  for (const { keysFrom, kvHeads = 1, headDim = config.headDim, keysAsValues } of config.layers ??
    []) {
    if (keysFrom === undefined || shared.has(keysFrom)) continue;
    const width = kvHeads * headDim;
    shared.set(keysFrom, { k: at, v: keysAsValues ? at : at + width });
    at += keysAsValues ? width : 2 * width;
  }
  return { width: at, shared };
}

const NORMS = {
  input: "input_layernorm",
  afterAttention: "post_attention_layernorm",
  post: "pre_feedforward_layernorm",
  afterMlp: "post_feedforward_layernorm",
} as const;

class Gemma4Block {
  private readonly b = new BlockBuilder();
  private readonly layer: LayerConfig;
  private readonly state: ReturnType<typeof stateOf>;
  private readonly normed: ReturnType<typeof blockNorms>;
  /** What travels from block to block, once something took a place in it. */
  private carried: ValueName = BLOCK_INPUT;

  constructor(
    private readonly config: ModelConfig,
    private readonly index: number,
  ) {
    this.layer = config.layers?.[index] ?? {};
    this.state = stateOf(config);
    this.normed = blockNorms(this.b, config);
  }

  program(): BlockProgram {
    const { b, config, state } = this;
    const { hiddenSize, side, stateWidth } = config;
    const x = stateWidth === undefined ? b.input : b.columns(b.input, 0, hiddenSize, state.width);
    const embeddings = side ? this.embeddings(x, side) : undefined;
    const mixed = this.attention(this.normed(x, "input", NORMS.input));
    const y = b.add(x, this.normed(mixed, "after_attention", NORMS.afterAttention));
    const z = b.add(y, this.normed(this.feedForward(y), "after_mlp", NORMS.afterMlp));
    const ended = embeddings === undefined ? z : b.add(z, this.gatedEmbeddings(z, embeddings));
    const out = b.scale(ended, b.kept("layer_scalar", "layer_scalar", [1]));
    if (stateWidth === undefined) return b.finish(out);
    this.carry([{ x: out, at: 0, width: hiddenSize }]);
    return b.finish(this.carried);
  }

  private carry(parts: SpliceStep["parts"]): void {
    this.carried = this.b.splice(this.carried, parts, this.state.width);
  }

  /**
   * This layer's embeddings. The first block makes those of all: the token's own, and a projection of its embedding, normed by
   * layers.
   */
  private embeddings(x: ValueName, side: NonNullable<ModelConfig["side"]>): ValueName {
    const { b, config, index, state } = this;
    const { hiddenSize, numLayers, norm } = config;
    const width = side.width / numLayers;
    const mine = (of: ValueName, first: number, all: number) =>
      b.columns(of, first + index * width, width, all);
    if (index > 0) return mine(b.input, hiddenSize, state.width);
    const path = "/model.per_layer_model_projection";
    const [projected] = b.site(
      x,
      "embedding_in",
      [
        {
          name: "layer_embeddings",
          path: "per_layer_model_projection",
          out: side.width,
          factor: 1 / Math.sqrt(hiddenSize),
          stored: { parts: [{ path, rows: side.width }] },
        },
      ],
      hiddenSize,
    );
    const place = {
      name: "layer_embeddings",
      path: "per_layer_projection_norm",
      factor: Math.SQRT1_2,
      stored: { parts: [{ path: "/model.per_layer_projection_norm", rows: width }] },
    };
    const normed = b.norm(projected, place, width, norm);
    const all = b.add(b.columns(b.input, hiddenSize, side.width, state.width), normed);
    this.carry([{ x: all, at: hiddenSize, width: side.width }]);
    return mine(all, 0, side.width);
  }

  /** Attention from the normed input to o's output. */
  private attention(read: ValueName): ValueName {
    const { b, config, index, layer, state } = this;
    const { hiddenSize, numHeads, norm, attention } = config;
    const { headDim = config.headDim, kvHeads = config.numKvHeads } = layer;
    const width = kvHeads * headDim;
    const own = layer.keysFrom === undefined;
    const linear = (name: "q" | "k" | "v", out: number) => ({
      name,
      path: LLAMA_PATHS.attention[name],
      out,
    });
    const linears = [
      linear("q", numHeads * headDim),
      ...(own ? [linear("k", width)] : []),
      ...(own && !layer.keysAsValues ? [linear("v", width)] : []),
    ];
    const [q, ownKeys, ownValues = ownKeys] = b.site(read, "attn_in", linears, hiddenSize);
    const places = state.shared.get(layer.keysFrom ?? index);
    // Before attention: engines prepare keys where they lie.
    if (own && places)
      this.carry([
        { x: ownKeys, at: places.k, width },
        ...(ownValues === ownKeys ? [] : [{ x: ownValues, at: places.v, width }]),
      ]);
    const taken = (at: number): ValueName => b.columns(this.carried, at, width, state.width);
    const [k, v] =
      own || !places
        ? [ownKeys, ownValues]
        : places.v === places.k
          ? Array<ValueName>(2).fill(taken(places.k))
          : [taken(places.k), taken(places.v)];
    const kind = { kind: norm.kind, epsilon: norm.epsilon };
    const path = (name: string) => `self_attn.${name}_norm`;
    const values = b.norm(v, { name: "v", path: path("v"), unit: true }, headDim, kind);
    const from = {
      parts: [{ path: `/model.layers.${layer.keysFrom ?? index}.${path("k")}`, rows: headDim }],
    };
    const keyPlace = { name: "k", path: path("k"), stored: own ? undefined : from };
    const queries = b.norm(q, { name: "q", path: path("q") }, headDim, kind);
    const keys = b.norm(k, keyPlace, headDim, kind);
    const { positions } = layer;
    if (positions?.kind !== "rope")
      throw new PlanishError(`gemma4: layer ${index} has no positions`);
    const { kind: _, ...turn } = positions;
    const rotary = { dims: headDim, ...turn };
    const mixed = b.attention(
      {
        q: b.rope(queries, rotary, numHeads, headDim),
        k: b.rope(keys, rotary, kvHeads, headDim),
        v: values,
      },
      { heads: numHeads, kvHeads, headDim, scale: attention?.scale ?? 1, window: layer.window },
    );
    return attentionOutput(b, { ...config, headDim }, mixed, LLAMA_PATHS.attention);
  }

  /** The MLP, and experts beside it where the model has some. */
  private feedForward(y: ValueName): ValueName {
    const { b, config, layer, normed } = this;
    const { intermediateSize = config.intermediateSize } = layer;
    const read = normed(y, "post", NORMS.post);
    const dense = mlpPart(b, { ...config, intermediateSize }, read, LLAMA_PATHS.mlp);
    if (!config.experts) return dense;
    const first = normed(dense, "after_dense", `${NORMS.afterMlp}_1`);
    const second = normed(this.experts(y, config.experts), "after_experts", `${NORMS.afterMlp}_2`);
    return b.add(first, second);
  }

  private experts(
    y: ValueName,
    { count, chosen, width, scores, normalize, factor }: NonNullable<ModelConfig["experts"]>,
  ): ValueName {
    const { b, config, normed } = this;
    const { hiddenSize, norm } = config;
    const gain = { path: "router.norm", name: "router.scale", rows: hiddenSize };
    const scaled = { factor: 1 / Math.sqrt(hiddenSize), stored: { parts: [gain] } };
    const plain = b.norm(y, { name: "router", path: "router.norm", ...scaled }, hiddenSize, norm);
    const routing = b.route(plain, {
      router: b.kept("router", "router.proj.weight", [count, hiddenSize]),
      ...{ width: hiddenSize, experts: count, chosen, scores, normalize, factor },
    });
    const site = b.read(normed(y, "experts", `${NORMS.post}_2`), "experts_in", hiddenSize);
    const parts = Array.from({ length: count }, (_, expert) => {
      const own = b.dispatch(routing, site, expert);
      const name = `experts.${expert}.`;
      const paths: GatedPaths = {
        gate: `experts.${expert}.gate_proj`,
        up: `experts.${expert}.up_proj`,
        down: `experts.${expert}.down_proj`,
      };
      const stored = (part: keyof GatedPaths) => storedExpert(config, expert, count, width, part);
      const inner = gated(b, config, own, width, name, paths, stored);
      const scaledBy = { name: "router.per_expert_scale", length: count, index: expert };
      return down(b, config, inner, width, name, paths, stored, scaledBy);
    });
    return b.combine(routing, parts, hiddenSize);
  }

  /** What the layer's embeddings add: gated by the hidden states, projected, normed. */
  private gatedEmbeddings(z: ValueName, embeddings: ValueName): ValueName {
    const { b, config, normed } = this;
    const { hiddenSize, numLayers, mlp, side } = config;
    const width = (side?.width ?? 0) / numLayers;
    const gate = { name: "layer_gate", path: "per_layer_input_gate", out: width };
    const [opened] = b.site(z, "layer_in", [gate], hiddenSize);
    const activated = b.activation(mlp.activation, embeddings, opened);
    const back = { name: "layer_projection", path: "per_layer_projection", out: hiddenSize };
    const [added] = b.site(activated, "layer_out", [back], width);
    return normed(added, "after_layer", "post_per_layer_input_norm");
  }
}

/** Of an expert's gate and up, which follow one another in one matrix, or of its down. */
function storedExpert(
  { hiddenSize }: ModelConfig,
  index: number,
  count: number,
  width: number,
  part: keyof GatedPaths,
) {
  const name = `experts.${part === "down" ? "down" : "gate_up"}_proj`;
  const rows = part === "down" ? hiddenSize : 2 * width;
  const stack = { index, count, weight: name, bias: `${name}_bias` };
  const parts = [{ path: name, rows, stack }];
  if (part === "down") return { parts };
  const first = part === "gate" ? 0 : width;
  return { parts, order: Array.from({ length: width }, (_, i) => first + i) };
}

/** Files may hold the keys' and values' parts of layers that read another layer's. */
const OWN_KEYS = /^model\.layers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm|v_norm)\./;

export const gemma4: Architecture = {
  name: "gemma4",
  modelTypes: ["gemma4_text"],
  parse,
  lower: (config, layer) => new Gemma4Block(config, layer).program(),
  names: { ...LLAMA_NAMES, side: "model.embed_tokens_per_layer.weight" },
  unused: ({ layers }, name) => {
    const [, layer] = OWN_KEYS.exec(name) ?? [];
    return layer !== undefined && layers?.[Number(layer)]?.keysFrom !== undefined;
  },
};
