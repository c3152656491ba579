/**
 * Bits where they are needed: which sites of which blocks get more than the scheme's, so that the model stays nearest to full
 * precision within a size, or smallest within a divergence (docs/methods.md, Bits by budget).
 *
 * What a site costs at the scheme's bits is measured by giving them to it alone, with 8 everywhere else, on a little
 * calibration text, rounded to nearest: all such variants travel through the model together (`variants.ts`). Methods that
 * learn matrices are stood in for by random rotations, which cost nothing to find.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend } from "../../backend/contract/training.js";
import { sitesOf, type BlockProgram, type LinearSite } from "../../backend/contract/program.js";
import {
  formatScheme,
  type MatrixGrid,
  type NarrowBits,
  type OwnGrids,
  type Scheme,
} from "../../backend/contract/scheme.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { InterruptedError, UsageError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import type { ProgressSink } from "../../common/progress.js";
import { Random } from "../../common/random.js";
import { blockProgram } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { plainHooks } from "../../models/interpret.js";
import { embed, loadEndLayers } from "../../models/language-model.js";
import { freeBlock, readBlock, uploadBlock } from "../../models/weights.js";
import { freeTensor, frozen, Graph, type Tensor } from "../../tensor/tensor.js";
import { simulatedHooks } from "../artifact/simulated-model.js";
import { describedBytes, ownWeightTensors } from "../artifact/tensors.js";
import { freeEndLayers } from "../calibration/forward.js";
import { divergences, runStates, type VariantText } from "../calibration/variants.js";
import type { TokenWindows } from "../schema/windows.js";
import { rotations } from "../transforms/rotations.js";

/** What a run may cost; at least one of the two. */
export interface Budget {
  /** Bytes of the artifact's tensors. */
  readonly size?: number;
  /** KL divergence from full precision in nats per token, as predicted. */
  readonly kl?: number;
}

/** The text that sites are judged on. */
export const JUDGED = { samples: 4, seqLen: 128 } as const;

export interface BitsJob {
  readonly backend: Backend;
  readonly source: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  readonly windows: TokenWindows;
  readonly seed: number;
  /** The method learns matrices, which rotations stand in for. */
  readonly rotates: boolean;
  readonly progress: ProgressSink;
  readonly signal?: AbortSignal;
}

/** One thing that can have more bits: a site's weights, or its activation. */
export interface Unit {
  readonly layer: number;
  readonly site: LinearSite;
  readonly of: "weights" | "activation";
  /** From the scheme's bits up; the last is what all others were judged beside. */
  readonly levels: readonly Level[];
}

export interface Level {
  readonly bits: NarrowBits;
  /** KL that this level adds to the model with the last level everywhere. */
  readonly kl: number;
  /** Of the site's weights as they are stored; 0 for activations, whose codes take a byte each in every kernel. */
  readonly bytes: number;
}

export interface Sensitivities {
  /** KL with every unit at its last level: what cache, tables and 8 bits cost. */
  readonly floor: number;
  readonly units: readonly Unit[];
}

const WIDER: readonly NarrowBits[] = [4, 6, 8];

/** Widths from `bits` up that differ in what they are worth: fewer than 4 bits are stored as 4. */
function ladder(bits: NarrowBits, widths: readonly NarrowBits[]): NarrowBits[] {
  return [bits, ...widths.filter((width) => width > bits)];
}

/** A weight's grid at other bits than the scheme's; 8 bits have signed codes and no offsets. */
function gridAt({ weightGroup, weightOffset }: Scheme, bits: NarrowBits): MatrixGrid {
  return {
    bits,
    ...(weightGroup && { group: weightGroup }),
    ...(weightOffset && bits < 8 && { offset: true }),
  };
}

/** The widths of a scheme's units. Without groups 6 bits are stored as 8. */
function ladders(scheme: Scheme): { weights: NarrowBits[]; activation: NarrowBits[] } {
  const { weightBits, weightGroup, activationBits } = scheme;
  return {
    weights:
      weightBits < 16
        ? ladder(
            weightBits as NarrowBits,
            WIDER.filter((bits) => weightGroup ?? bits !== 6),
          )
        : [],
    activation: activationBits < 16 ? ladder(activationBits as NarrowBits, [8]) : [],
  };
}

/** A block's grids where every unit has the widest, but for one. */
function withOne(
  scheme: Scheme,
  program: BlockProgram,
  one?: { readonly site: LinearSite; readonly of: Unit["of"]; readonly bits: NarrowBits },
): OwnGrids {
  const { weights, activation } = ladders(scheme);
  const level = (site: LinearSite, of: Unit["of"], levels: readonly NarrowBits[]) =>
    one?.site === site && one.of === of ? one.bits : levels[levels.length - 1];
  const places = sitesOf(program);
  return {
    weights: Object.fromEntries(
      weights.length === 0
        ? []
        : places.flatMap(({ site, linears }) =>
            linears.map((role) => [
              program.linears[role].path,
              gridAt(scheme, level(site, "weights", weights)),
            ]),
          ),
    ),
    activationBits: Object.fromEntries(
      activation.length === 0
        ? []
        : places.map(({ site }) => [site, level(site, "activation", activation)]),
    ),
  };
}

