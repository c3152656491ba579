/**
 * Launches of the engine's CUDA kernels: shapes and device addresses in, work on the device's stream out. Kernels are
 * compiled for a model's shapes on their first use.
 */
import { PlanishError } from "../../../common/errors.js";
import type { CudaDriver, DevicePointer, Grid, Stream } from "../driver.js";
import type { KernelModules } from "../modules.js";
import {
  decodePlan,
  NARROW_ROWS,
  sharesFor,
  splitsFor,
  type DecodePlan,
  type DecodeWishes,
} from "./attention-launch.js";
import {
  roundUp,
  siteClusterSharedBytes,
  siteClusterSize,
  siteGeometry,
  siteSharedBytes,
  type CacheShape,
} from "./layout.js";
import { EXCHANGE_BYTES, EXCHANGE_COUNTERS, planProduct, type ProductPlan } from "./product.js";
import { planGroupProduct } from "./product-groups.js";
import type {
  AttentionRequest,
  DecodeRequest,
  GemmRequest,
  HeadsRequest,
  SiteRequest,
} from "./requests.js";

/** What launches need of a device. */
export interface EngineDevice {
  readonly driver: CudaDriver;
  readonly stream: Stream;
  readonly modules: KernelModules;
  /** Memory that lives as long as the device. */
  allocate(bytes: number): DevicePointer;
}

/** Set numbers that no tile reaches. */
const NO_SET = 2 ** 40;

export class EngineKernels {
  /** Launches may begin before the work ahead of them is done. */
  overlap: boolean;
  private readonly exchanges = new Map<ProductPlan["file"], DevicePointer>();

  constructor(private readonly device: EngineDevice) {
    this.overlap = device.driver.info.capability >= 90;
  }

  private launch(
    file: string,
    name: string,
    defines: readonly string[],
    grid: Grid,
    threads: number,
    shared: number,
    args: readonly number[],
  ): void {
    if (grid.some((size) => size === 0)) return;
    const { driver, stream, modules } = this.device;
    const kernel = modules.get(`engine/${file}`, name, defines);
    driver.launch(kernel, grid, [threads], shared, stream, args, this.overlap);
  }

  /** Integer product: out = codes · weightsᵀ · token scale · feature scale + bias, or SiLU(gate)·up of it when gated. */
  gemm(request: GemmRequest): void {
    const { tokens, order } = request;
    if (request.accumulate && (request.halves || order.gated))
      throw new PlanishError("a product that adds to its output is plain and in f32");
    const { groups } = request;
    const { info } = this.device.driver;
    const plan = groups ? planGroupProduct(request, groups, info) : planProduct(request, info);
    const [set1, set2] = request.setTiles ?? [NO_SET, NO_SET];
    const exchange = plan.exchanges ? this.exchangeFor(plan.file) : 0;
    const own = {
      gemm: [plan.tiles, EXCHANGE_COUNTERS, exchange],
      gemm_narrow: [],
      gemm_prefill: [plan.tiles],
      gemm_mma: [exchange],
      gemm_group: [groups?.offset ?? 0, groups?.sums?.at ?? 0],
      gemm_group_narrow: [groups?.offset ?? 0, groups?.sums?.at ?? 0],
    }[plan.file];
    this.launch(plan.file, plan.file, plan.defines, plan.grid, plan.threads, plan.shared, [
      request.weights,
      request.codes,
      request.tokenScale,
      request.featureScale,
      request.bias ?? 0,
      request.out,
      tokens,
      request.capacity,
      plan.blocks,
      order.gated ? order.rows / 2 : order.rows,
      request.outStride,
      set1,
      set2,
      ...own,
    ]);
  }

  /**
   * Where blocks of a product leave sums for each other. It has one size for good, since captured graphs hold its address,
   * and is cleared once, so that the first product of a device must not be captured: each launch leaves zeros of what its
   * kernel needs as zeros, which is not the same for both kernels. Products of one stream do not meet there.
   */
  private exchangeFor(file: ProductPlan["file"]): DevicePointer {
    let exchange = this.exchanges.get(file);
    if (exchange === undefined) {
      exchange = this.device.allocate(EXCHANGE_BYTES);
      this.device.driver.fillBytes(exchange, 0, EXCHANGE_BYTES, this.device.stream);
      this.exchanges.set(file, exchange);
    }
    return exchange;
  }

