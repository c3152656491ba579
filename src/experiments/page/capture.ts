/**
 * Looks into models for a report: what every linear site's activations and weights look like as trained and as an
 * artifact has them, and what that costs at the site. Blocks are read one at a time; each artifact's block reads the
 * full-precision model's states, so that its errors are its own.
 */
import type { PackedBlock, PackedGrid, PackedLinear } from "../../backend/contract/packed.js";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Backend } from "../../backend/contract/training.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import { InterruptedError, PlanishError } from "../../common/errors.js";
import { silentProgress, type ProgressSink } from "../../common/progress.js";
import { blockProgram, blockPrograms } from "../../models/architectures/index.js";
import { parseSource } from "../../models/source.js";
import {
  runBlock,
  plainHooks,
  type BlockHooks,
  type BlockWeights,
} from "../../models/interpret.js";
import { defaultSequenceLength } from "../../models/config.js";
import { embed, loadEndLayers } from "../../models/language-model.js";
import { freeBlock, readBlock, uploadBlock, type HostBlock } from "../../models/weights.js";
import {
  expertOf,
  flowOf,
  siteNamed,
  siteOfLinear,
  sitesOf,
  type BlockProgram,
  type LinearName,
  type LinearSite,
  type SitePlace,
} from "../../backend/contract/program.js";
import { openArtifact, type OpenArtifact } from "../../quantize/artifact/artifact.js";
import { freeEndLayers } from "../../quantize/calibration/forward.js";
import { readDocuments, tokenizeCorpus } from "../../quantize/calibration/text.js";
import { packedLayer } from "../../quantize/block/packed-block.js";
import {
  activationGrid,
  dequantized,
  weightGrid as weightGridOf,
  type Grid,
} from "../../quantize/grids/groups.js";
import { parseScheme, schemeOfBlock, type Scheme } from "../../backend/contract/scheme.js";
import { kronecker } from "../../tensor/ops/index.js";
import { frozen, Graph, type Tensor } from "../../tensor/tensor.js";
import type { SiteView } from "./data.js";
import { foldColumnMaxima, GridCounter, magnitudes, short } from "./measure.js";

/** Tokens that are run: enough for maxima to settle, few enough for a report to take seconds. */
const TOKENS = 512;

export interface CaptureJob {
  readonly backend: Backend;
  /** The full-precision model. */
  readonly source: string;
  /** Artifacts made from it. */
  readonly artifacts: readonly { readonly name: string; readonly path: string }[];
  /** Text to run: an embedded one or a file (default "wikitext2"). */
  readonly text?: string;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
}

export interface MethodCapture {
  readonly sites: SiteView[][];
  readonly siteErrors: number[][];
  readonly blockErrors: number[];
}

export interface Capture {
  /** The sites of all blocks, in their order; those of experts, which see some tokens only, are left out. */
  readonly siteNames: readonly LinearSite[];
  /** As trained, by layer and site. The grids are plain ones of the first artifact's scheme. */
  readonly before: SiteView[][];
  /** By name of the artifact. */
  readonly after: ReadonlyMap<string, MethodCapture>;
  readonly tokens: number;
}

interface CapturedArtifact {
  readonly name: string;
  readonly artifact: OpenArtifact;
  readonly result: MethodCapture;
}

/**
 * Linears whose outputs an artifact leaves as they are: the values' rows are mixed by P_v, and other rows may carry the diag
 * of the site behind them, so those are left out where the site has others.
 */
function comparedRoles(program: BlockProgram, site: LinearSite): readonly LinearName[] {
  const roles = linearsOfAll(program, site);
  const changed = new Set(
    sitesOf(program).flatMap(({ upstream }) =>
      upstream && upstream.kind !== "norm" ? [upstream.linear] : [],
    ),
  );
  const kept = roles.filter((role) => !changed.has(role));
  return kept.length > 0 ? kept : roles;
}

/** A site's linears that every token goes through. */
function linearsOfAll(program: BlockProgram, site: LinearSite): readonly LinearName[] {
  const flow = flowOf(program);
  return program.steps.flatMap((step) =>
    step.op === "product" &&
    siteOfLinear(program, step.linear).site === site &&
    expertOf(flow, step.x) === undefined
      ? [step.linear]
      : [],
  );
}

/** The sites that every block has, and that are not of experts alone. */
function commonSites(programs: readonly BlockProgram[]): readonly LinearSite[] {
  return sitesOf(programs[0])
    .map(({ site }) => site)
    .filter((site) =>
      programs.every(
        (program) =>
          sitesOf(program).some((place) => place.site === site) &&
          linearsOfAll(program, site).length > 0,
      ),
    );
}

