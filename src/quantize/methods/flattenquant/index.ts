/**
 * FlattenQuant: static grids with one scale per tensor, made accurate by splitting large channels over copies, and a
 * choice of 4 or 8 bits for each linear. Source: Zhang et al., "FlattenQuant" (LREC-COLING 2024, arXiv 2402.17985), as
 * told in docs/methods.md, flattenquant, with our choices where the paper leaves one open.
 *
 * Per block: maxima of the full-precision activations, smoothing factors, thresholds and copies per linear, one pass for
 * histograms, bits. Rounding, folding and packing are the pipeline's, as for every method.
 */
import type { RealArray } from "../../../backend/contract/training.js";
import { refuseGroups } from "../../block/full-range.js";
import { UsageError } from "../../../common/errors.js";
import { relativeError } from "../../../common/ratio.js";
import { binary } from "../../../tensor/ops/index.js";
import { freeTensor, frozen, type Tensor } from "../../../tensor/tensor.js";
import { measureBlock } from "../../block/block-training.js";
import { captureMaxima, observeSites, type SiteMaxima } from "../../calibration/maxima.js";
import type { ParameterValues } from "../../schema/parameters.js";
import { gridParameters, type TensorGrid } from "../../grids/tensor.js";
import type { BlockJob, BlockOutcome, LinearFacts, Method } from "../../schema/method.js";
import { needOfWindows } from "../../calibration/windows-recipe.js";
import { gptqOf } from "../../schema/gptq-settings.js";
import { formatScheme, type Scheme } from "../../../backend/contract/scheme.js";
import { bindSimulated } from "../../block/simulated-block.js";
import { planTransforms } from "../../transforms/assignment.js";
import { columnMaxima, copiesOf, NO_SPLIT, splitRows } from "../../transforms/split.js";
import { chooseByModel, withAlternative } from "./choose.js";
import { chooseBits, FlattenedHistogram, type BitChoice, type SideDivergence } from "./bits.js";
import { columnPower, RowSample, SEARCH_ROWS, searchReach } from "./reach.js";
import { blockError } from "./sensitivity.js";
import { flattenQuantPresets, flattenQuantRecipe, type FlattenQuantRecipe } from "./recipe.js";
import {
  smoothBlock,
  smoothedMaxima,
  smoothingFolds,
  type SmoothedWeights,
  type SmoothingFactors,
} from "./smoothing.js";
import { countOutliers, flatten, type Flattening } from "./thresholds.js";
import {
  siteOfLinear,
  type LinearName,
  type LinearSite,
} from "../../../backend/contract/program.js";

/** Rows of an activation in its histogram, at most: a few million values for one curve. Maxima are those of all rows. */
const HISTOGRAM_ROWS = 16384;

/** Windows on which each linear's error is measured. */
const ERROR_WINDOWS = 4;

export const flattenquant: Method<FlattenQuantRecipe> = {
  name: "flattenquant",
  summary:
    "static per-tensor scales with large channels split, 4 or 8 bits per linear (Zhang et al., 2024)",
  recipe: flattenQuantRecipe,
  presets: flattenQuantPresets,
  defaultPreset: "default",
  calibration: (recipe) => {
    const need = needOfWindows(recipe, { secondMoments: recipe.rounding === "gptq" });
    return recipe.criterion === "model" ? { ...need, ...BY_MODEL } : need;
  },
  gptq: gptqOf,
  check: (_config, scheme) => void lowestBits(scheme),
  plan: (program, scheme) => planTransforms(program, scheme, { diag: true }),
  calibrateBlock,
  refine: chooseByModel,
};

/** The stage after the blocks that criterion "model" needs: one pass over the model. */
const BY_MODEL = { refineSteps: 1, refineLabel: "choosing bits", refineStreams: true } as const;

/** @throws UsageError for a scheme that FlattenQuant's rule cannot serve. */
function lowestBits(scheme: Scheme): 4 | 8 {
  refuseGroups('method "flattenquant"', scheme);
  const { weightBits, activationBits } = scheme;
  if (weightBits === activationBits && (weightBits === 4 || weightBits === 8)) return weightBits;
  throw new UsageError(
    `method "flattenquant" runs each linear at 4 or at 8 bits on both sides, and scheme ${formatScheme(scheme)} asks for something else; give w4a4kv… (4 where the rule allows, 8 elsewhere) or w8a8kv… (8 everywhere)`,
  );
}

