/**
 * The pipeline: recipe → calibration windows → per-block work in a journal → end-to-end stage → packed artifact.
 * Blocks are read one at a time; each is trained on full-precision inputs, so that it can be done again alone
 * after a crash (docs/methods.md, flatquant).
 */
import { existsSync } from "node:fs";
import { basename, resolve } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Backend } from "../../backend/contract/training.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import { quoted } from "../../common/bounds.js";
import { asResumable, isInterruption, PlanishError, UsageError } from "../../common/errors.js";
import { firstIssue } from "../../common/issues.js";
import { formatBytes, formatDuration } from "../../common/format.js";
import { packageVersion } from "../../common/package.js";
import { describedWriteError, isWriteError, lockedPlace } from "../../common/place.js";
import { silentProgress, type ProgressSink } from "../../common/progress.js";
import { mapValues } from "../../common/records.js";
import { defaultSequenceLength, refuseLongWindows, stateWidth } from "../../models/config.js";
import { blockPrograms } from "../../models/architectures/index.js";
import { parseSource } from "../../models/source.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { loadEndLayers } from "../../models/language-model.js";
import { freeBlock, readBlock, readTensor, uploadBlock } from "../../models/weights.js";
import { endLayerTensors } from "../artifact/tensors.js";
import {
  isArtifact,
  openArtifact,
  readQuantizationInfo,
  refuseExisting,
  writeArtifact,
  type QuantizationInfo,
} from "../artifact/artifact.js";
import { freeEndLayers } from "../calibration/forward.js";
import { Prefix, type StateStore } from "../calibration/prefix.js";
import { embeddedPath, readDocuments, tokenizeCorpus } from "../calibration/text.js";
import { randomWindows, type Activations, type TokenWindows } from "../schema/windows.js";
import { blockLine, calibrateOneBlock } from "./block-unit.js";
import { chooseBits, JUDGED, type Budget, type ChosenBits } from "./bits.js";
import { artifactBytes, plansOf } from "./size.js";
import { estimateRun, refuseImpossible, type RunEstimate } from "./estimate.js";
import { checkGroups } from "../grids/groups.js";
import type { ParameterValues } from "../schema/parameters.js";
import { Journal } from "./journal.js";
import type { BlockReport, CalibrationNeed, KeptModel, OpenModel } from "../schema/method.js";
import { findMethod, type AnyMethod } from "../methods/index.js";
import { packBlocks } from "./packing-stage.js";
import { ownFields, type Machine } from "../artifact/quantization-info.js";
import {
  formatGrid,
  formatScheme,
  parseScheme,
  type Scheme,
} from "../../backend/contract/scheme.js";
import type { RemoteBlocks } from "./remote.js";
import { calibrateSideBySide, type BlockRange, type Workers } from "./workers.js";

export interface QuantizeOptions {
  readonly backend: Backend;
  /** An open full-precision checkpoint. */
  readonly source: Checkpoint;
  /** Name shown in the artifact, e.g. "tiny-llama" (default: the source's file name). */
  readonly sourceName?: string;
  readonly out: string;
  readonly method?: string;
  readonly scheme?: string | Scheme;
  readonly preset?: string;
  /** Overrides of the preset's fields; unknown keys are refused. */
  readonly recipe?: Readonly<Record<string, unknown>>;
  /** "wikipedia" (embedded) or a path to a text file. */
  readonly calibration?: string;
  readonly seed?: number;
  /** Single sites get more bits than the scheme's, chosen by what they cost. */
  readonly budget?: Budget;
  readonly resume?: boolean;
  /** Also keep the learned parameters beside the artifact, so that the simulated model can be run again. */
  readonly keepParameters?: boolean;
  /** Full-precision states of the calibration set, shared with other runs on the same model and windows. */
  readonly states?: StateStore;
  /** Processes that calibrate blocks side by side. */
  readonly workers?: Workers;
  /** Calibrates blocks elsewhere, such as on the machines that serve a queue. */
  readonly remote?: RemoteBlocks;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
}

/** What is quantized to where nothing is said. */
export const DEFAULT_SCHEME = "w4a4kv4";

