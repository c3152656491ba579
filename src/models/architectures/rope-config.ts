/**
 * Rotary positions as config.json gives them, in both spellings: `rope_theta` + `rope_scaling`, and the newer
 * `rope_parameters`. Every key of them is read or refused; where both spellings are present they must agree.
 */
import { finiteIn, integerIn, LIMITS, quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { ConfigReader, ModelConfig } from "../config.js";
import type { RopeScaling } from "../../backend/contract/program.js";

type Rope = Extract<ModelConfig["positions"], { kind: "rope" }>;
type JsonRecord = Readonly<Record<string, unknown>>;

/** @throws PlanishError naming the key that is missing, wrong, contradicted or not understood. */
export function ropePositions(c: ConfigReader): Rope {
  const newer = record(c, "rope_parameters");
  const older = record(c, "rope_scaling");
  const outerTheta = c.optional("rope_theta");
  const read = (key: string, source: JsonRecord): Rope => {
    const inner = source.rope_theta ?? undefined;
    if (inner !== undefined && typeof outerTheta === "number" && inner !== outerTheta)
      disagree(`${key}.rope_theta ${shown(inner)}`, `rope_theta ${shown(outerTheta)}`);
    const theta = finiteIn(
      inner ?? outerTheta ?? newer?.rope_theta ?? 10000,
      inner === undefined ? "config.json: rope_theta" : `config.json: ${key}.rope_theta`,
      { above: 0 },
    );
    return { kind: "rope", theta, scaling: scaling(key, source, c), frequencyType: frequencyType(source.frequency_dtype) };
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

function disagree(a: string, b: string): never {
  throw new PlanishError(`config.json: ${a} and ${b} disagree; keep the one that the model was trained with`);
}

function record(c: ConfigReader, key: string): JsonRecord | undefined {
  const value = c.optional(key);
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
};
const COMMON_KEYS = ["rope_type", "type", "rope_theta", "frequency_dtype"];

function scaling(key: string, source: JsonRecord, c: ConfigReader): RopeScaling {
  const type = source.rope_type ?? source.type;
  if ((source.type ?? type) !== type)
    disagree(`${key}.rope_type ${shown(source.rope_type)}`, `${key}.type ${shown(source.type)}`);
  const name = type ?? (key === "rope_parameters" ? "default" : undefined);
  if (typeof name !== "string" || !Object.hasOwn(KEYS, name))
    throw new PlanishError(
      `config.json: rope scaling ${name === undefined ? "without a type" : shown(name)} is not supported; accepted types: ${Object.keys(KEYS).join(", ")}`,
    );
  for (const [inner, value] of Object.entries(source)) {
    if (value === null || COMMON_KEYS.includes(inner) || KEYS[name].includes(inner)) continue;
    if (["factor", "partial_rotary_factor", "attention_factor"].includes(inner) && value === 1) continue;
    throw new PlanishError(
      `config.json: ${key} has ${quoted(inner)} ${shown(value)}, which goes with no rope type ${quoted(name)} that is read (${[...COMMON_KEYS, ...KEYS[name]].join(", ")})`,
    );
  }
  const number = (inner: string): number => finiteIn(source[inner], `config.json: ${key}.${inner}`, { above: 0 });
  if (name === "linear") return { type: "linear", factor: number("factor") };
  if (name !== "llama3") return { type: "default" };
  const [lowFreqFactor, highFreqFactor] = [number("low_freq_factor"), number("high_freq_factor")];
  if (lowFreqFactor >= highFreqFactor)
    throw new PlanishError(
      `config.json: ${key}.low_freq_factor ${lowFreqFactor} must be below high_freq_factor ${highFreqFactor}`,
    );
  return {
    type: "llama3",
    factor: number("factor"),
    lowFreqFactor,
    highFreqFactor,
    originalMaxPositions: integerIn(
      source.original_max_position_embeddings ?? c.optional("original_max_position_embeddings"),
      `config.json: ${key}.original_max_position_embeddings`,
      { min: 1, max: LIMITS.positions },
    ),
  };
}