/** What has been decided about one linear, and what is still being found out. */
interface Layer {
  readonly role: LinearName;
  readonly path: string;
  readonly weight: Float64Array;
  readonly rows: number;
  readonly channels: number;
  readonly flattening: Flattening;
  readonly activations: FlattenedHistogram;
  readonly weightDivergence: SideDivergence;
  /** Largest magnitudes of what the plain grids would have to hold, unsmoothed and unsplit. */
  readonly plainMaxima: { readonly activation: Float64Array; readonly weight: Float64Array };
}

async function calibrateBlock(job: BlockJob<FlattenQuantRecipe>): Promise<BlockOutcome> {
  const { backend, block, program, weights: original, inputs, layer: number, scheme, recipe } = job;
  const lowest = lowestBits(scheme);
  const maxima = captureMaxima(backend, program, original, inputs, number);
  const { factors, weights } = smoothBlock(block, program, maxima, recipe);
  const layers = Object.keys(block.linears).map((role) =>
    planLayer(job, role, maxima, factors, weights),
  );
  const tokens = inputs.samples * inputs.time;
  const every = Math.ceil(tokens / SEARCH_ROWS);
  const counted = Math.ceil(tokens / HISTOGRAM_ROWS);
  const samples = new Map(
    layers.map(({ role, channels }) => [
      siteOfLinear(program, role).site,
      new RowSample(channels, every),
    ]),
  );
  observeSites(job, ({ g, site, x, roles }) => {
    const data = g.read(x);
    samples.get(site)?.add(data);
    for (const layer of layers)
      if (roles.includes(layer.role)) layer.activations.add(data, factors[site], counted);
  });

  const smoothing = new Map<string, { shape: readonly number[]; data: RealArray }>();
  for (const [site, data] of Object.entries(factors))
    if (data)
      smoothing.set(`${site}.${smoothingFolds(program, site, recipe.rows) ? "diag" : "factor"}`, {
        shape: [data.length],
        data,
      });
  const reached = layers.map((layer) => {
    const { site } = siteOfLinear(program, layer.role);
    const values = samples.get(site)?.values() ?? new Float32Array();
    const reach = searchedReach(layer, values, factors[site], recipe.reach);
    return { ...layer, reach, activation: layer.activations.divergence() };
  });
  const withBits = (bitsOf: (layer: ReachedLayer) => 4 | 8): ParameterValues =>
    new Map([
      ...smoothing,
      ...reached.flatMap((layer) => [...gridParameters(layer.path, gridOf(layer, bitsOf(layer)))]),
    ]);
  const { criterion, gamma } = recipe;
  const decide = (choose: (layer: ReachedLayer) => BitChoice) => {
    const decided = reached.map((layer): DecidedLayer => ({ ...layer, choice: choose(layer) }));
    const bitsOf = new Map(decided.map(({ role, choice }) => [role, choice.bits]));
    const parameters = withBits(({ role }) => bitsOf.get(role) ?? 8);
    return { parameters, linears: tableOf(job, decided, parameters, factors, maxima) };
  };
  const report = async ({ parameters, linears }: ReturnType<typeof decide>) => {
    const outcome = await measureBlock(job, parameters);
    return { ...outcome, report: { ...outcome.report, linears } };
  };
  if (lowest === 8) return report(decide(() => ({ bits: 8, rule: "scheme" })));
  if (criterion === "model") {
    const [at8, at4] = ([8, 4] as const).map((bits) => decide(() => ({ bits, rule: "undecided" })));
    const outcome = await report(at8);
    return {
      parameters: withAlternative(outcome.parameters, at4.parameters),
      report: { ...outcome.report, alternatives: at4.linears },
    };
  }
  const error = (four?: ReachedLayer) =>
    blockError(
      job,
      withBits((layer) => (layer === four ? 4 : 8)),
    );
  const all8 = criterion === "output" ? error() : 0;
  return report(
    decide((layer) => {
      const added = () => error(layer) - all8;
      return chooseBits(layer.activation, layer.weightDivergence, added, { criterion, gamma });
    }),
  );
}

