/** The ways that `planish quantize --auto` weighs, with what each is expected to cost and to give. */
import { parseScheme, type Scheme } from "../../backend/contract/scheme.js";
import type { Backend } from "../../backend/contract/training.js";
import type { DecodeRates } from "../../measure/decode-rates.js";
import { blockPrograms } from "../../models/architectures/index.js";
import { keptScheme } from "../../models/kept.js";
import { describedBytes, endLayerTensors } from "../../quantize/artifact/tensors.js";
import { findMethod } from "../../quantize/methods/index.js";
import { planRun } from "../../quantize/run/preview.js";
import type { OpenModel } from "../../quantize/schema/method.js";
import type { RoundedWay } from "../../quantize/run/rounded.js";

/** One way to quantize. */
export interface Way {
  readonly method: string;
  readonly preset: string;
  /** Absent: the source's own grids. */
  readonly scheme?: string;
  /** Fields that replace the preset's. */
  readonly recipe: Readonly<Record<string, number>>;
}

/** A way with its costs, as far as sizes and speeds tell them. */
export interface Candidate extends Way {
  readonly bytes: number;
  /** Of the run, as estimated. */
  readonly seconds: number;
  /** Of one decoded token, by reading weights alone. */
  readonly decodeSeconds: number;
  /** How rounding alone would be tried out. */
  readonly rounded: RoundedWay;
}

/** A candidate that was tried out. */
export interface Judged extends Candidate {
  /** Expected KL to the original in nats a token. */
  readonly kl: number;
}

/**
 * What learning leaves of the divergence of rounding behind random rotations: at most this much in our runs, where four-bit
 * weights in groups are concerned (docs/results/accuracy.md).
 */
export const LEARNED_SHARE = 0.5;

/** Windows and epochs of `fast`, from its own downwards, for those who have less time. */
const SHORTER = [
  { samples: 40, epochs: 4 },
  { samples: 24, epochs: 4 },
  { samples: 16, epochs: 3 },
  { samples: 8, epochs: 2 },
] as const;

/** The ways worth weighing for a model; those of a method that cannot serve it are left out. */
export function waysFor(model: OpenModel, seconds: number, backend: Backend): Way[] {
  const widths = blockPrograms(model.config).flatMap(({ linears }) =>
    Object.values(linears).map(({ shape }) => shape[1]),
  );
  const { config } = model;
  const group = [64, 32].find(
    (size) =>
      widths.every((width) => width % size === 0) &&
      (config.embeddingSize ?? config.hiddenSize) % size === 0,
  );
  const g = group ? `g${group}` : "";
  const table = group ? `h8${group === 64 ? "" : g}` : "";
  const ways: Way[] = [];
  if ("scheme" in keptScheme(model.source, model.architecture, config))
    for (const kvBits of [8, 4])
      ways.push({ method: "keep", preset: "default", recipe: { kvBits } });
  for (const scheme of [
    `w4${g}a8${g}kv8${table}`,
    `w4${g}a8${g}kv4${table}`,
    `w4a8${g}kv4${table}`,
  ]) {
    ways.push({ method: "rtn", preset: "default", scheme, recipe: {} });
    const learned = SHORTER.map((recipe) => ({
      method: "flatquant",
      preset: "fast",
      scheme,
      recipe,
    }));
    const fits = learned.find((way) => secondsOf(model, way, backend) <= seconds);
    // Too long at its shortest: weighed all the same, so that it is seen what the limit keeps out.
    ways.push(fits ?? learned[learned.length - 1]);
  }
  ways.push({ method: "rtn", preset: "default", scheme: `w8a8${g}kv8${table}`, recipe: {} });
  const distinct = new Map(ways.map((way) => [JSON.stringify(way), way]));
  return [...distinct.values()];
}

function secondsOf({ source }: OpenModel, way: Way, backend: Backend): number {
  const scheme = way.scheme === undefined ? undefined : parseScheme(way.scheme);
  const { method, preset, recipe } = way;
  return planRun({ backend, source, method, preset, recipe, scheme }).estimate.seconds;
}

/** A way's size, time and speed. @throws PlanishError where the method cannot serve the model. */
export function costOf(
  model: OpenModel,
  way: Way,
  rates: DecodeRates,
  backend: Backend,
): Candidate {
  const { source, architecture, config } = model;
  const { method, preset, recipe } = way;
  const asked = way.scheme === undefined ? undefined : parseScheme(way.scheme);
  const plan = planRun({ backend, source, method, preset, recipe, scheme: asked });
  const own = asked ?? keptOf(model, recipe.kvBits);
  const ends = endLayerTensors(architecture, config, own)
    .filter(({ name }) => name.includes(architecture.names.embedding.replace(/\.weight$/, "")))
    .reduce((sum, tensor) => sum + describedBytes(tensor), 0);
  // The head is the embedding, or as large; of an untied embedding a token reads one row.
  const head = own.tableBits ? ends / rates.int8 : ends / rates.bf16;
  const linears = plan.artifactBytes - (config.tiedEmbeddings ? ends : 2 * ends);
  const kind = own.weightBits <= 4 ? rates.int4 : rates.int8;
  const learns = (plan.calibration?.stepsPerBlock ?? 0) > 0;
  return {
    ...way,
    bytes: plan.artifactBytes,
    seconds: plan.estimate.seconds,
    decodeSeconds: Math.max(0, linears) / kind + head,
    rounded: {
      // Kept weights are exact: only activations and cache are rounded.
      scheme: way.scheme === undefined ? withExactWeights(own) : own,
      rotates: learns,
    },
  };
}

function keptOf(model: OpenModel, kvBits: number): Scheme {
  const kept = findMethod("keep").keep?.(model, { kvBits });
  if (!kept) throw new Error("the method keep keeps nothing");
  return kept.scheme;
}

function withExactWeights(scheme: Scheme): Scheme {
  const { blocks: _blocks, weightGroup: _group, weightOffset: _offset, ...rest } = scheme;
  return { ...rest, weightBits: 16 };
}

/** Expected divergence: of methods that learn, what learning leaves. */
export function judged(candidate: Candidate, rounded: number): Judged {
  return { ...candidate, kl: rounded * (candidate.rounded.rotates ? LEARNED_SHARE : 1) };
}
