/**
 * A checkpoint in FlatQuant's published layout as an artifact. The layout says neither the widths of activations and cache
 * nor anything of the run, so the scheme comes from whoever imports it.
 */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import type {
  ClipLogits,
  PackedBlock,
  PackedLinear,
  PackedTransform,
} from "../../backend/contract/packed.js";
import { sitesOf, type LinearSite } from "../../backend/contract/program.js";
import { formatScheme, type Scheme } from "../../backend/contract/scheme.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { readJsonObject } from "../../checkpoint/file-reader.js";
import { readTokenizerFiles } from "../../checkpoint/hf-directory.js";
import {
  INDEX_FILE,
  openSafetensors,
  SINGLE_FILE,
  writeSafetensors,
} from "../../checkpoint/safetensors.js";
import { quoted } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { firstIssue } from "../../common/issues.js";
import { packageVersion } from "../../common/package.js";
import { mapValues } from "../../common/records.js";
import { blockProgram, parseModelConfig } from "../../models/architectures/index.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { writeArtifact } from "../../quantize/artifact/artifact.js";
import { packedEntries } from "../../quantize/artifact/block-tensors.js";
import { unpackCodes } from "../../quantize/artifact/packed-codes.js";
import {
  CACHE_QUANTIZERS,
  endLayerTensors,
  KEY_MODULE,
  transformModule,
} from "../../quantize/artifact/tensors.js";
import { invertMatrix } from "../../quantize/transforms/matrix.js";
import { FORMAT, NIBBLES, SETTINGS_FILE } from "./layout.js";

const settingsSchema = z.looseObject({
  w_bits: z.literal(4),
  symmetric: z.literal(true),
  format: z.literal(FORMAT),
  model_name: z.string().optional(),
});

export interface ImportOptions {
  readonly out: string;
  /** Widths of weights (4), activations and cache. */
  readonly scheme: Scheme;
  readonly signal?: AbortSignal;
}

/** Tensors whose values follow from others, or are folded into them. */
const FOLDED =
  /\.(?:diag_scale|matrix_left_inv|matrix_right_inv|matrix_inv_t|clip_factor_w_(?:max|min))$|\.vcache_trans\.|^quantizer\..*\.(?:zero|maxq)$/;

/** Whether a directory says that it is in FlatQuant's layout. */
export function isFlatQuant(path: string): boolean {
  return existsSync(join(path, SETTINGS_FILE));
}

/**
 * Writes a FlatQuant checkpoint as an artifact.
 * @throws PlanishError naming a setting or a tensor that is missing, of another shape, or unknown.
 */
