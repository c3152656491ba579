/**
 * Quantization schemes as people write them:
 * `w<bits>[g<group>[o]]a<bits>[g<group>[o]][kv<bits>][h<bits>[g<group>]]`, such as `w4a4kv4`, `w4g64a4g64kv4` and
 * `w4g32oa8kv8h6`; 16 means "not quantized".
 *
 * A grid is bits, a group and whether it has an offset. Without a group, one scale spans a weight's row or a token. A
 * group spans that many consecutive input channels: x ≈ scale·code with code in −2^(b−1) … 2^(b−1)−1, and with an offset
 * x ≈ scale·code + offset with code in 0 … 2^b−1: of weights the offset is any number, of activations a whole number of
 * steps, so that zero stays zero (`fakeQuantizeAsym` over each group is the definition).
 */

import { quoted } from "../../common/bounds.js";
import { UsageError } from "../../common/errors.js";

/** Every bit width a scheme may name. */
export const LEGAL_BITS = [2, 3, 4, 6, 8, 16] as const;
export type Bits = (typeof LEGAL_BITS)[number];
/** Widths that integers have. */
export type NarrowBits = Exclude<Bits, 16>;

/** Channels that may share a scale; 16 occurs in GGUF's own grids only. */
export const LEGAL_GROUPS = [16, 32, 64, 128] as const;
export type GroupSize = (typeof LEGAL_GROUPS)[number];

/** Bit widths that embedding and head may have. */
export const LEGAL_TABLE_BITS = [4, 6, 8] as const;
export type TableBits = (typeof LEGAL_TABLE_BITS)[number];

/** Channels of a table's row that share a scale, unless the scheme says otherwise. */
export const DEFAULT_TABLE_GROUP = 64;

/** A grid of one matrix as it is stored: bits, columns that share a scale (absent: the row), an offset for each group. */
export interface MatrixGrid {
  readonly bits: number;
  readonly group?: number;
  readonly offset?: boolean;
}

/** What one block has instead of its scheme's grids. */
export interface OwnGrids {
  /** Of weights, by a linear's path in the block. */
  readonly weights?: Readonly<Record<string, MatrixGrid>>;
  /** Bits of the activation at a site, by its name. */
  readonly activationBits?: Readonly<Partial<Record<string, NarrowBits>>>;
}

/** Grids of one quantized model; 16 bits mean that the tensor stays in 16 or more bits. */
export interface Scheme {
  /** Weights of the block's linears. */
  readonly weightBits: Bits;
  /** Input channels that share a weight's scale; absent: the whole row. */
  readonly weightGroup?: GroupSize;
  /** Each of these groups has an offset beside its scale. */
  readonly weightOffset?: boolean;
  /** Inputs of the block's linears. */
  readonly activationBits: Bits;
  /** Channels of one token that share a scale, found at run time; absent: all of them. */
  readonly activationGroup?: GroupSize;
  readonly activationOffset?: boolean;
  /** Keys and values as the cache keeps them. */
  readonly kvBits: Bits;
  /** Queries after rotary embedding; absent means 16. Not part of the written form. */
  readonly queryBits?: Bits;
  /** Embedding and head; absent means 16. */
  readonly tableBits?: TableBits;
  /** Channels of a table's row that share a scale; given whenever `tableBits` is. */
  readonly tableGroup?: GroupSize;
  /**
   * Not part of the written form: grids of single blocks, in order, and of tables by name (one that is not listed then has
   * 16 bits).
   */
  readonly blocks?: readonly OwnGrids[];
  readonly tables?: Readonly<Record<string, MatrixGrid>>;
  /** Of the one block that this is the scheme of (`schemeOfBlock`). */
  readonly own?: OwnGrids;
}

/** A model's scheme as one of its blocks has it. */
export function schemeOfBlock(scheme: Scheme, layer: number): Scheme {
  const own = scheme.blocks?.[layer];
  return own ? { ...scheme, own } : scheme;
}

const GRID = String.raw`(\d+)(?:g(\d+)(o?))?`;
/** The written form, for messages and help. */
export const SCHEME_FORM = "w<bits>[g<group>[o]]a<bits>[g<group>[o]][kv<bits>][h<bits>[g<group>]]";

const WRITTEN = new RegExp(String.raw`^w${GRID}a${GRID}(?:kv(\d+))?(?:h(\d+)(?:g(\d+))?)?$`, "i");

/**
 * Reads `w4a4kv4` (letter case ignored; a missing `kv…` means `kv16`, a missing `h…` tables of 16 bits).
 * Throws UsageError naming what was given and what is legal.
 */
