/** A pass over the blocks: rows that go through a model together, as launches of the engine's kernels. */
import type { DevicePointer } from "../driver.js";
import {
  attentionsOf,
  cacheShape,
  rotariesOf,
  rotaryKey,
  sitesOf,
  type BlockProgram,
} from "../../contract/program.js";
import type { GroupSize } from "../../contract/scheme.js";
import { Slots } from "../../contract/slots.js";
import {
  planCudaBlock,
  type PlannableBlock,
  type PlannedBlock,
  type PlannedCall,
  type PlannedInput,
  type Region,
} from "./block-plan.js";
import type { EngineDevice, EngineKernels } from "./kernels.js";
import { codeBytes, groupCount, pageLayout, roundUp, type SiteGrid } from "./layout.js";
import type { ProductGroups, SiteRequest } from "./requests.js";
import { RowKernels } from "./row-kernels.js";
import type { CudaBlock, CudaModel, CudaProduct } from "./weights.js";

/** Most rows of one pass; longer steps are cut. */
export const PASS_ROWS = 2048;
/** Most sequences of a decoding pass. */
export const DECODE_ROWS = 128;

/** Where a pass's rows live between kernels. */
export interface PassBuffers {
  /** Values between kernels by slot, f32 [rows, width]; the first begins as the residual stream. */
  readonly slots: readonly DevicePointer[];
  /** Queries on their way to attention: f32 for decoding, halves else. */
  readonly q: DevicePointer;
  readonly codes: DevicePointer;
  readonly scales: DevicePointer;
  /** Sums of codes, for products whose weights have offsets. */
  readonly sums: DevicePointer;
  /** Splits of decoding's attention. */
  readonly partial: DevicePointer;
  /** Rotary tables by kind (`rotariesOf`), f32 [rows, headDim/2]. */
  readonly cosine: readonly DevicePointer[];
  readonly sine: readonly DevicePointer[];
}

/** Sizes in bytes of the same buffers. */
export type PassBytes = {
  readonly [Name in keyof PassBuffers]: PassBuffers[Name] extends number
    ? number
    : readonly number[];
};

/** A model's blocks as calls, and the columns of the slots that they use. */
export interface PassPlan {
  readonly blocks: readonly PlannedBlock[];
  readonly widths: readonly number[];
  /** Where the last block's output lies. */
  readonly output: Region;
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

/** Bytes of one set of scales or sums: one for a row, or one for each group. */
function scalesOf(group: GroupSize | undefined, width: number, capacity: number): number {
  return 4 * capacity * (group ? groupCount(width, group) : 1);
}

/** @throws NoCudaKernel naming what has no kernel. */
export function planPass(
  programs: readonly BlockProgram[],
  blocks: readonly PlannableBlock[],
  hiddenSize: number,
): PassPlan {
  const slots = new Slots();
  let output: Region = { slot: slots.take(hiddenSize), column: 0, stride: hiddenSize };
  const planned = programs.map((program, layer) => {
    const block = planCudaBlock(program, blocks[layer], slots, output);
    ({ output } = block);
    return block;
  });
  return { blocks: planned, widths: slots.widths, output };
}

/** Sizes in bytes of the buffers that a model needs. */
export function passBytes(
  { programs, blocks }: Pick<CudaModel, "programs" | "blocks">,
  { widths }: PassPlan,
  splits: number,
): PassBytes {
  const capacity = capacityOf(PASS_ROWS);
  const rows = (width: number) => PASS_ROWS * width * 4;
  const attentions = programs.flatMap(attentionsOf);
  const width = Math.max(...attentions.map(({ heads, headDim }) => heads * headDim));
  const sites = programs.flatMap((program, layer) =>
    sitesOf(program).map((place) => ({
      width: place.width,
      sets: blocks[layer].sites[place.site].sets,
      grid: blocks[layer].sites[place.site].grid,
    })),
  );
  const turns = rotariesOf(programs).map(({ dims }) => rows(dims / 2));
  return {
    slots: widths.map(rows),
    q: Math.max(PASS_ROWS * 2, DECODE_ROWS * 4) * width,
    codes: Math.max(...sites.map((site) => site.sets * codeBytes(capacity, site.width))),
    scales: Math.max(
      ...sites.map(({ sets, width, grid }) => sets * scalesOf(grid.span, width, capacity)),
    ),
    sums: Math.max(
      ...sites.map(({ sets, width, grid }) =>
        grid.sums ? sets * scalesOf(grid.sums, width, capacity) : 4,
      ),
    ),
    partial:
      DECODE_ROWS *
      splits *
      4 *
      Math.max(...attentions.map(({ heads, headDim }) => heads * (headDim + 2))),
    cosine: turns,
    sine: turns,
  };
}

/** Enqueues blocks. */
export class PassRunner {
  private readonly kernels: EngineKernels;
  private readonly kept: 4 | 16;
  /** Which rotary tables each kind has. */
  private readonly kinds: ReadonlyMap<string, number>;
  private readonly rowKernels: RowKernels;
  /** Where each layer's keys and values lie in a page. */
  private readonly layerOffsets: readonly number[];
  /** Bytes of a page: keys and values of every layer. */
  readonly pageBytes: number;