/** Whether a site's outputs all carry the diag of the site behind them: nothing of it is left as it was. */
function onlyLinear(program: BlockProgram, site: LinearSite): boolean {
  return linearsOfAll(program, site).every((linear) =>
    sitesOf(program).some(
      ({ upstream }) => upstream?.kind === "rows" && upstream.linear === linear,
    ),
  );
}

/** @throws PlanishError when an artifact was made from another model; InterruptedError on the signal. */
export async function capture(job: CaptureJob): Promise<Capture> {
  const { backend } = job;
  using source = openCheckpoint(job.source);
  const { architecture, config } = parseSource(source);
  const hash = await source.hash();
  const artifacts: CapturedArtifact[] = [];
  try {
    for (const { name, path } of job.artifacts) {
      const artifact = openArtifact(path);
      artifacts.push({ name, artifact, result: { sites: [], siteErrors: [], blockErrors: [] } });
      const { info } = artifact;
      if (info.source.hash !== hash)
        throw new PlanishError(
          `${path} was made from ${info.source.name} (hash ${info.source.hash.slice(0, 16)}), not from ${job.source}; give that model as --source`,
        );
    }
    const documents = readDocuments(job.text ?? "wikitext2");
    const text = documents.join("\n\n").slice(0, 20 * TOKENS);
    const length = Math.min(TOKENS, defaultSequenceLength(config));
    const ids = tokenizeCorpus(loadTokenizer(source), text).slice(0, length);
    const endLayers = loadEndLayers(backend, source, architecture, config);
    let states: Float32Array;
    {
      using g = new Graph(backend);
      states = Float32Array.from(g.read(embed(g, config, endLayers, ids, 1)));
    }
    freeEndLayers(backend, endLayers);

    const sites = commonSites(blockPrograms(config));
    const before: SiteView[][] = [];
    const task = (job.progress ?? silentProgress).task("looking into blocks", config.numLayers);
    for (let layer = 0; layer < config.numLayers; layer++) {
      if (job.signal?.aborted) throw new InterruptedError(`stopped before block ${layer}`);
      const host = readBlock(source, architecture, config, layer);
      const weights = uploadBlock(backend, host);
      const program = blockProgram(config, layer);
      const plain = run(backend, program, layer, weights, plainHooks(weights), states);
      const scheme = artifacts[0]?.artifact.scheme ?? parseScheme("w16a16kv16");
      before.push(sites.map((site) => plainView(host, program, site, plain, scheme)));
      for (const { artifact, result } of artifacts) {
        const own = schemeOfBlock(artifact.scheme, layer);
        const packed = artifact.block(layer);
        const quantized = packedLayer(backend, program, own, packed);
        const found = run(backend, program, layer, quantized.weights, quantized.hooks, states);
        result.sites.push(
          sites.map((site) => packedView(backend, program, site, found, packed, own)),
        );
        result.siteErrors.push(
          sites.map((site) =>
            short(
              relativeError(
                comparedRoles(program, site).map((role) => [
                  found.outputs.get(role) ?? new Float32Array(),
                  plain.outputs.get(role) ?? new Float32Array(),
                ]),
                onlyLinear(program, site) ? ids.length : undefined,
              ),
            ),
          ),
        );
        result.blockErrors.push(short(relativeError([[found.states, plain.states]])));
        freeBlock(backend, quantized.weights);
      }
      freeBlock(backend, weights);
      states = plain.states;
      task.advance();
      await nextTurn();
    }
    task.done();
    const after = new Map(artifacts.map(({ name, result }) => [name, result]));
    return { siteNames: sites, before, after, tokens: ids.length };
  } finally {
    for (const { artifact } of artifacts) artifact[Symbol.dispose]();
  }
}

/** What passed through one block. */
interface BlockRun {
  /** What each site read, [tokens, width], before any transform at run time. */
  readonly inputs: ReadonlyMap<LinearSite, Float32Array>;
  /** Outputs of linears, [tokens, out]. */
  readonly outputs: ReadonlyMap<LinearName, Float32Array>;
  /** States that left the block. */
  readonly states: Float32Array;
}

