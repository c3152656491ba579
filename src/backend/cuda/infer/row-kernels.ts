/** Launches of native/cuda/engine/rows.cu: steps of a block that no other kernel computes, on columns of rows in f32. */
import type { Activation, GateClamp } from "../../contract/program.js";
import type { DevicePointer, Grid } from "../driver.js";
import type { EngineDevice } from "./kernels.js";

/** A value: columns of rows in f32. */
export interface Rows {
  readonly at: DevicePointer;
  /** Numbers from one row to the next. */
  readonly stride: number;
}

const OPERATIONS: Readonly<Record<Activation, number>> = {
  silu: 0,
  relu: 1,
  relu2: 2,
  gelu: 3,
  geluTanh: 4,
  sigmoid: 5,
};
const CLAMPED = 6;

export class RowKernels {
  constructor(private readonly device: EngineDevice) {}

  private launch(
    name: string,
    defines: readonly string[],
    grid: Grid,
    threads: number,
    args: readonly number[],
  ): void {
    const { driver, stream, modules } = this.device;
    const kernel = modules.get("engine/rows", name, defines);
    driver.launch(kernel, grid, [threads], 0, stream, args, driver.info.capability >= 90);
  }

  /** Normalizes `groups` of `width` columns of every row; `gains`: 1, or as many as groups. In place where `out` is `x`. */
  norm(request: {
    readonly kind: "rms" | "layer";
    readonly x: Rows;
    readonly out: Rows;
    readonly rows: number;
    readonly groups: number;
    readonly width: number;
    readonly gain: DevicePointer;
    readonly bias?: DevicePointer;
    readonly gains: number;
    readonly epsilon: number;
  }): void {
    const { kind, x, out, rows, groups, width, gain, bias, gains, epsilon } = request;
    this.launch("norm_rows", [`KIND=${kind === "layer" ? 1 : 0}`], [rows, groups], 256, [
      ...[x.at, x.stride, width, gain, bias ?? 0, gains, epsilon],
      ...[out.at, out.stride],
    ]);
  }

  /** a + b, or a·b. */
  pair(
    op: "add" | "multiply",
    a: Rows,
    b: Rows,
    out: Rows,
    { rows, width }: { readonly rows: number; readonly width: number },
  ): void {
    this.launch("pair_rows", [`OP=${op === "add" ? 0 : 1}`], blocksOf(rows * width), 256, [
      ...[a.at, a.stride, b.at, b.stride, rows, width, out.at, out.stride],
    ]);
  }

  /** f(gate)·x, or f(x) without a gate. */
  activate(request: {
    readonly activation: Activation;
    readonly clamp?: GateClamp;
    readonly gate?: Rows;
    readonly x: Rows;
    readonly out: Rows;
    readonly rows: number;
    readonly width: number;
  }): void {
    const { activation, clamp, gate, x, out, rows, width } = request;
    const { alpha, limit } = clamp ?? { alpha: 0, limit: 0 };
    const op = clamp ? CLAMPED : OPERATIONS[activation];
    this.launch("activate_rows", [`OP=${op}`], blocksOf(rows * width), 256, [
      ...[gate?.at ?? 0, gate?.stride ?? 0, x.at, x.stride, rows, width, alpha, limit],
      ...[out.at, out.stride],
    ]);
  }

  /** x times a number, or the number that lies at an address. */
  scale(
    x: Rows,
    factor: number | { readonly at: DevicePointer },
    out: Rows,
    { rows, width }: { readonly rows: number; readonly width: number },
  ): void {
    const [by, number] = typeof factor === "number" ? [0, factor] : [factor.at, 1];
    this.launch("scale_rows", [], blocksOf(rows * width), 256, [
      ...[x.at, x.stride, rows, width, number, by, out.at, out.stride],
    ]);
  }

  /** Rotary tables of positions, [rows, half] each; the first `turning` pairs times `factor`. */
  rotary(request: {
    readonly positions: DevicePointer;
    readonly rows: number;
    /** Angular frequencies, f64 [half]. */
    readonly frequencies: DevicePointer;
    readonly half: number;
    readonly turning: number;
    readonly factor: number;
    readonly cosine: DevicePointer;
    readonly sine: DevicePointer;
  }): void {
    const { positions, rows, frequencies, half, turning, factor, cosine, sine } = request;
    this.launch("rotary_tables", [], [rows], 128, [
      ...[positions, frequencies, half, turning, factor, cosine, sine],
    ]);
  }
}

function blocksOf(elements: number): Grid {
  return [Math.ceil(elements / 256)];
}
