/** A pass over the blocks: rows that go through a model together, as launches of the engine's kernels. */
import type { DevicePointer } from "../../backend/cuda/driver.js";
import type { LinearSite, ModelConfig } from "../../models/config.js";
import type { EngineKernels } from "./kernels.js";
import { codeBytes, pageLayout, roundUp } from "./layout.js";
import type { SiteRequest } from "./requests.js";
import { siteWidth, type CudaBlock, type CudaModel } from "./weights.js";

/** Most rows of one pass; longer steps are cut. */
export const PASS_ROWS = 2048;
/** Most sequences of a decoding pass. */
export const DECODE_ROWS = 128;

/** Where a pass's rows live between kernels. */
export interface PassBuffers {
  /** The residual stream, f32 [rows, hidden]. */
  readonly x: DevicePointer;
  /** Queries, keys and values side by side, f32. */
  readonly qkv: DevicePointer;
  /** Queries on their way to attention: f32 for decoding, halves else. */
  readonly q: DevicePointer;
  /** What attention gave, f32 [rows, heads·headDim]. */
  readonly mixed: DevicePointer;
  /** SiLU(gate)·up, or gate and up side by side, f32. */
  readonly gated: DevicePointer;
  readonly codes: DevicePointer;
  readonly scales: DevicePointer;
  /** Splits of decoding's attention. */
  readonly partial: DevicePointer;
  /** Rotary tables, f32 [rows, headDim/2]. */
  readonly cosine: DevicePointer;
  readonly sine: DevicePointer;
}

export interface Pass {
  readonly rows: number;
  /** Rows take decoding's attention, each as the last of its sequence: at most DECODE_ROWS. */
  readonly decoding: boolean;
  readonly taskCount: number;
  /** Rows of the longest task. */
  readonly taskRows: number;
  /** Rows of decoding, or blocks of queries. */
  readonly attentionCount: number;
  readonly tasks: DevicePointer;
  readonly pageOf: DevicePointer;
  readonly slotOf: DevicePointer;
  readonly attention: DevicePointer;
  readonly pages: DevicePointer;
  /** Pieces that a sequence's cache is cut into for decoding; the same for every pass, so that a row does not depend on it. */
  readonly splits: number;
}

/** Rows that buffers of codes are laid out for. */
function capacityOf(rows: number): number {
  return rows <= 64 ? 64 : roundUp(rows, 128);
}

/** Sizes in bytes of the buffers that a model needs. */
export function passBytes(model: CudaModel, splits: number): Record<keyof PassBuffers, number> {
  const { hiddenSize, intermediateSize, headDim, numHeads, numKvHeads } = model.config;
  const attention = numHeads * headDim;
  const capacity = capacityOf(PASS_ROWS);
  const names = ["attn_in", "attn_out", "mlp_in", "mlp_down"] as const;
  const most = (of: (site: LinearSite, sets: number) => number) =>
    Math.max(
      ...model.blocks.flatMap((block) => names.map((site) => of(site, block.sites[site].sets))),
    );
  const rows = (width: number) => PASS_ROWS * width * 4;
  const apart = model.blocks.some((block) => block.sites.mlp_in.products.length > 1);
  return {
    x: rows(hiddenSize),
    qkv: rows(attention + 2 * numKvHeads * headDim),
    q: Math.max(PASS_ROWS * 2, DECODE_ROWS * 4) * attention,
    mixed: rows(attention),
    gated: rows((apart ? 2 : 1) * intermediateSize),
    codes: most((site, sets) => sets * codeBytes(capacity, siteWidth(model.config, site))),
    scales: most((_, sets) => sets * capacity * 4),
    partial: DECODE_ROWS * numHeads * splits * (headDim + 2) * 4,
    cosine: rows(headDim / 2),
    sine: rows(headDim / 2),
  };
}

interface SiteOutput {
  readonly out: DevicePointer;
  readonly stride: number;
  readonly accumulate?: boolean;
}

/** Enqueues blocks. */
export class PassRunner {
  private readonly config: ModelConfig;
  private readonly kept: 4 | 16;
  private readonly headBytes: number;

  constructor(
    private readonly kernels: EngineKernels,
    private readonly model: CudaModel,
    private readonly buffers: PassBuffers,
  ) {
    this.config = model.config;
    this.kept = model.scheme.kvBits >= 16 ? 16 : 4;
    this.headBytes = pageLayout(this.config.headDim, this.kept).bytes;
  }

  /** Bytes of a page: keys and values of every layer. */
  get pageBytes(): number {
    return this.config.numLayers * this.config.numKvHeads * this.headBytes;
  }