/** What a block whose bits are decided reports of each linear. */
function tableOf(
  job: BlockJob<FlattenQuantRecipe>,
  decided: readonly DecidedLayer[],
  parameters: ParameterValues,
  factors: SmoothingFactors,
  maxima: SiteMaxima,
): Record<string, LinearFacts> {
  const errors = measureLinears(job, decided, parameters, factors);
  const unknown = { before: NaN, after: NaN };
  return Object.fromEntries(
    decided.map((layer) => [
      layer.path,
      facts(
        layer,
        siteOfLinear(job.program, layer.role).site,
        factors,
        maxima,
        errors.get(layer.role) ?? unknown,
      ),
    ]),
  );
}

function planLayer(
  { block, program, recipe }: BlockJob<FlattenQuantRecipe>,
  role: LinearName,
  maxima: SiteMaxima,
  factors: SmoothingFactors,
  weights: SmoothedWeights,
): Layer {
  const original = block.linears[role];
  const weight = weights[role];
  if (!original || !weight) throw new Error(`block has no "${role}"`);
  const [rows, channels] = original.weight.shape;
  const flattening = flatten(
    smoothedMaxima(siteOfLinear(program, role).site, maxima, factors),
    columnMaxima(weight, channels),
    recipe,
  );
  const histogram = new FlattenedHistogram(channels, flattening, "weight");
  histogram.add(weight);
  return {
    role,
    path: original.path,
    weight,
    rows,
    channels,
    flattening,
    activations: new FlattenedHistogram(channels, flattening, "activation"),
    weightDivergence: histogram.divergence(),
    plainMaxima: {
      activation: maxima[siteOfLinear(program, role).site],
      weight: columnMaxima(original.weight.data, channels),
    },
  };
}

/** Shares of both thresholds that a 4-bit grid reaches to. */
interface Reach {
  readonly activation: number;
  readonly weight: number;
}

type ReachedLayer = Layer & { readonly activation: SideDivergence; readonly reach: Reach };
type DecidedLayer = ReachedLayer & { readonly choice: BitChoice };

/** `values`: some rows of the activation that the linear reads. */
function searchedReach(
  { flattening, weight, channels }: Layer,
  values: RealArray,
  factor: Float64Array | undefined,
  reach: FlattenQuantRecipe["reach"],
): Reach {
  if (reach === "calibrated") return { activation: 1, weight: 1 };
  const { channel, part, weightPart } = flattening.split;
  const power = columnPower(values, channels).map((sum, j) => sum * (factor?.[j] ?? 1) ** 2);
  return {
    activation: searchReach({
      values,
      factor,
      copies: copiesOf(channels, channel, part),
      threshold: flattening.activationThreshold,
      power: columnPower(weight, channels),
      bits: 4,
    }),
    weight: searchReach({
      values: weight,
      copies: copiesOf(channels, channel, weightPart),
      threshold: flattening.weightThreshold,
      power,
      bits: 4,
    }),
  };
}

function gridOf({ flattening, reach }: ReachedLayer, bits: 4 | 8): TensorGrid {
  const share = bits === 4 ? reach : { activation: 1, weight: 1 };
  return {
    weightBits: bits,
    activationBits: bits,
    weightThreshold: flattening.weightThreshold * share.weight,
    activationThreshold: flattening.activationThreshold * share.activation,
    split: flattening.split,
  };
}

/** Relative squared error of a linear's output: on plain per-tensor grids of the chosen bits, and flattened. */
interface LinearError {
  readonly before: number;
  readonly after: number;
}

/**
 * Measures each linear alone on full-precision activations of a few windows, weights to the nearest integer: with plain
 * per-tensor grids as wide as tensor maxima, and with the parameters found.
 */