function run(
  backend: Backend,
  program: BlockProgram,
  layer: number,
  weights: BlockWeights,
  hooks: BlockHooks,
  states: Float32Array,
): BlockRun {
  const inputs = new Map<LinearSite, Float32Array>();
  const outputs = new Map<LinearName, Float32Array>();
  const read = (g: Graph, t: Tensor): Float32Array => Float32Array.from(g.read(t));
  const observed: BlockHooks = {
    ...hooks,
    transform(g, site, x) {
      inputs.set(site, read(g, x));
      return hooks.transform ? hooks.transform(g, site, x) : x;
    },
    linears(g, site, x, roles) {
      const found = hooks.linears(g, site, x, roles);
      for (const [i, role] of roles.entries()) outputs.set(role, read(g, found[i]));
      return found;
    },
  };
  using g = new Graph(backend);
  const { width } = sitesOf(program)[0];
  const x = g.constant([states.length / width, width], states);
  const y = runBlock(g, program, weights, observed, x, { layer, batch: 1 });
  return { inputs, outputs, states: read(g, y) };
}

function inputOf(found: BlockRun, site: LinearSite): Float32Array {
  const input = found.inputs.get(site);
  if (!input) throw new PlanishError(`block has no site ${site}`);
  return input;
}

/** As trained: rounding to nearest would put each row on a grid of its own. */
function plainView(
  host: HostBlock,
  program: BlockProgram,
  site: LinearSite,
  found: BlockRun,
  scheme: Scheme,
): SiteView {
  const roles = comparedRoles(program, site);
  const linears = roles.flatMap((role) => host.linears[role] ?? []);
  const [, cols] = linears[0].weight.shape;
  const maxima = new Float64Array(cols);
  for (const { weight } of linears) foldColumnMaxima(weight.data, maxima);
  const weightGrid = scheme.weightBits < 16 ? new GridCounter(scheme.weightBits) : undefined;
  if (weightGrid)
    for (const { path, weight } of linears)
      countRows(weightGrid, weight.data, cols, weightGridOf(scheme, path));
  return {
    ...activationView(inputOf(found, site), cols, activationGrid(scheme, site)),
    weights: magnitudes(maxima),
    ...(weightGrid ? { weightGrid: weightGrid.distribution() } : {}),
  };
}

/**
 * As the artifact has it: transformed activations, and weights as packed. Where the linears of a site have grids of their
 * own, the first one's; of the others, what is on the same grid.
 */
function packedView(
  backend: Backend,
  program: BlockProgram,
  site: LinearSite,
  found: BlockRun,
  packed: PackedBlock,
  scheme: Scheme,
): SiteView {
  const roles = comparedRoles(program, site);
  const linears = roles.flatMap((role) => packed.linears[role] ?? []);
  const [first] = linears;
  const width = first.shape[1];
  const input = transformed(backend, siteNamed(program, site), inputOf(found, site), packed);
  const weightBits = bitsOf(first) ?? scheme.weightBits;
  const weightGrid = first.quantized ? new GridCounter(weightBits, true) : undefined;
  const columns = storedColumns(first);
  const maxima = new Float64Array(columns);
  for (const l of linears) {
    if (storedColumns(l) !== columns || (bitsOf(l) ?? weightBits) !== weightBits) continue;
    foldColumnMaxima(weightValues(l), maxima);
    // Codes beside an offset begin at 0, and are shown where those of symmetric grids are.
    const middle = l.quantized?.offset ? 2 ** (weightBits - 1) : 0;
    for (const code of l.quantized?.codes ?? []) weightGrid?.add(code - middle);
  }
  return {
    ...(first.grid
      ? staticView(input, width, first.grid)
      : activationView(input, width, activationGrid(scheme, site), first.activationClip)),
    weights: magnitudes(maxima),
    ...(weightGrid ? { weightGrid: weightGrid.distribution() } : {}),
  };
}

/** A linear's own bits, where they are not the scheme's. */
function bitsOf({ grid, quantized }: PackedLinear): number | undefined {
  return grid?.weightBits ?? quantized?.bits;
}

/** On one grid for the whole activation, large channels split: copy p holds what lies between p·Q and (p+1)·Q steps. */
function staticView(
  data: ArrayLike<number>,
  cols: number,
  { activationBits, step, channel, part, factor }: PackedGrid,
): Pick<SiteView, "activations" | "activationGrid"> {
  const reach = 2 ** (activationBits - 1) - 1;
  const whole = new Float64Array(cols);
  const grid = new GridCounter(activationBits);
  for (let i = 0, j = 0; i < data.length; i++) {
    const position = (data[i] * (factor?.[j] ?? 1)) / step;
    whole[j] = Math.max(whole[j], Math.abs(position));
    grid.add(Math.min(Math.max(position, -reach), reach));
    if (++j === cols) j = 0;
  }
  const held = (position: number, copy: number): number =>
    Math.min(Math.max(position - copy * reach, 0), reach);
  const maxima = [
    ...Array.from(whole, (position) => held(position, 0)),
    ...Array.from(channel, (j, e) => held(whole[j], part[e])),
  ];
  return {
    activations: magnitudes(Float64Array.from(maxima)),
    activationGrid: grid.distribution(),
  };
}

