/**
 * Rotary positions as config.json gives them, in both spellings: `rope_theta` + `rope_scaling`, and the newer
 * `rope_parameters`. Every key of them is read or refused; where both spellings are present they must agree.
 */
import { finiteIn, integerIn, LIMITS, quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { ConfigReader, RopePositions } from "../config.js";
import type { RopeScaling } from "../../backend/contract/program.js";

type JsonRecord = Readonly<Record<string, unknown>>;

export interface RopeOptions {
  /** Where the config gives none (default 10000). */
  readonly theta?: number;
  /** Channels of a head that turn; needed to check lists of factors. */
  readonly dims?: number;
  /** Positions that the model is made for. */
  readonly maxPositions?: number;
  /** Whether a part of the head may stay unturned (`partial_rotary_factor`), which the caller reads. */
  readonly partial?: boolean;
  /** Keys of the rope's object that the caller reads itself. */
  readonly known?: readonly string[];
}

/** @throws PlanishError naming the key that is missing, wrong, contradicted or not understood. */
export function ropePositions(c: ConfigReader, options: RopeOptions = {}): RopePositions {
  const newer = record(c, "rope_parameters");
  const older = record(c, "rope_scaling");
  const outerTheta = c.optional("rope_theta");
  const read = (key: string, source: JsonRecord): RopePositions => {
    const inner = source.rope_theta ?? undefined;
    if (inner !== undefined && typeof outerTheta === "number" && inner !== outerTheta)
      disagree(`${key}.rope_theta ${shown(inner)}`, `rope_theta ${shown(outerTheta)}`);
    const theta = finiteIn(
      inner ?? outerTheta ?? newer?.rope_theta ?? options.theta ?? 10000,
      inner === undefined ? "config.json: rope_theta" : `config.json: ${key}.rope_theta`,
      { above: 0 },
    );
    return { kind: "rope", theta, ...ropeScaling(key, source, c, options) };
  };
  if (!older) return read("rope_parameters", newer ?? {});
  const positions = read("rope_scaling", older);
  if (newer) {
    const other = read("rope_parameters", newer);
    if (JSON.stringify(other) !== JSON.stringify(positions))
      disagree(`rope_scaling ${shown(older)}`, `rope_parameters ${shown(newer)}`);
  }
  return positions;
}

/** Kinds of layers that have rotary positions of their own in `rope_parameters`. */
const LAYER_KINDS = ["full_attention", "sliding_attention"] as const;
export type LayerKind = (typeof LAYER_KINDS)[number];

/**
 * Rotary positions of windowed and of other layers where `rope_parameters` has an object for each; undefined where it has not.
 * @throws PlanishError naming the key that is missing, wrong or not understood.
 */
export function ropeOfKinds(
  c: ConfigReader,
  options: RopeOptions = {},
): Record<LayerKind, RopePositions> | undefined {
  const outer = record(c, "rope_parameters");
  if (!outer || !Object.keys(outer).some((key) => LAYER_KINDS.some((kind) => kind === key)))
    return undefined;
  const of = (kind: LayerKind): RopePositions => {
    const key = `rope_parameters.${kind}`;
    const source = objectAt(outer[kind], key) ?? {};
    const theta = finiteIn(
      source.rope_theta ?? options.theta ?? 10000,
      `config.json: ${key}.rope_theta`,
      { above: 0 },
    );
    return { kind: "rope", theta, ...ropeScaling(key, source, c, options) };
  };
  for (const key of Object.keys(outer))
    if (!LAYER_KINDS.some((kind) => kind === key))
      throw new PlanishError(
        `config.json: rope_parameters has ${quoted(key)} beside ${LAYER_KINDS.join(" and ")}`,
      );
  return { full_attention: of("full_attention"), sliding_attention: of("sliding_attention") };
}

/** `partial_rotary_factor`, from where it stands: the share of a head's channels that turn. */
export function rotaryShare(c: ConfigReader, fallback: number): number {
  const inner = record(c, "rope_parameters")?.partial_rotary_factor;
  const outer = c.optional("partial_rotary_factor") ?? undefined;
  if (inner !== undefined && inner !== null && outer !== undefined && inner !== outer)
    disagree(
      `rope_parameters.partial_rotary_factor ${shown(inner)}`,
      `partial_rotary_factor ${shown(outer)}`,
    );
  return finiteIn(inner ?? outer ?? fallback, "config.json: partial_rotary_factor", {
    above: 0,
    max: 1,
  });
}

function disagree(a: string, b: string): never {
  throw new PlanishError(
    `config.json: ${a} and ${b} disagree; keep the one that the model was trained with`,
  );
}

function record(c: ConfigReader, key: string): JsonRecord | undefined {
  return objectAt(c.optional(key), key);
}

function objectAt(value: unknown, key: string): JsonRecord | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "object" || Array.isArray(value))
    throw new PlanishError(`config.json: ${key} must be an object, found ${shown(value)}`);
  return Object.keys(value).length === 0 ? undefined : (value as JsonRecord);
}

function frequencyType(value: unknown): "bfloat16" | undefined {
  if (value === undefined || value === null || value === "float32") return undefined;
  if (value === "bfloat16") return value;
  throw new PlanishError(
    `config.json: rope frequency_dtype ${shown(value)} is not supported; accepted: float32, bfloat16`,
  );
}

/** Keys that go with each type, beside those that go with all. */
const KEYS: Readonly<Record<string, readonly string[]>> = {
  default: [],
  linear: ["factor", "original_max_position_embeddings"],
  llama3: ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
  yarn: [
    ...["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"],
    ...["attention_factor", "mscale", "mscale_all_dim"],
  ],
  dynamic: ["factor", "original_max_position_embeddings"],
  longrope: [
    "factor",
    "original_max_position_embeddings",
    "short_factor",
    "long_factor",
    "attention_factor",
  ],
};
const COMMON_KEYS = ["rope_type", "type", "rope_theta", "frequency_dtype"];
/** Older names of types. */
const ALIASES: Readonly<Record<string, string>> = { su: "longrope" };