function weightBytes(program: BlockProgram, site: LinearSite, grid: MatrixGrid): number {
  const place = sitesOf(program).find((each) => each.site === site);
  return (place?.linears ?? [])
    .flatMap((role) => ownWeightTensors("", program.linears[role].shape, grid))
    .reduce((sum, tensor) => sum + describedBytes(tensor), 0);
}

/** Measures what every unit costs at every level. @throws InterruptedError on the signal. */
export async function measureSensitivities(job: BitsJob): Promise<Sensitivities> {
  const { backend, source, architecture, config, scheme, windows } = job;
  const endLayers = loadEndLayers(backend, source, architecture, config);
  const { samples, time } = windows;
  const text: VariantText = { backend, config, endLayers, windows: samples, time };
  const task = job.progress.task("judging sites", config.numLayers);
  const found: { layer: number; site: LinearSite; of: Unit["of"]; bits: NarrowBits }[] = [];
  let teacher: Float32Array;
  {
    using g = new Graph(backend);
    teacher = Float32Array.from(g.read(embed(g, config, endLayers, windows.ids, samples)));
  }
  let states = [teacher];
  const { weights: weightLevels, activation: activationLevels } = ladders(scheme);
  for (let layer = 0; layer < config.numLayers; layer++) {
    if (job.signal?.aborted) throw new InterruptedError(`stopped while block ${layer} was judged`);
    const program = blockProgram(config, layer);
    const weights = uploadBlock(backend, readBlock(source, architecture, config, layer));
    const params = job.rotates ? standIn(job, program, layer) : new Map<string, Tensor>();
    const through = (own: OwnGrids, from: readonly Float32Array[]): Float32Array[] => {
      const description = { program, scheme: { ...scheme, own } };
      const hooks = simulatedHooks(description, weights, params);
      return runStates(text, { weights, hooks }, from, layer);
    };
    const [entering] = states;
    const behind = through(withOne(scheme, program), states);
    for (const { site } of sitesOf(program))
      for (const [of, levels] of [
        ["weights", weightLevels],
        ["activation", activationLevels],
      ] as const)
        for (const bits of levels.slice(0, -1)) {
          behind.push(...through(withOne(scheme, program, { site, of, bits }), [entering]));
          found.push({ layer, site, of, bits });
          await nextTurn();
        }
    states = behind;
    [teacher] = runStates(text, { weights, hooks: plainHooks(weights) }, [teacher], layer);
    freeBlock(backend, weights);
    for (const tensor of params.values()) freeTensor(backend, tensor);
    task.advance();
  }
  const [floor, ...each] = divergences(text, teacher, states);
  freeEndLayers(backend, endLayers);
  task.done();
  return { floor, units: unitsOf(job, found, each, floor) };
}

function unitsOf(
  { config, scheme }: BitsJob,
  found: readonly Pick<Unit & Level, "layer" | "site" | "of" | "bits">[],
  each: readonly number[],
  floor: number,
): Unit[] {
  const { weights, activation } = ladders(scheme);
  return Array.from({ length: config.numLayers }, (_, layer) => {
    const program = blockProgram(config, layer);
    return sitesOf(program).flatMap(({ site }) =>
      (["weights", "activation"] as const).map((of): Unit => ({
        layer,
        site,
        of,
        levels: (of === "weights" ? weights : activation).map((bits): Level => {
          const at = found.findIndex(
            (f) => f.layer === layer && f.site === site && f.of === of && f.bits === bits,
          );
          return {
            bits,
            // What text as short as this makes negative is nothing.
            kl: at < 0 ? 0 : Math.max(0, each[at] - floor),
            bytes: of === "weights" ? weightBytes(program, site, gridAt(scheme, bits)) : 0,
          };
        }),
      })),
    );
  })
    .flat()
    .filter(({ levels }) => levels.length > 1);
}

function standIn({ backend, scheme, seed }: BitsJob, program: BlockProgram, layer: number) {
  const values = rotations(program, scheme, Random.for(seed, "block", layer));
  return new Map(
    [...values].map(([name, { shape, data }]) => [name, frozen(backend, shape, data)]),
  );
}

export interface BitChoice {
  /** Level of each unit, by its index in `levels`. */
  readonly levels: readonly number[];
  /** KL as predicted: the floor and what every unit adds. */
  readonly kl: number;
  /** Bytes beyond those of the scheme everywhere. */
  readonly moreBytes: number;
}

/**
 * Raises units one level after another, the one that takes away most KL for its bytes first, while the size allows it and
 * the divergence asks for it. A level between two that are together the better buy is passed over.
 * @param room Bytes that may be added.
 */