export interface QuantizeResult {
  readonly out: string;
  readonly info: QuantizationInfo;
  readonly estimate: RunEstimate;
  readonly layers: readonly BlockReport[];
  /** Bytes of tensors in the artifact, and in the source. */
  readonly bytes: number;
  readonly sourceBytes: number;
  /** Seconds spent learning (blocks and end to end), in this process. */
  readonly trainingSeconds: number;
  /**
   * Operations of learning per second, two per multiply-add, from the estimate's count; absent when nothing was
   * learned, or when part of it was done by an earlier process.
   */
  readonly trainingRate?: number;
  /** Largest resident memory of this process so far, bytes. */
  readonly peakMemoryBytes: number;
  readonly seconds: number;
}

/** A recipe made of a preset and overrides. @throws UsageError for unknown presets, keys and illegal values. */
export function resolveRecipe(
  method: AnyMethod,
  preset: string | undefined,
  overrides: Readonly<Record<string, unknown>> = {},
): { preset: string; recipe: Record<string, unknown> } {
  const name = preset ?? method.defaultPreset;
  if (!Object.hasOwn(method.presets, name))
    throw new UsageError(
      `method "${method.name}" has no preset "${name}"; accepted: ${Object.keys(method.presets).join(", ")}`,
    );
  const base = method.presets[name] as Record<string, unknown>;
  const result = method.recipe.safeParse(merge(base, overrides));
  if (!result.success) {
    const issue = result.error.issues[0];
    if (issue.code === "unrecognized_keys")
      throw new UsageError(
        `recipe key ${issue.keys.map((k) => quoted([...issue.path, k].join("."))).join(", ")} is unknown to method "${method.name}"; accepted: ${Object.keys(base).join(", ") || "none"}`,
      );
    const { field, reason } = firstIssue(result.error);
    throw new UsageError(`recipe field "${field}" of method "${method.name}": ${reason}`);
  }
  return { preset: name, recipe: result.data as Record<string, unknown> };
}