function measureLinears(
  job: BlockJob<FlattenQuantRecipe>,
  layers: readonly DecidedLayer[],
  parameters: ParameterValues,
  factors: SmoothingFactors,
): Map<LinearName, LinearError> {
  const { backend, program, scheme, weights } = job;
  const description = { program, scheme };
  const largest = (values: Float64Array) => values.reduce((a, b) => Math.max(a, b), 0);
  const plain = new Map(
    layers.flatMap(({ path, choice, plainMaxima }) => [
      ...gridParameters(path, {
        weightBits: choice.bits,
        activationBits: choice.bits,
        weightThreshold: largest(plainMaxima.weight),
        activationThreshold: largest(plainMaxima.activation),
        split: NO_SPLIT,
      }),
    ]),
  );
  const variants = [plain, parameters].map((values) => {
    const tensors = new Map<string, Tensor>();
    for (const [name, { shape, data }] of values) tensors.set(name, frozen(backend, shape, data));
    return { tensors, smoothed: values === parameters };
  });
  const sums = new Map(layers.map(({ role }) => [role, { errors: [0, 0], power: 0 }]));
  observeSites(
    job,
    ({ g, site, x, roles, outputs }) => {
      const diag = factors[site];
      variants.forEach(({ tensors, smoothed }, which) => {
        const bound = bindSimulated(g, description, weights, tensors);
        // A factor that stands in the rows of the linear before has been applied when the activation arrives.
        const carried = smoothed && diag && bound.carries(site);
        const input = carried ? binary(g, "mul", x, g.constant([diag.length], diag), "row") : x;
        const read = bound.transform(g, site, input);
        bound.linears(g, site, read, roles).forEach((output, i) => {
          const sum = sums.get(roles[i]);
          if (!sum) return;
          const [expected, found] = [g.read(outputs[i]), g.read(output)];
          const rows = smoothed ? bound.rowFactors(roles[i]) : undefined;
          for (let e = 0; e < found.length; e++) {
            const value = rows ? found[e] / rows[e % rows.length] : found[e];
            sum.errors[which] += (value - expected[e]) ** 2;
            if (which === 0) sum.power += expected[e] ** 2;
          }
        });
      });
    },
    ERROR_WINDOWS,
  );
  for (const { tensors } of variants)
    for (const tensor of tensors.values()) freeTensor(backend, tensor);
  return new Map(
    [...sums].map(([role, { errors, power }]) => [
      role,
      { before: relativeError(errors[0], power), after: relativeError(errors[1], power) },
    ]),
  );
}

/** The row of the per-layer table. */
function facts(
  layer: DecidedLayer,
  site: LinearSite,
  factors: SmoothingFactors,
  maxima: SiteMaxima,
  error: LinearError,
): LinearFacts {
  const { rows, channels, weight, flattening, choice, activation, weightDivergence } = layer;
  const s = (factors[site] ?? new Float64Array([1])).map((f) => 1 / f);
  const smallest = s.reduce((a, b) => Math.min(a, b));
  const largest = s.reduce((a, b) => Math.max(a, b));
  const smoothed = smoothedMaxima(site, maxima, factors);
  return {
    bits: choice.bits,
    rule: choice.rule,
    kl4X: activation.kl4,
    kl8X: activation.kl8,
    kl4W: weightDivergence.kl4,
    kl8W: weightDivergence.kl8,
    splitX: flattening.splitActivations,
    splitW: flattening.splitWeights,
    expansion: flattening.expansion,
    capFactor: flattening.capFactor,
    reachX: choice.bits === 4 ? layer.reach.activation : 1,
    reachW: choice.bits === 4 ? layer.reach.weight : 1,
    smoothingRange: smallest > 0 ? largest / smallest : 1,
    outliersX: countOutliers(layer.plainMaxima.activation),
    outliersXAfter: countOutliers(flattenedMaxima(smoothed, flattening, "activation")),
    outliersW: countOutliers(layer.plainMaxima.weight),
    outliersWAfter: countOutliers(
      flattenedMaxima(columnMaxima(weight, channels), flattening, "weight"),
    ),
    errorBefore: error.before,
    errorAfter: error.after,
    multiplyAdds: rows * (channels + flattening.split.channel.length),
  };
}

/** Largest magnitudes of one side's columns once split. */
function flattenedMaxima(
  maxima: Float64Array,
  { split, activationThreshold, weightThreshold }: Flattening,
  side: "activation" | "weight",
): Float64Array {
  const [threshold, part] =
    side === "activation" ? [activationThreshold, split.part] : [weightThreshold, split.weightPart];
  return splitRows(maxima, 1, maxima.length, threshold, split.channel, part);
}