export function chooseLevels(
  { floor, units }: Sensitivities,
  { room, kl: wanted }: { readonly room?: number; readonly kl?: number },
): BitChoice {
  const levels = units.map(() => 0);
  let kl = floor + units.reduce((sum, { levels: [first] }) => sum + first.kl, 0);
  let moreBytes = 0;
  for (;;) {
    if (wanted !== undefined && kl <= wanted) break;
    let best: { unit: number; to: number; gain: number; bytes: number } | undefined;
    for (const [unit, { levels: steps }] of units.entries())
      for (let to = levels[unit] + 1; to < steps.length; to++) {
        const gain = steps[levels[unit]].kl - steps[to].kl;
        const bytes = steps[to].bytes - steps[levels[unit]].bytes;
        if (gain <= 0 || moreBytes + bytes > (room ?? Infinity)) continue;
        // Of what costs nothing the largest gain first.
        if (!best || gain * Math.max(best.bytes, 1e-9) > best.gain * Math.max(bytes, 1e-9))
          best = { unit, to, gain, bytes };
      }
    if (!best) break;
    levels[best.unit] = best.to;
    kl -= best.gain;
    moreBytes += best.bytes;
  }
  return { levels, kl, moreBytes };
}

/** The scheme with what was chosen. */
export function schemeWith(
  scheme: Scheme,
  config: ModelConfig,
  { units }: Sensitivities,
  { levels }: BitChoice,
): Scheme {
  const blocks = Array.from({ length: config.numLayers }, (_, layer): OwnGrids => {
    const program = blockProgram(config, layer);
    const weights: Record<string, MatrixGrid> = {};
    const activationBits: Record<string, NarrowBits> = {};
    for (const [i, unit] of units.entries()) {
      if (unit.layer !== layer || levels[i] === 0) continue;
      const { bits } = unit.levels[levels[i]];
      if (unit.of === "activation") activationBits[unit.site] = bits;
      else
        for (const place of sitesOf(program))
          if (place.site === unit.site)
            for (const role of place.linears)
              weights[program.linears[role].path] = gridAt(scheme, bits);
    }
    return {
      ...(Object.keys(weights).length > 0 && { weights }),
      ...(Object.keys(activationBits).length > 0 && { activationBits }),
    };
  });
  return { ...scheme, blocks };
}

/** What was chosen within a budget, and what it is expected to be worth. */
export interface ChosenBits {
  readonly scheme: Scheme;
  /** As `quantization.json` keeps it. */
  readonly record: Budget & {
    readonly predictedKl: number;
    /** With the scheme's bits everywhere. */
    readonly uniformKl: number;
  };
  readonly raised: number;
  readonly units: number;
  readonly bytes: number;
}

/**
 * Judges every unit, and raises those that pay within the budget.
 * @param bytes Of the artifact with the scheme's bits everywhere.
 * @throws UsageError where not even that fits.
 */
export async function chooseBits(job: BitsJob, budget: Budget, bytes: number): Promise<ChosenBits> {
  const written = formatScheme(job.scheme);
  if (budget.size !== undefined && budget.size < bytes)
    throw new UsageError(
      `--budget size=${formatBytes(budget.size)} is less than the ${formatBytes(bytes)} that ${written} takes with its own bits everywhere; give a larger one, or a scheme of fewer bits or with smaller tables`,
    );
  const sensitivities = await measureSensitivities(job);
  const choice = chooseLevels(sensitivities, {
    room: budget.size === undefined ? undefined : budget.size - bytes,
    kl: budget.kl,
  });
  const uniform = sensitivities.units.reduce(
    (sum, { levels: [first] }) => sum + first.kl,
    sensitivities.floor,
  );
  const raised = choice.levels.filter((level) => level > 0).length;
  const after = bytes + choice.moreBytes;
  job.progress.note(
    `bits: ${raised} of ${sensitivities.units.length} sites' weights and activations have more than ${written}; rounded to nearest ` +
      `KL ${choice.kl.toPrecision(3)} instead of ${uniform.toPrecision(3)}, ${formatBytes(after)} instead of ${formatBytes(bytes)}`,
  );
  if (budget.kl !== undefined && choice.kl > budget.kl)
    job.progress.warn(
      `--budget kl=${budget.kl} is out of reach of ${written}${budget.size === undefined ? "" : ` in ${formatBytes(budget.size)}`}: KL ${choice.kl.toPrecision(3)} rounded to nearest, ` +
        `${sensitivities.floor.toPrecision(3)} of it from cache, tables and 8 bits; learning may bring it lower, a wider cache or groups will`,
    );
  return {
    scheme: schemeWith(job.scheme, job.config, sensitivities, choice),
    record: { ...budget, predictedKl: choice.kl, uniformKl: uniform },
    raised,
    units: sensitivities.units.length,
    bytes: after,
  };
}