  /** From a block's activations to codes and scales (site.cu). */
  site(request: SiteRequest): void {
    const { shape, tokens } = request;
    const inputs = { plain: 0, rms: 1, gated: 2, splits: 3 } as const;
    if (!(request.bits >= 2 && request.bits <= 8))
      throw new PlanishError(
        `activations of ${request.bits} bits have no CUDA kernel yet; 2 to 8 have`,
      );
    const { grid = {} } = request;
    if (grid.zero && request.bits > 6)
      throw new PlanishError(
        `activations of ${request.bits} bits with offsets have no CUDA kernel; 2 to 6 have`,
      );
    const { multiprocessors, sharedBytesPerBlock } = this.device.driver.info;
    const splits = request.input === "splits" ? (request.splits ?? 1) : 0;
    const defines = [
      `LEFT=${shape.left}`,
      `RIGHT=${shape.right}`,
      `HAS_LEFT=${shape.hasLeft ? 1 : 0}`,
      `HAS_RIGHT=${shape.hasRight ? 1 : 0}`,
      `INPUT=${inputs[request.input]}`,
      `IN16=${request.halves ? 1 : 0}`,
      `TAIL=${request.precise ? 1 : 0}`,
      `QMAX=${2 ** (request.bits - 1) - 1}`,
    ];
    const args = [
      request.x,
      request.x2 ?? 0,
      tokens,
      request.stride,
      request.gain ?? 0,
      request.epsilon ?? 0,
      request.left ?? 0,
      request.right ?? 0,
      request.clips,
      request.sets,
      request.capacity,
      request.codes,
      request.scales,
      splits,
    ];
    const cluster = this.clusterFor(request);
    if (cluster > 1) {
      const { blocks, threads } = siteClusterSize(shape)!;
      const shared = siteClusterSharedBytes(shape);
      const grid: Grid = [tokens * blocks];
      this.launch("site_cluster", "site_cluster", defines, grid, threads, shared, args);
      return;
    }
    const geometry = siteGeometry(shape);
    // One row per multiprocessor: twice the warps, each with half the rows, are done sooner.
    const few = tokens <= multiprocessors && geometry.height === 32 && geometry.threads <= 512;
    const threads = geometry.threads * (few ? 2 : 1);
    if (threads > 1024)
      throw new PlanishError(
        `a site of ${shape.left}×${shape.right} is too large for the CUDA kernel (${threads} threads)`,
      );
    const shared = siteSharedBytes(shape, request.precise, grid, splits);
    const resident = Math.max(
      1,
      Math.min(Math.floor(sharedBytesPerBlock / (shared + 1024)), Math.floor(1024 / threads)),
    );
    this.launch(
      "site",
      "site",
      [
        ...defines,
        `BM=${few ? 16 : geometry.height}`,
        `SPAN=${grid.span ?? 0}`,
        `ZERO=${grid.zero ? 1 : 0}`,
        `SUMS=${grid.sums ?? 0}`,
      ],
      [Math.min(tokens, multiprocessors * resident)],
      threads,
      shared,
      [...args, request.sums ?? 0],
    );
  }

  /**
   * Blocks of a cluster per row of a site (site_cluster.cu), 1 where one block does it alone: with a norm, whose sum has an
   * order, with many rows, for rows that are not cut evenly, and for codes in groups. The bits are the same.
   */
  private clusterFor(request: SiteRequest): number {
    const { shape, tokens, input, precise, halves, sets, alone, grid } = request;
    const { capability, multiprocessors } = this.device.driver.info;
    const blocks = siteClusterSize(shape)?.blocks ?? 1;
    if (grid?.span || grid?.sums) return 1;
    if (alone || capability < 90 || tokens * blocks > multiprocessors) return 1;
    return input !== "rms" && precise && !halves && sets <= 8 ? blocks : 1;
  }

