/** Launches of native/cuda/engine/end_layers.cu: what surrounds the blocks, and the packing of weights at load. */
import type { DevicePointer, Grid } from "../driver.js";
import type { EngineDevice } from "./kernels.js";
import { featureTiles, packedBytes, BLOCK_COLUMNS, roundUp, type FeatureOrder } from "./layout.js";

/** A table of 16-bit numbers, [vocab, hidden]. */
export interface HalfTable {
  readonly pointer: DevicePointer;
  /** bfloat16 instead of IEEE halves. */
  readonly bf16: boolean;
}

/** Rows of the table that a block of `head` multiplies: eight warps of 16. */
const HEAD_ROWS = 128;

export class EndLayerKernels {
  constructor(private readonly device: EngineDevice) {}

  private launch(
    name: string,
    defines: readonly string[],
    grid: Grid,
    args: readonly number[],
  ): void {
    const { driver, stream, modules } = this.device;
    const kernel = modules.get("engine/end_layers", name, defines);
    driver.launch(kernel, grid, [256], 0, stream, args, driver.info.capability >= 90);
  }

  /** Embeds `rows` tokens into x [rows, cols], f32, and fills their rotary tables, [rows, half] each. */
  embed(request: {
    readonly table: HalfTable;
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
    const { table, ids, positions, rows, cols, frequencies, half, x, cosine, sine } = request;
    this.launch(
      "embed",
      [`BF16=${table.bf16 ? 1 : 0}`],
      [rows],
      [table.pointer, ids, positions, cols, frequencies, half, x, cosine, sine],
    );
  }

  /**
   * Logits [rows, vocab] in f32 of the rows of x that `chosen` lists, after the final norm (none where there is no gain).
   * parts: room for [2, rows, cols] 16-bit numbers.
   */
  logits(request: {
    readonly x: DevicePointer;
    readonly chosen: DevicePointer;
    readonly rows: number;
    readonly cols: number;
    readonly gain?: DevicePointer;
    readonly epsilon: number;
    readonly table: HalfTable;
    readonly vocab: number;
    readonly parts: DevicePointer;
    readonly out: DevicePointer;
  }): void {
    const { x, chosen, rows, cols, gain, epsilon, table, vocab, parts, out } = request;
    const type = `BF16=${table.bf16 ? 1 : 0}`;
    this.launch(
      "final_rows",
      [type, `NORM=${gain === undefined ? 0 : 1}`],
      [rows],
      [x, chosen, cols, gain ?? 0, epsilon, parts],
    );
    let eights = 1;
    while (eights < 8 && 8 * eights < rows) eights *= 2;
    this.launch(
      "head",
      [type, `NT=${eights}`],
      [Math.ceil(vocab / HEAD_ROWS), Math.ceil(rows / (8 * eights))],
      [parts, table.pointer, rows, vocab, cols, out],
    );
  }

  /** Integer codes [rows, columns] to the order of `packWeights`; `packed` has room for `packedBytes`. */
  pack(
    codes: DevicePointer,
    columns: number,
    order: FeatureOrder,
    bits: 4 | 8,
    packed: DevicePointer,
  ): void {
    const words = packedBytes(order, columns, bits) / 4;
    const blocks = roundUp(columns, BLOCK_COLUMNS) / BLOCK_COLUMNS;
    this.launch(
      "pack_weights",
      [`WBITS=${bits}`, `GATED=${order.gated ? 1 : 0}`],
      [Math.min(Math.ceil(words / 256), featureTiles(order) * 1024)],
      [codes, order.rows, columns, blocks, words, packed],
    );
  }
}
