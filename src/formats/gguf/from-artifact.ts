/** An artifact as a GGUF file, its codes as they are: exact where nothing of it is left to do at run time. */
import type { PackedBlock, QuantizedMatrix } from "../../backend/contract/packed.js";
import { formatScheme, type Scheme } from "../../backend/contract/scheme.js";
import { putCodes, putSteps, type PlainBlockType } from "../../checkpoint/gguf-encode.js";
import type { StoredType } from "../../checkpoint/checkpoint.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { floatsToHalfBytes } from "../../common/half.js";
import { biasedPaths } from "../../models/weights.js";
import type { OpenArtifact } from "../../quantize/artifact/artifact.js";
import { readQuantizedTable } from "../../quantize/artifact/tables.js";
import { codeRange } from "../../quantize/grids/block-steps.js";
import type { ExportOptions, ExportResult } from "../export-options.js";
import { checkDropped, openForExport } from "../source.js";
import { asHalves, writeGgufModel, type GgufBlock } from "./file.js";
import { FILE_TYPE_NAMES, FILE_TYPES, type GgufFileType } from "./types.js";

/** Channels of a block of the types that artifacts' grids fit. */
const BLOCK = 32;

/** `type`: what the caller expects; the artifact's grid decides. @throws PlanishError naming what GGUF has no place for. */
export async function exportGguf(
  path: string,
  options: ExportOptions & { readonly type?: GgufFileType },
): Promise<ExportResult> {
  using artifact = openForExport(path, "gguf", { tables: true });
  const { architecture, config, checkpoint, scheme, info } = artifact;
  const type = weightType(scheme, path);
  const file = FILE_TYPE_NAMES.find((name) => FILE_TYPES[name].base === type);
  if (options.type !== undefined && options.type !== file)
    throw new UsageError(
      `${path} has the grid of ${file ?? "f16"}, not of ${options.type}; give the original to have it rounded to another type, or leave out --type`,
    );
  const lost = lostParts(artifact, path);
  const { drop = [] } = options;
  checkDropped("gguf", lost, drop);
  const typeOfTable = (name: string): StoredType =>
    scheme.tableBits === undefined
      ? checkpoint.tensors.get(name)?.type === "BF16"
        ? "BF16"
        : "F16"
      : plainType(scheme.tableBits, false);
  const { bytes } = await writeGgufModel(
    {
      path,
      checkpoint,
      architecture,
      config,
      fileType: file ? FILE_TYPES[file].code : 1,
      description: `${formatScheme(scheme)} by planish, method ${info.method}`,
      linearType: () => type,
      tableType: typeOfTable,
      biased: (layer) => biasedPaths(checkpoint, architecture, config, layer),
      block: (layer) => asGguf(artifact.block(layer), type),
      table(name) {
        if (scheme.tableBits !== undefined) {
          const table = readQuantizedTable(checkpoint, architecture, config, scheme, name);
          return inBlocks(table, config.hiddenSize, plainType(scheme.tableBits, false));
        }
        return typeOfTable(name) === "BF16"
          ? checkpoint.readBytes(name)
          : asHalves(checkpoint, name);
      },
      signal: options.signal,
    },
    options.out,
  );
  const notes =
    scheme.activationBits < 16
      ? [
          `llama.cpp rounds activations its own way (8 bits in groups of ${BLOCK}): of ${formatScheme(scheme)} the file holds the weights`,
        ]
      : [];
  return { out: options.out, format: "gguf", bytes, dropped: Object.values(lost), notes };
}

/** The type whose grid has every code of these bits. */
function plainType(bits: number, offset: boolean): PlainBlockType {
  if (offset) return "Q4_1";
  return bits <= 4 ? "Q4_0" : "Q8_0";
}

function weightType(scheme: Scheme, path: string): PlainBlockType | "F16" {
  const { weightBits, weightGroup, weightOffset = false } = scheme;
  if (weightBits === 16) return "F16";
  const fits =
    weightGroup !== undefined && weightGroup % BLOCK === 0 && !(weightOffset && weightBits > 4);
  if (!fits)
    throw new PlanishError(
      `${path}: scheme ${formatScheme(scheme)} is no grid of GGUF: its blocks have a 16-bit scale for each ${BLOCK} channels (w4g32, w4g64, w4g128, w8g32 …), at 4 bits perhaps an offset (w4g32o)`,
    );
  return plainType(weightBits, weightOffset);
}

/** What llama.cpp has no place for. @throws PlanishError for what a model cannot be used without. */
function lostParts(artifact: OpenArtifact, path: string): { clips?: string; cache?: string } {
  const { config, scheme } = artifact;
  let clips = false;
  for (let layer = 0; layer < config.numLayers; layer++) {
    const { transforms, linears } = artifact.block(layer);
    const [site] = Object.keys(transforms);
    if (site !== undefined)
      throw new PlanishError(
        `${path}: block ${layer} has a transform at ${site} that works while the model runs, and llama.cpp runs none; quantize by a method without such transforms, such as rtn (--preset gptq) or awq, or give the original`,
      );
    const grid = Object.values(linears).find((linear) => linear.grid);
    if (grid)
      throw new PlanishError(
        `${path}: ${grid.path} of block ${layer} has a static grid, which GGUF has no place for; use another method than flattenquant, and no granularity tensor`,
      );
    clips ||= Object.values(linears).some(({ activationClip }) => activationClip !== undefined);
  }
  return {
    ...(clips && { clips: "learned clipping of activations" }),
    ...(scheme.kvBits < 16 && { cache: `a cache of ${scheme.kvBits} bits` }),
  };
}

function asGguf({ norms, linears }: PackedBlock, type: PlainBlockType | "F16"): GgufBlock {
  return {
    norms,
    linears: Object.fromEntries(
      Object.entries(linears).map(([role, { path, shape, quantized, weight, bias }]) => {
        const bytes =
          quantized && type !== "F16"
            ? inBlocks(quantized, shape[1], type)
            : floatsToHalfBytes(weight ?? [], path);
        return [role, { bytes, bias }];
      }),
    ),
  };
}

/** Codes with a scale for each group as blocks of 32, which repeat the scales of wider groups. */
function inBlocks(
  { codes, scale, offset, group = BLOCK }: QuantizedMatrix,
  columns: number,
  type: PlainBlockType,
): Uint8Array {
  const { low, high } = codeRange(type);
  if (columns % group !== 0 || codes.some((code) => code < low || code > high))
    throw new Error(`codes do not fit into ${type}`);
  const each = group / BLOCK;
  const repeated = (values: Float32Array): Float32Array =>
    Float32Array.from({ length: codes.length / BLOCK }, (_, n) => values[Math.floor(n / each)]);
  const bytes = putSteps(type, repeated(scale), offset && repeated(offset));
  putCodes(type, bytes, codes);
  return bytes;
}