  constructor(
    device: EngineDevice & { readonly kernels: EngineKernels },
    private readonly model: CudaModel,
    private readonly plan: PassPlan,
    private readonly buffers: PassBuffers,
  ) {
    this.kernels = device.kernels;
    this.rowKernels = new RowKernels(device);
    this.kinds = new Map(rotariesOf(model.programs).map((kind, i) => [rotaryKey(kind), i]));
    this.kept = model.scheme.kvBits >= 16 ? 16 : 4;
    let bytes = 0;
    this.layerOffsets = model.programs.map((program) => {
      const { heads, headDim } = cacheShape(program);
      const offset = bytes;
      bytes += heads * pageLayout(headDim, this.kept).bytes;
      return offset;
    });
    this.pageBytes = bytes;
  }

  /** All blocks over the pass's rows in the first slot; `cache`: page 0. */
  run(pass: Pass, cache: DevicePointer): void {
    this.plan.blocks.forEach(({ calls }, layer) => {
      const block = this.model.blocks[layer];
      for (const call of calls) {
        const at = cache + this.layerOffsets[layer];
        if (call.op === "site") this.site(block, call, pass);
        else if (call.op === "cache") this.heads(block, call, pass, at);
        else if (call.op === "attention") this.attention(call, pass, at);
        else this.rows(block, call, pass);
      }
    });
  }

  private at({ slot, column }: Region): DevicePointer {
    return this.buffers.slots[slot] + 4 * column;
  }

  /** Steps on rows that no other kernel computes. */
  private rows(
    block: CudaBlock,
    call: Extract<PlannedCall, { readonly op: "norm" | "pair" | "activation" | "scale" }>,
    { rows }: Pass,
  ): void {
    const { rowKernels } = this;
    const of = (region: Region) => ({ at: this.at(region), stride: region.stride });
    const out = of(call.out);
    switch (call.op) {
      case "norm": {
        const { groups, gains, step } = call;
        const { kind, width, epsilon, norm } = step;
        const [gain, bias] = [block.gains[norm], block.biases[norm]];
        const x = of(call.x);
        rowKernels.norm({ kind, x, out, rows, groups, width, gain, bias, gains, epsilon });
        return;
      }
      case "pair":
        rowKernels.pair(call.kind, of(call.a), of(call.b), out, { rows, width: call.width });
        return;
      case "activation": {
        const { activation, clamp } = call.step;
        const gate = call.gate && of(call.gate);
        const { width } = call;
        rowKernels.activate({ activation, clamp, gate, x: of(call.x), out, rows, width });
        return;
      }
      case "scale": {
        const { factor, width } = call;
        const by = typeof factor === "number" ? factor : { at: block.factors[factor] ?? 0 };
        rowKernels.scale(of(call.x), by, out, { rows, width });
        return;
      }
    }
  }

  private heads(
    block: CudaBlock,
    { fused, q, k, v }: Extract<PlannedCall, { readonly op: "cache" }>,
    pass: Pass,
    cache: DevicePointer,
  ): void {
    const { buffers, kept, model } = this;
    const { attention, queries, keys } = fused;
    const rotary = queries.rotary && this.kinds.get(rotaryKey(queries.rotary));
    this.kernels.queriesKeysValues({
      headDim: attention.headDim,
      heads: attention.heads,
      kvHeads: attention.kvHeads,
      kept,
      tasks: pass.tasks,
      taskCount: pass.taskCount,
      pageOf: pass.pageOf,
      slotOf: pass.slotOf,
      q: this.at(q),
      qStride: q.stride,
      k: this.at(k),
      v: this.at(v),
      kvStride: k.stride,
      halves: false,
      qGain: queries.norm && block.gains[queries.norm.norm],
      kGain: keys.norm && block.gains[keys.norm.norm],
      epsilon: (queries.norm ?? keys.norm)?.epsilon ?? 0,
      cosine: rotary === undefined ? undefined : buffers.cosine[rotary],
      sine: rotary === undefined ? undefined : buffers.sine[rotary],
      qMatrix: block.queryMatrix,
      kMatrix: block.keyMatrix,
      balance: block.keyBalance,
      factors: block.cacheFactors,
      levels: kept === 16 ? 15 : 2 ** model.scheme.kvBits - 1,
      out: buffers.q,
      outHalves: !pass.decoding,
      cache,
      pageBytes: this.pageBytes,
      taskRows: pass.taskRows,
    });
  }