export async function importFlatQuant(
  path: string,
  { out, scheme, signal }: ImportOptions,
): Promise<{ out: string; bytes: number }> {
  const parsed = settingsSchema.safeParse(readJsonObject(join(path, SETTINGS_FILE)));
  if (!parsed.success) {
    const { field, reason } = firstIssue(parsed.error);
    throw new PlanishError(
      `${join(path, SETTINGS_FILE)}: ${field || "the document"}: ${reason}; read are symmetric weights of 4 bits in format ${FORMAT}`,
    );
  }
  using source = openDirectory(path);
  const { architecture, config } = parseModelConfig(source.config);
  const reader = new BlockReader(source, architecture, config, scheme);
  const scratch = mkdtempSync(join(tmpdir(), "planish-import-"));
  try {
    const blockFiles: string[] = [];
    const layers = [];
    for (let layer = 0; layer < config.numLayers; layer++) {
      const { block, parameters } = reader.block(layer);
      const file = join(scratch, `${layer}.safetensors`);
      await writeSafetensors(file, packedEntries(architecture, config, scheme, layer, block));
      blockFiles.push(file);
      layers.push({ layer, parameters });
    }
    reader.refuseUnread(endLayerTensors(architecture, config).map(({ name }) => name));
    const info = {
      formatVersion: 1 as const,
      planishVersion: packageVersion(),
      method: "flatquant",
      scheme: formatScheme(scheme),
      recipe: {},
      seed: 0,
      source: {
        name: parsed.data.model_name ?? "flatquant checkpoint",
        format: "flatquant packed_int4",
        hash: await source.hash(),
      },
      layers,
      fallbacks: [],
    };
    const { bytes } = await writeArtifact({
      ...{ out, source, architecture, config, scheme, info, blockFiles, signal },
    });
    return { out, bytes };
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** A directory whose config.json may name a quantization that its own loader reads. */
function openDirectory(path: string): Checkpoint {
  const { quantization_config: _, ...config } = readJsonObject(join(path, "config.json"), {
    python: true,
  });
  const weights = [SINGLE_FILE, INDEX_FILE].find((name) => existsSync(join(path, name)));
  if (weights === undefined)
    throw new PlanishError(`${path} has neither ${SINGLE_FILE} nor ${INDEX_FILE}`);
  const generation = join(path, "generation_config.json");
  const { store } = openSafetensors(join(path, weights));
  return {
    path,
    format: "safetensors",
    config,
    generationConfig: existsSync(generation) ? readJsonObject(generation) : undefined,
    tensors: store.tensors,
    read: (name) => store.read(name),
    readBytes: (name) => store.readBytes(name),
    tokenizerFiles: () => readTokenizerFiles(path),
    hash: () => store.hash(),
    [Symbol.dispose]: () => store[Symbol.dispose](),
  };
}

/** Reads blocks, and remembers what was read. */
class BlockReader {
  readonly #read = new Set<string>();

  constructor(
    readonly source: Checkpoint,
    readonly architecture: Architecture,
    readonly config: ModelConfig,
    readonly scheme: Scheme,
  ) {}

  /** A block, and the shapes of the parameters that its layout follows from. */
  block(layer: number): { block: PackedBlock; parameters: Record<string, number[]> } {
    const program = blockProgram(this.config, layer);
    const prefix = this.architecture.names.blockPrefix(layer);
    const parameters: Record<string, number[]> = {};
    const transforms: Partial<Record<LinearSite, PackedTransform>> = {};
    for (const place of sitesOf(program)) {
      const module = prefix + transformModule(place.site);
      const side = (name: string, size?: number): Float32Array | undefined =>
        this.#optional(`${module}.${name}`, size && [size, size]);
      if (place.attention) {
        const { heads } = place.attention;
        const left = side("matrix", heads);
        if (left) {
          transforms[place.site] = { left };
          parameters[`${place.site}.p`] = [heads, heads];
        }
        continue;
      }
      const [left, right] = [side("matrix_left"), side("matrix_right")];
      if (!left && !right) continue;
      const [l, r] = [Math.sqrt(left?.length ?? 1), Math.sqrt(right?.length ?? 1)];
      if (l * r !== place.width)
        this.#refuse(`${module} has factors of ${l} and ${r} for ${place.width} channels`);
      transforms[place.site] = { left, right };
      if (left) parameters[`${place.site}.p_left`] = [l, l];
      if (right) parameters[`${place.site}.p_right`] = [r, r];
    }
    const clip = (module: string, name: string): ClipLogits | undefined => {
      const [max, min] = ["max", "min"].map((of) =>
        this.#optional(`${prefix}${module}.clip_factor_a_${of}`, [1]),
      );
      if (!max || !min) return undefined;
      parameters[`clip.${name}.a_max`] = [1];
      parameters[`clip.${name}.a_min`] = [1];
      return { max: max[0], min: min[0] };
    };
    const linears = mapValues(program.linears, ({ path, shape }): PackedLinear => {
      const module = `${prefix}${path}.linear`;
      return {
        path,
        shape,
        quantized: this.#weight(module, shape),
        bias: this.#optional(`${module}.bias`, [shape[0]]),
        activationClip: clip(`${path}.act_quantizer`, path),
      };
    });
    const { headDim } = this.config;
    const key = this.#optional(`${prefix}${KEY_MODULE}.matrix`, [headDim, headDim]);
    if (key) parameters["k_head.p"] = [headDim, headDim];
    const block: PackedBlock = {
      norms: mapValues(program.norms, ({ path, width }) => ({
        path,
        gain: { shape: [width], data: this.#required(`${prefix}${path}.weight`, [width]) },
      })),
      linears,
      kept: {},
      transforms,
      keyTransform: key && {
        matrix: key,
        inverseT: Float32Array.from(invertMatrix(key, { transpose: true })),
      },
      keyClip: clip(CACHE_QUANTIZERS.k, "k"),
      valueClip: clip(CACHE_QUANTIZERS.v, "v"),
    };
    return { block, parameters };
  }

  /** @throws PlanishError for a tensor that nobody asked for. */
  refuseUnread(ends: readonly string[]): void {
    const known = new Set([...this.#read, ...ends]);
    const other = [...this.source.tensors.keys()].find(
      (name) => !known.has(name) && !FOLDED.test(name),
    );
    if (other !== undefined) this.#refuse(`tensor ${quoted(other, 120)} has no place in it`);
  }

  #weight(module: string, [rows, columns]: readonly [number, number]) {
    const name = `${module}.weight`;
    this.#check(name, [rows, Math.ceil(columns / 2)], "U8");
    const codes = unpackCodes(this.source.readBytes(name), rows, columns, NIBBLES);
    const scale = this.#required(`quantizer.${module}.scale`, [rows, 1]);
    const zero = this.#optional(`quantizer.${module}.zero`, [rows, 1]);
    if (zero?.some((value) => value !== 0))
      this.#refuse(`quantizer.${module}.zero is not 0, although its weights are symmetric`);
    return { codes, scale };
  }

  #optional(name: string, shape?: readonly number[] | 0): Float32Array | undefined {
    return this.source.tensors.has(name) ? this.#required(name, shape) : undefined;
  }

  #required(name: string, shape?: readonly number[] | 0): Float32Array {
    this.#check(name, shape);
    return this.source.read(name);
  }

  /** Published files have scales both as columns and as vectors, and clips both as vectors and as numbers. */
  #check(name: string, shape?: readonly number[] | 0, type?: string): void {
    const stored = this.source.tensors.get(name);
    if (!stored) this.#refuse(`tensor ${quoted(name, 120)} is missing`);
    this.#read.add(name);
    const plain = (sizes: readonly number[]): string => sizes.filter((n) => n !== 1).join();
    if (shape && plain(stored.shape) !== plain(shape))
      this.#refuse(
        `tensor ${quoted(name, 120)} is [${stored.shape.join(", ")}], not [${shape.join(", ")}]`,
      );
    if (type !== undefined && stored.type !== type)
      this.#refuse(`tensor ${quoted(name, 120)} is ${stored.type}, not ${type}`);
  }

  #refuse(problem: string): never {
    throw new PlanishError(
      `${this.source.path}: ${problem}; give a checkpoint that FlatQuant's own code saved in format ${FORMAT}`,
    );
  }
}