export function parseScheme(text: string): Scheme {
  const match = WRITTEN.exec(text.trim());
  if (match === null) {
    throw new UsageError(
      `scheme ${quoted(text)} is not of the form ${SCHEME_FORM}; ` +
        `give one like w4a4kv4, w4a16kv16 or w4g64a8kv4h8`,
    );
  }
  const bits = (digits: string, what: string): Bits => {
    const value = Number(digits);
    if (isLegalBits(value)) return value;
    throw new UsageError(
      `scheme "${text}" asks for ${digits}-bit ${what}; ` +
        `legal widths are ${LEGAL_BITS.join(", ")} (16 means not quantized)`,
    );
  };
  const group = (digits: string | undefined, width: number, what: string) => {
    if (digits === undefined) return undefined;
    const value = Number(digits);
    if (width === 16)
      throw new UsageError(
        `scheme "${text}" gives ${what} of 16 bits a group; 16 means not quantized, so leave out "g${digits}"`,
      );
    const legal = LEGAL_GROUPS.find((size) => size === value);
    if (legal === undefined)
      throw new UsageError(
        `scheme "${text}" asks for groups of ${digits} channels for ${what}; legal groups are ${LEGAL_GROUPS.join(", ")}`,
      );
    return legal;
  };
  const [, w, wGroup, wOffset, a, aGroup, aOffset, kv, h, hGroup] = match as (string | undefined)[];
  const weightBits = bits(w ?? "", "weights");
  const activationBits = bits(a ?? "", "activations");
  const weightGroup = group(wGroup, weightBits, "weights");
  const activationGroup = group(aGroup, activationBits, "activations");
  if (wOffset && weightBits === 8)
    throw new UsageError(
      `scheme "${text}" gives 8-bit weights an offset, and their codes are signed bytes; leave out the "o", or give at most 6 bits`,
    );
  return {
    weightBits,
    ...(weightGroup && { weightGroup }),
    ...(wOffset && { weightOffset: true }),
    activationBits,
    ...(activationGroup && { activationGroup }),
    ...(aOffset && { activationOffset: true }),
    kvBits: bits(kv ?? "16", "KV cache"),
    ...(h !== undefined && tables(text, h, group(hGroup, 0, "tables"))),
  };
}

function tables(text: string, digits: string, tableGroup: GroupSize | undefined) {
  const tableBits = LEGAL_TABLE_BITS.find((width) => width === Number(digits));
  if (tableBits === undefined)
    throw new UsageError(
      `scheme "${text}" asks for tables of ${digits} bits; embedding and head may have ${LEGAL_TABLE_BITS.join(", ")}, or 16 when "h" is left out`,
    );
  return { tableBits, tableGroup: tableGroup ?? DEFAULT_TABLE_GROUP } as const;
}

/** Whether a text is a scheme as `parseScheme` reads it. */
export function isScheme(text: string): boolean {
  try {
    parseScheme(text);
    return true;
  } catch {
    return false;
  }
}

const OWN_GRID = /^([2-9]|1[0-6])(?:g(\d{1,7})(o?))?$/;

/** A grid of one matrix as `formatGrid` writes it; undefined for other texts. */
export function parseGrid(text: string): MatrixGrid | undefined {
  const match = OWN_GRID.exec(text) as (string | undefined)[] | null;
  if (!match) return undefined;
  const [, bits, group, offset] = match;
  return {
    bits: Number(bits),
    ...(group && { group: Number(group) }),
    ...(offset && { offset: true }),
  };
}

/** `4g32o`: bits, group, offset. */
export function formatGrid({ bits, group, offset }: MatrixGrid): string {
  return `${bits}${group ? `g${group}` : ""}${offset ? "o" : ""}`;
}

/** The written form, always with its `kv` part: the inverse of `parseScheme`. */
export function formatScheme(scheme: Scheme): string {
  const grid = (bits: number, group?: number, offset?: boolean) =>
    formatGrid({ bits, group, offset });
  const { tableBits, tableGroup } = scheme;
  const table =
    tableBits && `h${grid(tableBits, tableGroup === DEFAULT_TABLE_GROUP ? undefined : tableGroup)}`;
  return (
    `w${grid(scheme.weightBits, scheme.weightGroup, scheme.weightOffset)}` +
    `a${grid(scheme.activationBits, scheme.activationGroup, scheme.activationOffset)}` +
    `kv${scheme.kvBits}${table ?? ""}`
  );
}

/** Whether `value` is a width that a scheme may name. */
export function isLegalBits(value: number): value is Bits {
  return (LEGAL_BITS as readonly number[]).includes(value);
}