  private attention(
    { step, out }: Extract<PlannedCall, { readonly op: "attention" }>,
    pass: Pass,
    cache: DevicePointer,
  ): void {
    const { kernels, buffers, kept, pageBytes } = this;
    const { heads, kvHeads, headDim, scale, window = 0 } = step;
    const common = {
      headDim,
      heads,
      kvHeads,
      kept,
      q: buffers.q,
      pages: pass.pages,
      window,
      scale,
      cache,
      pageBytes,
    };
    if (pass.decoding)
      kernels.attendDecode({
        ...common,
        sequences: pass.attention,
        count: pass.attentionCount,
        splits: pass.splits,
        partial: buffers.partial,
      });
    else
      kernels.attendPrefill({
        ...common,
        blocks: pass.attention,
        blockCount: pass.attentionCount,
        out: this.at(out),
        outHalves: false,
      });
  }

  /** A site: its activation's codes, then its products. */
  private site(
    block: CudaBlock,
    { site: name, input, out, accumulate }: Extract<PlannedCall, { readonly op: "site" }>,
    pass: Pass,
  ): void {
    const { kernels, buffers } = this;
    const { shape, precise, left, right, clips, sets, bits, grid, products } = block.sites[name];
    const capacity = capacityOf(pass.rows);
    const { codes, scales, sums } = buffers;
    kernels.site({
      ...this.input(block, input, pass),
      shape,
      precise,
      left,
      right,
      clips,
      sets,
      capacity,
      codes,
      scales,
      grid,
      sums: grid.sums && sums,
      tokens: pass.rows,
      bits,
    });
    for (const product of products)
      kernels.gemm({
        weights: product.weights,
        bits: product.bits,
        activationBits: bits,
        order: product.order,
        columns: product.columns,
        featureScale: product.featureScale,
        bias: product.bias,
        setTiles: product.setTiles,
        codes: codes + product.set * codeBytes(capacity, product.columns),
        tokenScale: scales + product.set * scalesOf(grid.span, product.columns, capacity),
        groups: productGroups(
          product,
          grid,
          (sum) => sums + product.set * scalesOf(sum, product.columns, capacity),
        ),
        out: this.at(out) + product.column * 4,
        outStride: out.stride,
        accumulate,
        tokens: pass.rows,
        capacity,
      });
  }

  private input(
    block: CudaBlock,
    input: PlannedInput,
    pass: Pass,
  ): Pick<SiteRequest, "input" | "x" | "stride"> & Partial<SiteRequest> {
    switch (input.kind) {
      case "norm": {
        const { epsilon, norm } = input.step;
        const { stride } = input.x;
        return { input: "rms", x: this.at(input.x), stride, gain: block.gains[norm], epsilon };
      }
      case "gated": {
        const { gate, up } = input;
        return { input: "gated", x: this.at(gate), x2: this.at(up), stride: gate.stride };
      }
      case "attention":
        if (pass.decoding)
          return { input: "splits", x: this.buffers.partial, stride: 0, splits: pass.splits };
        return { input: "plain", x: this.at(input.x), stride: input.x.stride };
      case "plain":
        return { input: "plain", x: this.at(input.x), stride: input.x.stride };
    }
  }
}

/** What a product with scales of groups is given beside others; `at`: where sums of a set's codes lie. */
function productGroups(
  { groups }: CudaProduct,
  { span, sums }: SiteGrid,
  at: (sums: GroupSize) => DevicePointer,
): ProductGroups | undefined {
  if (!groups && !span) return undefined;
  return {
    weights: groups?.columns,
    activations: span,
    halves: groups?.halves,
    offset: groups?.offset,
    shift: groups?.shift,
    sums: sums && groups?.offset !== undefined ? { columns: sums, at: at(sums) } : undefined,
  };
}