function ropeScaling(
  key: string,
  source: JsonRecord,
  c: ConfigReader,
  options: RopeOptions,
): Pick<RopePositions, "scaling" | "frequencyType"> {
  return {
    scaling: scaling(key, source, c, options),
    frequencyType: frequencyType(source.frequency_dtype),
  };
}

function scaling(
  key: string,
  source: JsonRecord,
  c: ConfigReader,
  options: RopeOptions,
): RopeScaling {
  const type = source.rope_type ?? source.type;
  if ((source.type ?? type) !== type)
    disagree(`${key}.rope_type ${shown(source.rope_type)}`, `${key}.type ${shown(source.type)}`);
  const given = type ?? (key.startsWith("rope_parameters") ? "default" : undefined);
  const name = typeof given === "string" ? (ALIASES[given] ?? given) : given;
  if (typeof name !== "string" || !Object.hasOwn(KEYS, name))
    throw new PlanishError(
      `config.json: rope scaling ${name === undefined ? "without a type" : shown(name)} is not supported; accepted types: ${Object.keys(KEYS).join(", ")}`,
    );
  refuseOtherKeys(key, name, source, options);
  const number = (inner: string, fallback?: number): number =>
    finiteIn(source[inner] ?? fallback, `config.json: ${key}.${inner}`, { above: 0 });
  const original = (fallback?: number): number =>
    integerIn(
      source.original_max_position_embeddings ??
        c.optional("original_max_position_embeddings") ??
        fallback,
      `config.json: ${key}.original_max_position_embeddings`,
      { min: 1, max: LIMITS.positions },
    );
  const { maxPositions = 2048 } = options;
  switch (name) {
    case "linear":
      return { type: "linear", factor: number("factor") };
    case "llama3": {
      const [lowFreqFactor, highFreqFactor] = [
        number("low_freq_factor"),
        number("high_freq_factor"),
      ];
      if (lowFreqFactor >= highFreqFactor)
        throw new PlanishError(
          `config.json: ${key}.low_freq_factor ${lowFreqFactor} must be below high_freq_factor ${highFreqFactor}`,
        );
      return {
        type: "llama3",
        factor: number("factor"),
        lowFreqFactor,
        highFreqFactor,
        originalMaxPositions: original(),
      };
    }
    case "yarn": {
      const originalMaxPositions = original(maxPositions);
      const factor = number("factor", maxPositions / originalMaxPositions);
      const [betaFast, betaSlow] = [number("beta_fast", 32), number("beta_slow", 1)];
      const truncate = source.truncate ?? true;
      if (typeof truncate !== "boolean")
        throw new PlanishError(
          `config.json: ${key}.truncate must be true or false, found ${shown(truncate)}`,
        );
      return {
        type: "yarn",
        factor,
        originalMaxPositions,
        betaFast,
        betaSlow,
        truncate,
        attentionFactor: number("attention_factor", yarnAttention(factor, source, number)),
      };
    }
    case "dynamic":
      return {
        type: "dynamic",
        factor: number("factor"),
        originalMaxPositions: original(maxPositions),
      };
    case "longrope": {
      const originalMaxPositions = original(maxPositions);
      const factor = number("factor", maxPositions / originalMaxPositions);
      const factors = (inner: string): readonly number[] =>
        factorsAt(source[inner], `${key}.${inner}`, options.dims);
      const attention =
        factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalMaxPositions));
      return {
        type: "longrope",
        shortFactors: factors("short_factor"),
        longFactors: factors("long_factor"),
        originalMaxPositions,
        attentionFactor: number("attention_factor", attention),
      };
    }
    default:
      return { type: "default" };
  }
}

/** 0.1·ln(factor) + 1, or the ratio of two of them with their own multipliers. */
function yarnAttention(
  factor: number,
  source: JsonRecord,
  number: (inner: string) => number,
): number {
  const of = (multiplier: number): number =>
    factor <= 1 ? 1 : 0.1 * multiplier * Math.log(factor) + 1;
  const given = (inner: string): boolean =>
    source[inner] !== undefined && source[inner] !== null && source[inner] !== 0;
  if (!given("mscale") || !given("mscale_all_dim")) return of(1);
  return of(number("mscale")) / of(number("mscale_all_dim"));
}

function factorsAt(value: unknown, key: string, dims: number | undefined): readonly number[] {
  if (!Array.isArray(value) || (dims !== undefined && value.length !== dims / 2))
    throw new PlanishError(
      `config.json: ${key} must be a list of ${dims === undefined ? "" : `${dims / 2} `}factors, one for each pair that turns, found ${shown(value)}`,
    );
  return value.map((factor, i) => finiteIn(factor, `config.json: ${key}[${i}]`, { above: 0 }));
}

function refuseOtherKeys(
  key: string,
  name: string,
  source: JsonRecord,
  options: RopeOptions,
): void {
  const known = [...COMMON_KEYS, ...KEYS[name], ...(options.known ?? [])];
  for (const [inner, value] of Object.entries(source)) {
    if (value === null || known.includes(inner)) continue;
    if (["factor", "attention_factor"].includes(inner) && value === 1) continue;
    if (inner === "partial_rotary_factor" && (options.partial || value === 1)) continue;
    throw new PlanishError(
      `config.json: ${key} has ${quoted(inner)} ${shown(value)}, which goes with no rope type ${quoted(name)} that is read (${known.join(", ")})`,
    );
  }
}