  /** Norm, rotary embedding and matrices of heads; keys and values into their pages (queries_keys_values.cu). */
  queriesKeysValues(request: HeadsRequest): void {
    const { headDim, heads, kvHeads, kept } = request;
    checkHeadDim(headDim);
    const matrix = request.qMatrix !== undefined && request.kMatrix !== undefined;
    const rowBytes = kept === 16 ? 2 * (headDim + 2) : headDim + 8;
    const shared = Math.max(64 * rowBytes, matrix ? 2 * headDim * (headDim + 8) : 0);
    // Heads of one block share the matrix; three blocks fit a multiprocessor.
    const room = 3 * this.device.driver.info.multiprocessors;
    const each = Math.min(4, Math.ceil((request.taskCount * (heads + 2 * kvHeads)) / room));
    this.launch(
      "queries_keys_values",
      "queries_keys_values",
      [
        `DIM=${headDim}`,
        `MATRIX=${matrix ? 1 : 0}`,
        `BALANCE=${request.balance ? 1 : 0}`,
        `BITS=${kept}`,
        `IN16=${request.halves ? 1 : 0}`,
        `OUT16=${request.outHalves ? 1 : 0}`,
        `EARLY=${request.taskCount <= NARROW_ROWS ? 1 : 0}`,
        `MOST_ROWS=${(request.taskRows ?? 64) <= 16 ? 16 : 64}`,
      ],
      [request.taskCount, Math.ceil(heads / each) + 2 * Math.ceil(kvHeads / each)],
      128,
      shared,
      [
        request.tasks,
        request.pageOf,
        request.slotOf,
        heads,
        kvHeads,
        request.q,
        request.qStride,
        request.k,
        request.v,
        request.kvStride,
        request.qGain ?? 0,
        request.kGain ?? 0,
        request.epsilon ?? 0,
        request.cosine ?? 0,
        request.sine ?? 0,
        request.qMatrix ?? 0,
        request.kMatrix ?? 0,
        request.balance?.shift ?? 0,
        request.balance?.diag ?? 0,
        request.balance?.inverse ?? 0,
        request.factors,
        request.levels,
        request.out,
        request.cache,
        request.pageBytes,
        each,
      ],
    );
  }

  private decodePlan(shape: CacheShape, rows: number, wishes: DecodeWishes): DecodePlan {
    return decodePlan(this.device.driver.info, shape, rows, wishes);
  }

  /** Splits of each sequence for `sequences` of at most `pages` pages. */
  splitsFor(
    request: Pick<CacheShape, "heads" | "kvHeads"> & Partial<CacheShape> & DecodeWishes,
    sequences: number,
    pages: number,
  ): number {
    const shape = { headDim: 128, kept: 4 as const, ...request };
    const plan = this.decodePlan(shape, sequences, request);
    return splitsFor(this.device.driver.info, plan, sequences, pages);
  }

  /**
   * One query per sequence. q: f32. sequences: {row, tokens in the cache, offset into pages}; partial:
   * [row][head][split][headDim + 2].
   */
  attendDecode(request: AttentionRequest & DecodeRequest): void {
    const { headDim, heads, kvHeads, kept, count, splits } = request;
    checkHeadDim(headDim);
    const plan = this.decodePlan(request, count, request);
    const shares = request.shares ?? sharesFor(this.device.driver.info, plan, count, splits);
    this.launch(
      "attention_decode",
      "attention_decode",
      [
        `DIM=${headDim}`,
        `BITS=${kept}`,
        `TILES=${plan.tiles}`,
        `WARPS=${plan.warps}`,
        `RING=${plan.ring}`,
        `EARLY=${count <= NARROW_ROWS ? 1 : 0}`,
      ],
      [shares, plan.headBlocks, count],
      plan.warps * 32,
      plan.sharedBytes,
      [
        request.q,
        request.sequences,
        request.pages,
        heads,
        kvHeads,
        request.window,
        request.scale,
        request.cache,
        request.pageBytes,
        splits,
        request.partial,
      ],
    );
  }

