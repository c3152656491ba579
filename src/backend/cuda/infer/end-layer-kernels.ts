/** Launches of native/cuda/engine/end_layers.cu: what surrounds the blocks, and the packing of weights at load. */
import type { DevicePointer, Grid } from "../driver.js";
import type { GroupSize } from "../../contract/scheme.js";
import type { EngineDevice } from "./kernels.js";
import { featureTiles, packedBytes, BLOCK_COLUMNS, roundUp, type FeatureOrder } from "./layout.js";

/** A table of 16-bit numbers, [vocab, hidden]. */
export interface HalfTable {
  readonly pointer: DevicePointer;
  /** bfloat16 instead of IEEE halves. */
  readonly bf16: boolean;
}

/** A table of codes, [vocab, hidden]. */
export interface CodeTable {
  /** Codes in bytes (codes of 5 to 8 bits), or in nibbles. */
  readonly codes: DevicePointer;
  readonly bits: 4 | 8;
  /** Columns that share a scale. */
  readonly group: GroupSize;
  /** Scales and offsets are halves, else f32. */
  readonly halves: boolean;
  /** [vocab, hidden / group]. */
  readonly scale: DevicePointer;
  readonly offset?: DevicePointer;
  /** What a stored code lacks of the one that the offset stands beside. */
  readonly shift: number;
}

export type Table = HalfTable | CodeTable;

/** Rows of the table that a block of `head` multiplies: eight warps of 16. */
const HEAD_ROWS = 128;

export class EndLayerKernels {
  constructor(private readonly device: EngineDevice) {}

  private launch(
    name: string,
    defines: readonly string[],
    grid: Grid,
    args: readonly number[],
    file: "end_layers" | "tables" = "end_layers",
  ): void {
    const { driver, stream, modules } = this.device;
    const kernel = modules.get(`engine/${file}`, name, defines);
    driver.launch(kernel, grid, [256], 0, stream, args, driver.info.capability >= 90);
  }

  /** Embeds `rows` tokens, times a factor, into x [rows, cols], f32, and fills their rotary tables, [rows, half] each. */
  embed(request: {
    readonly table: Table;
    readonly factor?: number;
    readonly ids: DevicePointer;
    readonly positions: DevicePointer;
    readonly rows: number;
    readonly cols: number;
    /** Angular frequencies, f64 [half]. */
    readonly frequencies: DevicePointer;
    readonly half: number;
    readonly x: DevicePointer;
    readonly cosine: DevicePointer;
    readonly sine: DevicePointer;
  }): void {
    const { table, factor = 1, ids, positions, rows, cols } = request;
    const { frequencies, half, x, cosine, sine } = request;
    const rest = [ids, positions, cols, factor, frequencies, half, x, cosine, sine];
    if ("codes" in table)
      this.launch(
        "embed_codes",
        tableDefines(table),
        [rows],
        [...codeArgs(table), ...rest],
        "tables",
      );
    else this.launch("embed", [`BF16=${table.bf16 ? 1 : 0}`], [rows], [table.pointer, ...rest]);
  }

  /**
   * Logits [rows, vocab] in f32 of the rows of x that `chosen` lists, after the final norm (none where there is no gain).
   * parts: room for [2, rows, cols] 16-bit numbers. cap: logits x become cap·tanh(x/cap).
   */
  logits(request: {
    readonly x: DevicePointer;
    readonly chosen: DevicePointer;
    readonly rows: number;
    readonly cols: number;
    /** "rms" when absent. */
    readonly kind?: "rms" | "layer";
    readonly gain?: DevicePointer;
    readonly bias?: DevicePointer;
    readonly epsilon: number;
    readonly table: Table;
    readonly cap?: number;
    readonly vocab: number;
    readonly parts: DevicePointer;
    readonly out: DevicePointer;
  }): void {
    const { kind, bias } = request;
    const { x, chosen, rows, cols, gain, epsilon, table, vocab, cap = 0, parts, out } = request;
    const type = `BF16=${"bf16" in table && table.bf16 ? 1 : 0}`;
    this.launch(
      "final_rows",
      [type, `NORM=${gain === undefined ? 0 : kind === "layer" ? 2 : 1}`],
      [rows],
      [x, chosen, cols, gain ?? 0, bias ?? 0, epsilon, parts],
    );
    let eights = 1;
    while (eights < 8 && 8 * eights < rows) eights *= 2;
    const grid = [Math.ceil(vocab / HEAD_ROWS), Math.ceil(rows / (8 * eights))] as const;
    const rest = [rows, vocab, cols, cap, out];
    if ("codes" in table)
      this.launch(
        "head_codes",
        [...tableDefines(table), `NT=${eights}`],
        grid,
        [parts, ...codeArgs(table), ...rest],
        "tables",
      );
    else this.launch("head", [type, `NT=${eights}`], grid, [parts, table.pointer, ...rest]);
  }

  /** `count` codes of a table to what `embed` and `logits` read, `bias` added to each. */
  packTable(
    codes: DevicePointer,
    count: number,
    bits: 4 | 8,
    bias: number,
    packed: DevicePointer,
  ): void {
    const words = (count * bits) / 32;
    const blocks = Math.min(Math.ceil(words / 256), 1 << 14);
    this.launch("pack_table", [`BITS=${bits}`], [blocks], [codes, bias, words, packed], "tables");
  }

  /**
   * Integer codes [rows, columns], `shift` added to each, to the order of `packWeights`; `packed` has room for
   * `packedBytes`.
   */
  pack(
    codes: DevicePointer,
    columns: number,
    order: FeatureOrder,
    bits: 4 | 8,
    packed: DevicePointer,
    shift = 0,
  ): void {
    const words = packedBytes(order, columns, bits) / 4;
    const blocks = roundUp(columns, BLOCK_COLUMNS) / BLOCK_COLUMNS;
    this.launch(
      "pack_weights",
      [`WBITS=${bits}`, `GATED=${order.gated ? 1 : 0}`],
      [Math.min(Math.ceil(words / 256), featureTiles(order) * 1024)],
      [codes, order.rows, columns, blocks, words, shift, packed],
    );
  }
}

function tableDefines({ bits, group, halves, offset, shift }: CodeTable): string[] {
  return [
    `BITS=${bits}`,
    `SPAN=${group}`,
    `SCALE16=${halves ? 1 : 0}`,
    `OFFSETS=${offset === undefined ? 0 : 1}`,
    `SHIFT=${shift}`,
  ];
}

function codeArgs({ codes, scale, offset }: CodeTable): number[] {
  return [codes, scale, offset ?? 0];
}