/** Columns as stored: methods that split channels have more than the activation. */
function storedColumns({ shape, quantized }: PackedLinear): number {
  return (quantized?.codes.length ?? shape[0] * shape[1]) / shape[0];
}

function weightValues({ shape, quantized, weight }: PackedLinear): ArrayLike<number> {
  if (!quantized) return weight ?? new Float32Array(shape[0] * shape[1]);
  return dequantized(quantized.codes, quantized.codes.length / shape[0], quantized);
}

/** A site's activation after the transform that runs before its linears. */
function transformed(
  backend: Backend,
  { site, width, attention }: SitePlace,
  input: Float32Array,
  { transforms }: PackedBlock,
): ArrayLike<number> {
  const t = transforms[site];
  if (!t) return input;
  const square = (data: Float32Array | undefined): Tensor | undefined =>
    data && frozen(backend, [Math.sqrt(data.length), Math.sqrt(data.length)], data);
  using g = new Graph(backend);
  const [left, right] = [square(t.left), square(t.right)];
  const x = g.constant([input.length / width, width], input);
  const nRight = attention?.headDim;
  const y = Float32Array.from(g.read(kronecker(g, x, { left, right, nRight })));
  for (const matrix of [left, right]) if (matrix?.buffer) backend.free(matrix.buffer);
  return y;
}

interface Clip {
  readonly max: number;
  readonly min: number;
}

function activationView(
  data: ArrayLike<number>,
  cols: number,
  each: Grid,
  clip?: Clip,
): Pick<SiteView, "activations" | "activationGrid"> {
  const maxima = new Float64Array(cols);
  foldColumnMaxima(data, maxima);
  if (each.bits >= 16) return { activations: magnitudes(maxima) };
  const grid = new GridCounter(each.bits);
  countRows(grid, data, cols, each, clip);
  return { activations: magnitudes(maxima), activationGrid: grid.distribution() };
}

/**
 * Each row or group on its own grid (docs/methods.md, Grids): symmetric, or with an offset, when position 0 is shown where a
 * symmetric grid begins.
 */
function countRows(
  grid: GridCounter,
  data: ArrayLike<number>,
  cols: number,
  { bits, group, offset, zero }: Grid,
  clip?: Clip,
): void {
  const sigmoid = (c: number | undefined): number => (c === undefined ? 1 : 1 / (1 + Math.exp(-c)));
  const [high, low] = [sigmoid(clip?.max), sigmoid(clip?.min)];
  const q = 2 ** (bits - 1) - 1;
  const width = group ?? cols;
  for (let first = 0; first < data.length; first += width) {
    let hi = offset && !zero ? -Infinity : 0;
    let lo = offset && !zero ? Infinity : 0;
    for (let i = first; i < first + width; i++) {
      if (data[i] > hi) hi = data[i];
      if (data[i] < lo) lo = data[i];
    }
    if (offset) {
      const from = lo * low;
      const scale = (hi * high - from) / (2 ** bits - 1) || 1;
      for (let i = first; i < first + width; i++) grid.add((data[i] - from) / scale - q - 1);
      continue;
    }
    const scale = Math.max(hi * high, -lo * low) / q || 1;
    for (let i = first; i < first + width; i++) grid.add(data[i] / scale);
  }
}

/**
 * ‖found − expected‖ / ‖expected‖ over all pairs. With `rows`, columns may differ by a factor each that folded away
 * (a diag in the rows of fc1): they are brought to the expected ones by least squares first.
 */
function relativeError(
  pairs: readonly (readonly [Float32Array, Float32Array])[],
  rows?: number,
): number {
  let error = 0;
  let norm = 0;
  for (const [found, expected] of pairs) {
    const factors =
      rows === undefined ? undefined : columnFactors(found, expected, expected.length / rows);
    for (let i = 0; i < expected.length; i++) {
      const value = factors ? found[i] * factors[i % factors.length] : found[i];
      error += (value - expected[i]) ** 2;
      norm += expected[i] ** 2;
    }
  }
  return norm > 0 ? Math.sqrt(error / norm) : 0;
}

function columnFactors(found: Float32Array, expected: Float32Array, cols: number): Float64Array {
  const products = new Float64Array(cols);
  const squares = new Float64Array(cols);
  for (let i = 0; i < expected.length; i++) {
    products[i % cols] += found[i] * expected[i];
    squares[i % cols] += found[i] ** 2;
  }
  return products.map((product, j) => (squares[j] > 0 ? product / squares[j] : 1));
}
