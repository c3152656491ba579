/** Which type each tensor of a GGUF file gets, by the file's type: the same choices, and so the same bytes, as llama-quantize. */
import type { StoredType } from "../../checkpoint/checkpoint.js";
import { BLOCK_FORMATS, type WrittenType } from "../../checkpoint/gguf-blocks.js";

/** Types that are written. */
export type StoredAs = Exclude<StoredType, "MXFP4">;

interface FileType {
  /** `general.file_type`. */
  readonly code: number;
  readonly base: WrittenType;
  /** Values' and MLP outputs' weights get more bits in some layers. */
  readonly more?: WrittenType;
}

export const FILE_TYPES = {
  q4_0: { code: 2, base: "Q4_0" },
  q4_1: { code: 3, base: "Q4_1" },
  q5_0: { code: 8, base: "Q5_0" },
  q5_1: { code: 9, base: "Q5_1" },
  q8_0: { code: 7, base: "Q8_0" },
  q4_k_m: { code: 15, base: "Q4_K", more: "Q6_K" },
  q5_k_m: { code: 17, base: "Q5_K", more: "Q6_K" },
  q6_k: { code: 18, base: "Q6_K" },
} as const satisfies Record<string, FileType>;
export type GgufFileType = keyof typeof FILE_TYPES;
export const FILE_TYPE_NAMES = Object.keys(FILE_TYPES) as readonly GgufFileType[];

/** Types for rows that are no whole number of blocks of 256. */
const NARROWER: Readonly<Partial<Record<WrittenType, WrittenType>>> = {
  Q4_K: "Q5_0",
  Q5_K: "Q5_1",
  Q6_K: "Q8_0",
};

function fitting(type: WrittenType, columns: number): StoredAs {
  if (columns % BLOCK_FORMATS[type].blockElements === 0) return type;
  const narrower = NARROWER[type];
  return narrower && columns % BLOCK_FORMATS[narrower].blockElements === 0 ? narrower : "F16";
}

/** Layers at both ends, and every third between them. */
function hasMore(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
}

/** The type of a block's linear. */
export function linearType(
  file: GgufFileType,
  path: string,
  columns: number,
  layer: number,
  layers: number,
): StoredAs {
  const { base, more }: FileType = FILE_TYPES[file];
  const chosen = more && /\.(?:v_proj|down_proj)$/.test(path) && hasMore(layer, layers);
  return fitting(chosen ? more : base, columns);
}

/** The type of the embedding, or of the head: what makes logits has 6 bits at least. */
export function tableType(file: GgufFileType, makesLogits: boolean, columns: number): StoredAs {
  const { base } = FILE_TYPES[file];
  return fitting(makesLogits && base !== "Q8_0" ? "Q6_K" : base, columns);
}