/** Nested records merge key by key; everything else is replaced. */
function merge(
  base: Record<string, unknown>,
  over: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  const replaced = Object.entries(over).map(([key, value]) => {
    const current = Object.hasOwn(base, key) ? base[key] : undefined;
    return [key, isRecord(current) && isRecord(value) ? merge(current, value) : value] as const;
  });
  // Not by assignment: a key called __proto__ is one that nobody knows.
  return { ...base, ...Object.fromEntries(replaced) };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function refuseArtifact(path: string): void {
  if (isArtifact(path))
    throw new PlanishError(
      `${path} is a Planish artifact, which is quantized already; give the original model that it was made from`,
    );
}

/**
 * Reading refuses what is no finite number. What surrounds the blocks is copied as stored, so nothing else would look
 * at it; blocks are looked at before hours of calibration, which reaches the last of them at its end.
 */
function refuseNonFinite(
  source: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  blocks: boolean,
): void {
  for (const { name, shape } of endLayerTensors(architecture, config))
    if (source.tensors.has(name)) readTensor(source, name, shape);
  if (!blocks) return;
  for (let layer = 0; layer < config.numLayers; layer++)
    readBlock(source, architecture, config, layer);
}

/** Everything that can be refused is refused here; then the journal is open. */
async function prepare(options: QuantizeOptions, joins = false): Promise<Run> {
  const { backend, source, out } = options;
  const progress = options.progress ?? silentProgress;
  const method = findMethod(options.method ?? "flatquant");
  refuseArtifact(source.path);
  const { architecture, config } = parseSource(source);
  const { preset, recipe } = resolveRecipe(method, options.preset, options.recipe);
  const asked = schemeFor(method, { source, architecture, config }, recipe, options);
  const { kept } = asked;
  const seed = options.seed ?? 0;
  if (options.budget) refuseBudget(method, options);
  // A run may have been stopped between naming its artifact and clearing its journal away.
  const complete = options.resume === true && existsSync(Journal.pathFor(out)) && isArtifact(out);
  if (!complete) refuseExisting(out);
  source.tokenizerFiles();
  const programs = blockPrograms(config);
  checkGroups(programs, config, asked.scheme);
  method.check?.(programs, { ...asked.scheme, ...(options.budget && { blocks: [] }) }, recipe);
  const need = limitedNeed(method.calibration(recipe), config, recipe, options.recipe);
  const estimate = estimateRun(backend, config, asked.scheme, need);
  progress.note(
    `estimate: about ${formatDuration(estimate.seconds)}, ${formatBytes(estimate.memoryBytes)} of memory, ${formatBytes(estimate.diskBytes)} of disk`,
  );
  refuseImpossible(estimate, out, Journal.bytesAt(out));
  const windows = need && calibrationWindows(options, need, seed, config);

  // A run that goes on was begun with the same tensors.
  refuseNonFinite(source, architecture, config, windows !== undefined && !options.resume);
  const sourceName = options.sourceName ?? basename(source.path);
  const hash = await source.hash();
  const calibrationText = options.calibration ?? "wikipedia";
  const model = { source, architecture, config };
  const chosen = complete
    ? undefined
    : await withinBudget(options, model, method, recipe, asked.scheme);
  const scheme = chosen?.scheme ?? asked.scheme;
  const settings: Settings = {
    planishVersion: packageVersion(),
    method: method.name,
    preset,
    scheme: formatScheme(scheme),
    queryBits: scheme.queryBits ?? 16,
    recipe,
    seed,
    source: { name: sourceName, format: source.format, hash },
    calibration: windows && {
      text: basename(calibrationText),
      samples: windows.samples,
      seqLen: windows.time,
      hash: hashIds(windows.ids),
    },
    budget: chosen?.record,
    machine: machineOf(backend, options.workers, method.gptq?.(recipe) !== undefined),
  };
  if (complete && !madeWith(readQuantizationInfo(out), settings)) refuseExisting(out);
  const journal = Journal.open(out, settings, {
    resume: options.resume,
    joins: joins || complete,
  });
  for (const damage of journal.damaged) progress.warn(damage);
  return {
    ...options,
    progress,
    method,
    scheme,
    recipe,
    seed,
    architecture,
    config,
    journal,
    windows,
    need,
    preset,
    settings,
    estimate,
    kept,
  };
}

/** The scheme of a run: as asked for, or as the source's own grids are. @throws UsageError when both are said. */
export function schemeFor(
  method: AnyMethod,
  model: OpenModel,
  recipe: Record<string, unknown>,
  { scheme }: Pick<QuantizeOptions, "scheme">,
): { readonly scheme: Scheme; readonly kept?: KeptModel } {
  if (method.keep === undefined)
    return { scheme: typeof scheme === "object" ? scheme : parseScheme(scheme ?? DEFAULT_SCHEME) };
  if (scheme !== undefined)
    throw new UsageError(
      `method "${method.name}" takes the grids that the source has, and a scheme was given; leave out --scheme, and choose the cache with --kv-bits`,
    );
  const kept = method.keep(model, recipe);
  return { scheme: kept.scheme, kept };
}

/** Bits of single sites, where a budget asks for a choice. */
async function withinBudget(
  options: QuantizeOptions,
  model: OpenModel,
  method: AnyMethod,
  recipe: Record<string, unknown>,
  scheme: Scheme,
): Promise<ChosenBits | undefined> {
  const { backend, budget, seed = 0, progress = silentProgress, signal } = options;
  if (!budget) return undefined;
  const { source, architecture, config } = model;
  const plans = plansOf(method, blockPrograms(config), scheme, recipe);
  const windows = calibrationWindows(options, JUDGED, seed, config);
  const rotates = Object.values(plans[0].transforms).some((site) => site?.factors.length);
  return await chooseBits(
    { ...model, backend, scheme, seed, windows, rotates, progress, signal },
    budget,
    artifactBytes(source, architecture, config, scheme, plans),
  );
}

/** @throws UsageError where bits cannot be chosen. */
function refuseBudget(method: AnyMethod, { workers, remote }: QuantizeOptions): void {
  if (method.keep)
    throw new UsageError(
      `method "${method.name}" keeps the bits that the source has, and --budget chooses others; leave out one of the two`,
    );
  if (workers ?? remote)
    throw new UsageError(
      `--budget judges all sites in one process, and others do not hear of its choice; leave out ${workers ? "--workers" : "--queue"}`,
    );
}

/**
 * Calibrates some blocks of a run that another process has prepared (see `Workers`), and leaves them in its journal.
 * @throws PlanishError when the journal holds no states for the first of them.
 */
export async function calibrateBlocks(options: QuantizeOptions, range: BlockRange): Promise<void> {
  const run = await prepare({ ...options, out: resolve(options.out), resume: true }, true);
  const { windows, config, method, journal } = run;
  if (!windows || !method.calibrateBlock)
    throw new UsageError(`method "${method.name}" calibrates no blocks with this recipe`);
  if (range.from < 0 || range.to > config.numLayers || range.from >= range.to)
    throw new UsageError(
      `blocks ${range.from} to ${range.to - 1} are not among the model's ${config.numLayers}`,
    );
  const start = journal.readStates(range.from, { ...windows, hidden: stateWidth(config) });
  await trainBlocks(run, windows, range, start);
}

/**
 * Quantizes a checkpoint into an artifact directory, which only this process works on meanwhile.
 * @throws PlanishError when anything unfit is found (before long work), InterruptedError on the signal; both say what is
 * finished and kept when the work can go on (`resumable`).
 */
export async function quantize(options: QuantizeOptions): Promise<QuantizeResult> {
  const started = performance.now();
  const { path: out, lock } = lockedPlace(options.out, {
    kind: "new directory",
    mayExist: options.resume,
    source: options.source.path,
  });
  using _lock = lock;
  const run = await prepare({ ...options, out });
  try {
    return { ...(await carryOut(run, started)), out: options.out };
  } catch (error) {
    throw withWhatIsKept(error, run);
  }
}

/** A stop, a full disk or the loss of a worker, with what a resumed run will find; other errors as they are. */
function withWhatIsKept(error: unknown, { journal, config }: Run): unknown {
  const resumable = error instanceof PlanishError && error.resumable;
  if (!resumable && !isInterruption(error) && !isWriteError(error)) return error;
  const { blocks, packed } = journal.finished;
  const kept: string[] = [];
  if (blocks > 0) kept.push(`${blocks} of ${config.numLayers} blocks are kept`);
  if (packed > 0) kept.push(`${packed} of ${config.numLayers} packed blocks are kept`);
  return asResumable(
    describedWriteError(error, journal.directory),
    kept.join(", ") || "nothing is finished yet",
  );
}

async function carryOut(run: Run, started: number): Promise<QuantizeResult> {
  const options = run;
  const { source, out, method, scheme, recipe, seed, architecture, config, journal, windows } = run;
  const { preset, settings, estimate } = run;
  if (existsSync(out)) return clearAway(run, started);
  const resumed = journal.hasBlock(0);

  const trainingStart = performance.now();
  const calibrates =
    windows && method.calibrateBlock !== undefined && (run.need?.stepsPerBlock ?? 0) > 0;
  if (calibrates) {
    const job = { ...run, stepsPerBlock: run.need?.stepsPerBlock ?? 0 };
    if (options.remote) await options.remote.calibrate(job, windows);
    else if (options.workers) await calibrateSideBySide(job, windows, options.workers);
  }
  const trained = calibrates ? await trainBlocks(run, windows) : undefined;
  const refined = trained && windows ? await refineBlocks(run, windows, trained) : undefined;
  // Methods that measure without learning report no epochs.
  const learns = trained?.reports.some(({ epochLoss }) => epochLoss.length > 0) ?? false;
  const trainingSeconds = trained ? (performance.now() - trainingStart) / 1000 : 0;

  const parameters = refined?.parameters ?? trained?.parameters;
  const packed = await packBlocks({
    ...run,
    gptq: method.gptq?.(recipe),
    parameters,
    keptBlock: run.kept?.block,
  });
  const { hash: _windowsHash, ...calibration } = settings.calibration ?? { hash: undefined };
  const info: QuantizationInfo = {
    formatVersion: 1,
    planishVersion: settings.planishVersion,
    method: method.name,
    preset,
    scheme: settings.scheme,
    tables: scheme.tables && mapValues(scheme.tables, formatGrid),
    budget: settings.budget,
    recipe,
    seed,
    source: settings.source,
    calibration: "text" in calibration ? calibration : undefined,
    machine: settings.machine,
    layers: packed.map(({ errorPacked, parameters: parameterShapes }, layer) => ({
      layer,
      ...reportFields(trained?.reports[layer], refined?.linears?.[layer]),
      errorPacked,
      parameters: parameterShapes,
      ...ownFields(scheme.blocks?.[layer]),
    })),
    refineLoss: refined && refined.losses.length > 0 ? [...refined.losses] : undefined,
    fallbacks: [...(trained?.reports ?? []), ...packed].flatMap(({ notes }) => [...notes]),
  };
  const { bytes } = await writeArtifact({
    out,
    source,
    architecture,
    config,
    scheme,
    info,
    blockFiles: packed.map(({ file }) => file),
    keptParameters:
      options.keepParameters && parameters ? packed.map(({ settled }) => settled) : undefined,
    signal: options.signal,
  });
  journal.remove();
  return {
    out,
    info,
    estimate,
    layers: trained?.reports ?? [],
    bytes,
    sourceBytes: [...source.tensors.values()].reduce((sum, t) => sum + t.bytes, 0),
    trainingSeconds,
    trainingRate: learns && !resumed ? estimate.trainingOperations / trainingSeconds : undefined,
    // The kernel counts in KiB.
    peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
    seconds: (performance.now() - started) / 1000,
  };
}

/** Whether an artifact is that of a run with these settings. */
function madeWith(info: QuantizationInfo, settings: Settings): boolean {
  const chosen = (of: QuantizationInfo | Settings): unknown => {
    const { planishVersion, method, preset, scheme, recipe, seed, source, machine } = of;
    // As JSON has it: without members that are undefined.
    return JSON.parse(
      JSON.stringify({ planishVersion, method, preset, scheme, recipe, seed, source, machine }),
    );
  };
  return isDeepStrictEqual(chosen(info), chosen(settings));
}

/** Ends a run whose artifact is in place already. */
function clearAway(
  { out, source, journal, estimate, progress }: Run,
  started: number,
): QuantizeResult {
  using artifact = openArtifact(out);
  journal.remove();
  progress.note(`${out} was complete already: only its journal was left to remove`);
  const bytesOf = ({ tensors }: Checkpoint): number =>
    [...tensors.values()].reduce((sum, tensor) => sum + tensor.bytes, 0);
  return {
    out,
    info: artifact.info,
    estimate,
    layers: [],
    bytes: bytesOf(artifact.checkpoint),
    sourceBytes: bytesOf(source),
    trainingSeconds: 0,
    peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
    seconds: (performance.now() - started) / 1000,
  };
}

function reportFields(report: BlockReport | undefined, refined: BlockReport["linears"]) {
  if (!report) return {};
  const { errorRounded, errorInitial, errorFinal, epochLoss, moved, expertTokens, machine } =
    report;
  const linears = refined ?? report.linears;
  return {
    errorRounded,
    errorInitial,
    errorFinal,
    epochLoss: [...epochLoss],
    moved: { ...moved },
    expertTokens: expertTokens && [...expertTokens],
    linears: linears && { ...linears },
    machine: machine && { ...machine },
  };
}

/** What a run is computed on. Threads divide sums, and instruction sets and devices order them in their own ways. */
function machineOf(
  { name, arithmetic }: Backend,
  workers: Workers | undefined,
  roundsByGptq: boolean,
): Machine {
  const threads = arithmetic?.threads;
  return {
    device: name,
    level: arithmetic?.level,
    threads: workers?.threads ?? threads,
    packingThreads: workers?.threads !== undefined && roundsByGptq ? threads : undefined,
  };
}

type Settings = Omit<
  QuantizationInfo,
  "formatVersion" | "layers" | "fallbacks" | "calibration" | "files"
> & {
  readonly queryBits: number;
  readonly calibration?: NonNullable<QuantizationInfo["calibration"]> & { readonly hash: number };
};

interface Run extends Omit<
  QuantizeOptions,
  "method" | "scheme" | "recipe" | "progress" | "seed" | "preset"
> {
  readonly preset: string;
  readonly settings: Settings;
  readonly estimate: RunEstimate;
  readonly progress: ProgressSink;
  readonly method: AnyMethod;
  readonly scheme: Scheme;
  readonly recipe: Record<string, unknown>;
  readonly seed: number;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  readonly journal: Journal;
  readonly windows: TokenWindows | undefined;
  readonly need: CalibrationNeed | undefined;
  readonly kept: KeptModel | undefined;
}

/**
 * A preset made for 2048-token models asks too much of shorter ones: windows shrink to what the model was made for. A length
 * that was asked for stays, or is refused.
 * @param asked the recipe's fields that replace the preset's
 * @throws PlanishError when the model has fewer positions than were asked for.
 */
export function limitedNeed(
  need: CalibrationNeed | undefined,
  config: ModelConfig,
  recipe: Record<string, unknown>,
  asked: Readonly<Record<string, unknown>> = {},
): CalibrationNeed | undefined {
  if (!need) return undefined;
  const isAsked = asked.seqLen !== undefined;
  if (isAsked) refuseLongWindows(need.seqLen, config);
  const seqLen = isAsked ? need.seqLen : Math.min(need.seqLen, defaultSequenceLength(config));
  if ("seqLen" in recipe) recipe.seqLen = seqLen;
  return { ...need, seqLen };
}

function calibrationWindows(
  options: QuantizeOptions,
  need: Pick<CalibrationNeed, "samples" | "seqLen">,
  seed: number,
  config: ModelConfig,
): TokenWindows {
  const text = options.calibration ?? "wikipedia";
  if (text === "wikitext2" || resolve(text) === embeddedPath("wikitext2"))
    throw new UsageError(
      'calibration text "wikitext2" is the embedded test split, on which perplexity is measured: scores would no longer be those of unseen text; give "wikipedia" (embedded) or the path of a text file, such as WikiText-2\'s training split',
    );
  const tokens = tokenizeCorpus(loadTokenizer(options.source), readDocuments(text));
  const windows = randomWindows(tokens, need.samples, need.seqLen, seed);
  if (windows.ids.some((id) => id >= config.vocabSize))
    throw new PlanishError(
      "the tokenizer gives ids beyond the model's vocabulary; the two don't belong together",
    );
  return windows;
}

function hashIds(ids: Int32Array): number {
  let hash = 0;
  for (const id of ids) hash = (Math.imul(hash, 31) + id) >>> 0;
  return hash;
}

interface Trained {
  readonly parameters: readonly ParameterValues[];
  readonly reports: readonly BlockReport[];
  /** Full-precision output of the last block. */
  readonly last: Activations;
}

/** Full-precision activations travel through the blocks; each block that the journal lacks is calibrated on the way. */
async function trainBlocks(
  run: Run,
  windows: TokenWindows,
  range: BlockRange = { from: 0, to: run.config.numLayers },
  start?: Activations,
): Promise<Trained> {
  const { backend, source, architecture, config, journal, method } = run;
  const prefix = new Prefix(run, windows, start);
  const done = Array.from({ length: config.numLayers }, (_, l) => journal.hasBlock(l));
  const kept = done.filter(Boolean).length;
  if (kept > 0 && run.resume)
    run.progress.note(`resuming: ${kept} of ${config.numLayers} blocks are finished`);
  const steps = run.need?.stepsPerBlock ?? 0;
  const task = done.includes(false)
    ? run.progress.task("calibrating", config.numLayers * steps)
    : silentProgress.task("calibrating", 0);
  task.advance(kept * steps);
  const parameters: ParameterValues[] = [];
  const reports: BlockReport[] = [];
  // States travel on only as far as somebody needs them.
  const refines = method.refine !== undefined && (run.need?.refineSteps ?? 0) > 0;
  const end = refines ? range.to : done.lastIndexOf(false, range.to - 1) + 1;
  for (let layer = range.from; layer < range.to; layer++) {
    if (layer >= end) {
      keepRead(layer);
      continue;
    }
    const host = readBlock(source, architecture, config, layer);
    const weights = uploadBlock(backend, host);
    const { inputs } = prefix;
    const outputs = await prefix.outputs(weights, layer, run.signal);
    if (!done[layer] && method.calibrateBlock) {
      const unit = { layer, block: host, weights, inputs, outputs };
      const { parameters: found, report } = await calibrateOneBlock(run, unit, task, run.signal);
      await journal.keepBlock(layer, found, report);
      run.progress.note(blockLine(layer, report));
    }
    keepRead(layer);
    freeBlock(backend, weights);
    prefix.advance(outputs);
  }
  task.done();
  return { parameters, reports, last: prefix.inputs };

  // What the journal holds is read back, so that resumed and uninterrupted runs see the same float32 values.
  function keepRead(layer: number): void {
    const { parameters: values, report } = journal.readBlock(layer);
    parameters.push(values);
    reports.push(report);
  }
}

async function refineBlocks(run: Run, windows: TokenWindows, trained: Trained) {
  const { backend, source, architecture, config, journal, method, need } = run;
  if (!method.refine || !need || need.refineSteps === 0) return undefined;
  const endLayers = loadEndLayers(backend, source, architecture, config);
  const task = run.progress.task(need.refineLabel ?? "distilling", need.refineSteps);
  const outcome = await method.refine({
    backend,
    config,
    scheme: run.scheme,
    recipe: run.recipe,
    seed: run.seed,
    endLayers,
    readBlock: (layer) => readBlock(source, architecture, config, layer),
    parameters: trained.parameters,
    reports: trained.reports,
    windows,
    teacher: trained.last,
    progress: task,
    signal: run.signal,
    resume: journal.readRefine(),
    keep: (state) => journal.keepRefine(state),
  });
  task.done();
  freeEndLayers(backend, endLayers);
  return outcome;
}