  /** All blocks over the pass's rows in `buffers.x`; `cache`: page 0. */
  run(pass: Pass, cache: DevicePointer): void {
    const layerBytes = this.config.numKvHeads * this.headBytes;
    this.model.blocks.forEach((block, layer) =>
      this.block(block, pass, cache + layer * layerBytes),
    );
  }

  private block(block: CudaBlock, pass: Pass, cache: DevicePointer): void {
    const { config, buffers, kernels, kept, model } = this;
    const { hiddenSize, intermediateSize, headDim, numHeads, numKvHeads, norm } = config;
    const shape = { headDim, heads: numHeads, kvHeads: numKvHeads, kept };
    const attention = numHeads * headDim;
    const width = attention + 2 * numKvHeads * headDim;
    const { pageBytes } = this;
    const normed = (gain: DevicePointer) =>
      ({ input: "rms", x: buffers.x, stride: hiddenSize, gain, epsilon: norm.epsilon }) as const;
    const residual = { out: buffers.x, stride: hiddenSize, accumulate: true };

    this.site(block, "attn_in", pass, normed(block.inputGain), {
      out: buffers.qkv,
      stride: width,
    });
    kernels.heads({
      ...shape,
      tasks: pass.tasks,
      taskCount: pass.taskCount,
      pageOf: pass.pageOf,
      slotOf: pass.slotOf,
      q: buffers.qkv,
      qStride: width,
      k: buffers.qkv + attention * 4,
      v: buffers.qkv + (attention + numKvHeads * headDim) * 4,
      kvStride: width,
      halves: false,
      qGain: block.qGain,
      kGain: block.kGain,
      epsilon: norm.epsilon,
      cosine: buffers.cosine,
      sine: buffers.sine,
      qMatrix: block.queryMatrix,
      kMatrix: block.keyMatrix,
      factors: block.cacheFactors,
      levels: kept === 16 ? 15 : 2 ** model.scheme.kvBits - 1,
      out: buffers.q,
      outHalves: !pass.decoding,
      cache,
      pageBytes,
      taskRows: pass.taskRows,
    });
    const common = {
      ...shape,
      q: buffers.q,
      pages: pass.pages,
      window: config.slidingWindow ?? 0,
      cache,
      pageBytes,
    };
    if (pass.decoding) {
      kernels.attendDecode({
        ...common,
        sequences: pass.attention,
        count: pass.attentionCount,
        splits: pass.splits,
        partial: buffers.partial,
      });
      const joined = {
        input: "splits",
        x: buffers.partial,
        stride: 0,
        splits: pass.splits,
      } as const;
      this.site(block, "attn_out", pass, joined, residual);
    } else {
      kernels.attendPrefill({
        ...common,
        blocks: pass.attention,
        blockCount: pass.attentionCount,
        out: buffers.mixed,
        outHalves: false,
      });
      const plain = { input: "plain", x: buffers.mixed, stride: attention } as const;
      this.site(block, "attn_out", pass, plain, residual);
    }
    const together = block.sites.mlp_in.products.length === 1;
    const stride = together ? intermediateSize : 2 * intermediateSize;
    this.site(block, "mlp_in", pass, normed(block.postGain), { out: buffers.gated, stride });
    const up = buffers.gated + intermediateSize * 4;
    this.site(
      block,
      "mlp_down",
      pass,
      together
        ? { input: "plain", x: buffers.gated, stride }
        : { input: "gated", x: buffers.gated, x2: up, stride },
      residual,
    );
  }

  /** A site: its activation's codes, then its products. */
  private site(
    block: CudaBlock,
    name: LinearSite,
    pass: Pass,
    from: Pick<SiteRequest, "input" | "x" | "stride"> & Partial<SiteRequest>,
    { out, stride, accumulate }: SiteOutput,
  ): void {
    const { kernels, buffers } = this;
    const { shape, precise, left, right, clips, sets, products } = block.sites[name];
    const capacity = capacityOf(pass.rows);
    const { codes, scales } = buffers;
    kernels.site({
      ...from,
      shape,
      precise,
      left,
      right,
      clips,
      sets,
      capacity,
      codes,
      scales,
      tokens: pass.rows,
      bits: this.model.scheme.activationBits,
    });
    for (const product of products)
      kernels.gemm({
        weights: product.weights,
        bits: product.bits,
        activationBits: this.model.scheme.activationBits,
        order: product.order,
        columns: product.columns,
        featureScale: product.featureScale,
        bias: product.bias,
        setTiles: product.setTiles,
        codes: codes + product.set * codeBytes(capacity, product.columns),
        tokenScale: scales + product.set * capacity * 4,
        out: out + product.column * 4,
        outStride: stride,
        accumulate,
        tokens: pass.rows,
        capacity,
      });
  }
}
