/** What layers of Gemma 4 have of their own: sizes and numbers of heads, and rotary positions by kind. */
import { finiteIn, integerIn, LIMITS, quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { ConfigReader, LayerConfig, RopePositions } from "../config.js";
import { ropeOfKinds, type LayerKind } from "./rope-config.js";

type Json = Readonly<Record<string, unknown>>;
type Heads = Required<Pick<LayerConfig, "headDim" | "kvHeads">>;

function objectOf(value: unknown, key: string): Json | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "object" || Array.isArray(value))
    throw new PlanishError(`config.json: ${key} must be an object, found ${shown(value)}`);
  return value as Json;
}

/**
 * Heads of each layer, in either spelling: an object of layers that differ (`per_layer_config`), or sizes of all layers that see
 * everything (`global_head_dim`, and `num_global_key_value_heads` where keys are values).
 */
export function layerHeads(
  c: ConfigReader,
  kinds: readonly LayerKind[],
  keysAsValues: boolean,
): Heads[] {
  const common = {
    headDim: c.integer("head_dim", LIMITS.width, 256),
    kvHeads: c.integer("num_key_value_heads", LIMITS.heads, 4),
  };
  const globalDim = c.integer("global_head_dim", LIMITS.width, 512);
  const given = c.optional("num_global_key_value_heads") ?? undefined;
  const globalHeads =
    given === undefined || !keysAsValues
      ? common.kvHeads
      : c.integer("num_global_key_value_heads", LIMITS.heads);
  const single = objectOf(c.optional("per_layer_config"), "per_layer_config");
  const heads = kinds.map((kind, layer): Heads => {
    if (single) return { ...common, ...ownHeads(single[String(layer)], layer) };
    return kind === "full_attention" ? { headDim: globalDim, kvHeads: globalHeads } : common;
  });
  for (const layer of Object.keys(single ?? {}))
    if (!/^\d+$/.test(layer) || Number(layer) >= kinds.length)
      throw new PlanishError(
        `config.json: per_layer_config has ${quoted(layer)}, which is none of ${kinds.length} layers`,
      );
  const all = c.integer("num_attention_heads", LIMITS.heads, 8);
  for (const [layer, { headDim, kvHeads }] of heads.entries())
    if (headDim % 2 !== 0 || all % kvHeads !== 0)
      throw new PlanishError(
        `config.json: layer ${layer} has ${kvHeads} KV heads of ${headDim} channels for ${all} heads; they must divide evenly, and channels make pairs`,
      );
  return heads;
}

function ownHeads(value: unknown, layer: number): Partial<Heads> {
  const key = `per_layer_config.${layer}`;
  const own = objectOf(value, key) ?? {};
  for (const inner of Object.keys(own))
    if (inner !== "head_dim" && inner !== "num_key_value_heads")
      throw new PlanishError(
        `config.json: ${key} has ${quoted(inner)}, which is not read; accepted: head_dim, num_key_value_heads`,
      );
  const size = (inner: string, max: number): number | undefined =>
    own[inner] === undefined || own[inner] === null
      ? undefined
      : integerIn(own[inner], `config.json: ${key}.${inner}`, { min: 1, max });
  const [headDim, kvHeads] = [
    size("head_dim", LIMITS.width),
    size("num_key_value_heads", LIMITS.heads),
  ];
  return { ...(headDim !== undefined && { headDim }), ...(kvHeads !== undefined && { kvHeads }) };
}

const DEFAULTS: Record<LayerKind, Json> = {
  sliding_attention: { rope_type: "default", rope_theta: 10_000 },
  full_attention: { rope_type: "proportional", partial_rotary_factor: 0.25, rope_theta: 1e6 },
};
const PROPORTIONAL_KEYS = ["rope_type", "rope_theta", "partial_rotary_factor", "factor"];

/** Rotary positions of each layer, by its kind and the size of its heads. */
export function layerRotaries(
  c: ConfigReader,
  kinds: readonly LayerKind[],
  heads: readonly Heads[],
): RopePositions[] {
  const given = objectOf(c.optional("rope_parameters"), "rope_parameters") ?? DEFAULTS;
  const sources = Object.fromEntries(
    Object.entries(given).map(([kind, value]) => [
      kind,
      objectOf(value, `rope_parameters.${kind}`),
    ]),
  );
  const proportional = (kind: string): boolean => sources[kind]?.rope_type === "proportional";
  // The usual types are read as everywhere; the others stand there as plain ones.
  const plain = Object.fromEntries(
    Object.entries(sources).map(([kind, source]) => [
      kind,
      proportional(kind) ? { rope_type: "default" } : source,
    ]),
  );
  const usual = ropeOfKinds({
    ...c,
    optional: (key) => (key === "rope_parameters" ? plain : c.optional(key)),
  });
  return kinds.map((kind, layer) => {
    const source = sources[kind];
    if (!source || !usual)
      throw new PlanishError(
        `config.json: rope_parameters has nothing for ${kind}, which layer ${layer} is`,
      );
    return proportional(kind)
      ? proportionalPositions(source, kind, heads[layer].headDim)
      : usual[kind];
  });
}

/** A share of the pairs turn, as those of a whole head would: their frequencies are θ^(−2i/head), not of what turns. */
function proportionalPositions(source: Json, kind: string, headDim: number): RopePositions {
  const key = `config.json: rope_parameters.${kind}`;
  for (const inner of Object.keys(source))
    if (!PROPORTIONAL_KEYS.includes(inner))
      throw new PlanishError(
        `${key} has ${quoted(inner)}, which goes with no rope type "proportional" that is read (${PROPORTIONAL_KEYS.join(", ")})`,
      );
  const theta = finiteIn(source.rope_theta ?? 10_000, `${key}.rope_theta`, { above: 0 });
  const share = finiteIn(source.partial_rotary_factor ?? 1, `${key}.partial_rotary_factor`, {
    min: 0,
    max: 1,
  });
  const factor = finiteIn(source.factor ?? 1, `${key}.factor`, { above: 0 });
  const turning = 2 * Math.floor((share * headDim) / 2);
  return {
    kind: "rope",
    theta: theta ** (turning / headDim),
    scaling: factor === 1 ? { type: "default" } : { type: "linear", factor },
    ...(turning !== headDim && { turning }),
  };
}