  /** Joins the splits of `attendDecode` where no site does; out [rows][heads·headDim]. */
  joinSplits(request: {
    readonly partial: DevicePointer;
    readonly rows: number;
    readonly heads: number;
    readonly headDim: number;
    readonly splits: number;
    readonly out: DevicePointer;
    readonly halves: boolean;
  }): void {
    const { partial, rows, heads, headDim, splits, out } = request;
    this.launch(
      "attention_decode",
      "attention_join",
      [`DIM=${headDim}`, `OUT16=${request.halves ? 1 : 0}`],
      [Math.ceil((rows * heads * headDim) / 256)],
      256,
      0,
      [partial, rows, heads, splits, out],
    );
  }

  /**
   * Queries in blocks of at most 128: {first row, rows, position of the first, offset into pages}. q: halves. `plain`:
   * without wgmma also where the GPU has it, as a check.
   */
  attendPrefill(
    request: AttentionRequest & {
      readonly blocks: DevicePointer;
      readonly blockCount: number;
      readonly out: DevicePointer;
      readonly outHalves: boolean;
      readonly plain?: boolean;
    },
  ): void {
    const { headDim, heads, kvHeads, kept } = request;
    checkHeadDim(headDim);
    const hopper = this.device.driver.info.capability === 90 && !request.plain;
    const name = hopper ? "attention_prefill_wgmma" : "attention_prefill";
    // Keys and values of three pages in rows of 64 halves, or of two in padded rows.
    const halves = hopper
      ? 3 * 64 * (roundUp(headDim, 64) + headDim)
      : 2 * (64 * (headDim + 8) + headDim * 72);
    this.launch(
      name,
      name,
      [`DIM=${headDim}`, `BITS=${kept}`, `OUT16=${request.outHalves ? 1 : 0}`],
      [heads, request.blockCount],
      256,
      2 * halves,
      [
        request.q,
        request.blocks,
        request.pages,
        heads,
        kvHeads,
        request.window,
        request.scale,
        request.cache,
        request.pageBytes,
        request.out,
      ],
    );
  }

  halfNorm(
    x: DevicePointer,
    rows: number,
    cols: number,
    gain: DevicePointer,
    epsilon: number,
    out: DevicePointer,
  ): void {
    this.launch("half", "half_norm", [], [rows], 256, 0, [x, cols, gain, epsilon, out]);
  }

  /** out = SiLU(x[:, :cols]) · x[:, cols:], halves. */
  halfGated(x: DevicePointer, rows: number, cols: number, out: DevicePointer): void {
    const blocks = Math.ceil((rows * cols) / 8 / 256);
    this.launch("half", "half_gated", [], [blocks], 256, 0, [x, rows, cols, out]);
  }

  /** Copies, or only reads when `out` is absent, `bytes` (a multiple of 32 KiB) with a kernel. */
  streamWords(from: DevicePointer, bytes: number, out?: DevicePointer): void {
    const { multiprocessors } = this.device.driver.info;
    this.launch("half", "stream_words", [], [multiprocessors * 4], 512, 0, [
      from,
      bytes / 16,
      out ?? 0,
    ]);
  }

  /** Pseudo-random bytes, halves or floats (with the deviation given). */
  randomFill(
    out: DevicePointer,
    count: number,
    kind: "bytes" | "halves" | "floats",
    seed: number,
    deviation = 1,
  ): void {
    const code = { bytes: 0, halves: 1, floats: 2 } as const;
    const { multiprocessors } = this.device.driver.info;
    this.launch("half", "random_fill", [], [multiprocessors * 8], 256, 0, [
      out,
      count,
      code[kind],
      seed,
      deviation,
    ]);
  }
}

function checkHeadDim(headDim: number): void {
  if (headDim % 32 !== 0 || headDim > 128)
    throw new PlanishError(
      `heads of ${headDim} columns have no CUDA kernel yet; multiples of 32 up to 128 have`,
    );
}
