/**
 * A model's weights on the GPU: integer codes in the order of the matrix units (packed there, by a kernel), scales,
 * transforms as halves, clipping factors; embedding and head in the 16 bits of the checkpoint.
 */
import type {
  ClipLogits,
  PackedBlock,
  PackedLinear,
  PackedTransform,
} from "../../contract/packed.js";
import type { DevicePointer } from "../driver.js";
import type { PlacedBalance } from "./requests.js";
import type { ModelShape, EndLayerSource, StoredMatrix } from "../../contract/inference.js";
import { areHalves, floatsToHalfBytes } from "../../../common/half.js";
import { PlanishError } from "../../../common/errors.js";
import { mapValues } from "../../../common/records.js";
import {
  cacheShape,
  type ActivationStep,
  type BlockProgram,
  type KeptName,
  type LinearName,
  type LinearSite,
  type NormName,
  type SitePlace,
} from "../../contract/program.js";
import { fuse, type FusedSite } from "../../contract/fuse.js";
import { LEGAL_GROUPS, type Scheme } from "../../contract/scheme.js";
import {
  BLOCK_COLUMNS,
  orderFeatures,
  packedBytes,
  paddedHalves,
  siteGeometry,
  TILE_FEATURES,
  type FeatureOrder,
  type SiteGrid,
  type SiteShape,
} from "./layout.js";
import type { MemoryDevice } from "./memory-device.js";
import { EndLayerKernels, type Table } from "./end-layer-kernels.js";
import {
  asStored,
  codeShift,
  gridKey,
  groupOf,
  orderGroups,
  type WeightGroups,
} from "./group-scales.js";
import { placeTable } from "./code-table.js";
import { NoCudaKernel, plainShape, planSite } from "./support.js";

/** One product of a site: one or several linears whose rows follow one another. */
export interface CudaProduct {
  readonly order: FeatureOrder;
  readonly columns: number;
  readonly bits: 4 | 8;
  readonly weights: DevicePointer;
  readonly featureScale: DevicePointer;
  /** How weights have scales in groups of columns. */
  readonly groups?: WeightGroups;
  readonly bias?: DevicePointer;
  /** Which of the site's sets of codes it reads. */
  readonly set: number;
  /** Tiles that read the next sets, where the linears of one product have clips of their own. */
  readonly setTiles?: readonly [number, number];
  /** Its first column among the site's outputs. */
  readonly column: number;
}

export interface CudaSite {
  readonly shape: SiteShape;
  readonly precise: boolean;
  readonly left?: DevicePointer;
  readonly right?: DevicePointer;
  /** σ of the clipping logits, [sets][2]. */
  readonly clips: DevicePointer;
  readonly sets: number;
  /** Bits of its codes, and how they have scales. */
  readonly bits: number;
  readonly grid: SiteGrid;
  readonly products: readonly CudaProduct[];
}

export interface CudaBlock {
  /** Gains of the norms. */
  readonly gains: Readonly<Record<NormName, DevicePointer>>;
  /** Of the norms that have any but zero. */
  readonly biases: Readonly<Partial<Record<NormName, DevicePointer>>>;
  /** Numbers that the block's values are multiplied by. */
  readonly factors: Readonly<Partial<Record<KeptName, DevicePointer>>>;
  readonly sites: Readonly<Record<LinearSite, CudaSite>>;
  /** P_k⁻ᵀ and P_k, padded halves. */
  readonly queryMatrix?: DevicePointer;
  readonly keyMatrix?: DevicePointer;
  readonly keyBalance?: PlacedBalance;
  /** σ of the cache's clipping logits, [4]. */
  readonly cacheFactors: DevicePointer;
}

export interface CudaEndLayers {
  readonly embedding: Table;
  readonly head: Table;
  readonly finalNorm?: {
    readonly kind: "rms" | "layer";
    readonly gain: DevicePointer;
    readonly bias?: DevicePointer;
    readonly epsilon: number;
  };
  readonly embeddingScale?: number;
  readonly logitSoftcap?: number;
}

/** A model as the executor runs it. */
export interface CudaModel {
  readonly shape: ModelShape;
  readonly programs: readonly BlockProgram[];
  readonly scheme: Scheme;
  readonly blocks: readonly CudaBlock[];
  readonly endLayers: CudaEndLayers;
  readonly weightBytes: number;
}

/** σ(logit), and 1 where nothing is clipped. */
function factors(clip: ClipLogits | undefined): [number, number] {
  const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
  return clip ? [sigmoid(clip.max), sigmoid(clip.min)] : [1, 1];
}

/** Which set of codes each linear of a site reads, and the factors of each set. Equal clips share a set. */
export function codeSets(clips: readonly (ClipLogits | undefined)[]): {
  readonly setOf: readonly number[];
  readonly factors: readonly (readonly [number, number])[];
} {
  const sets: [number, number][] = [];
  const setOf = clips.map((clip) => {
    const [max, min] = factors(clip);
    const known = sets.findIndex((set) => set[0] === max && set[1] === min);
    return known >= 0 ? known : sets.push([max, min]) - 1;
  });
  return { setOf, factors: sets };
}

/** Linears that go in one product. */
interface Group {
  readonly members: readonly number[];
  readonly gated: boolean;
  readonly setTiles?: readonly [number, number];
}

/**
 * How the linears of a site are multiplied: together when they read one set of codes (gate and up then with SiLU(gate)·up
 * in the epilogue) or when each one's set begins at a whole tile, else one by one. So are those on different grids.
 */
export function groupLinears(
  rows: readonly number[],
  setOf: readonly number[],
  gated: boolean,
  grids: readonly string[] = [],
): readonly Group[] {
  const all = rows.map((_, i) => i);
  if (grids.some((grid) => grid !== grids[0]))
    return all.map((i) => ({ members: [i], gated: false }));
  if (setOf.every((set) => set === setOf[0])) return [{ members: all, gated }];
  const inOrder = setOf.every((set, i) => set === i);
  const aligned = rows.slice(0, -1).every((count) => count % TILE_FEATURES === 0);
  if (!gated && rows.length === 3 && inOrder && aligned) {
    const first = rows[0] / TILE_FEATURES;
    return [{ members: all, gated, setTiles: [first, first + rows[1] / TILE_FEATURES] }];
  }
  return all.map((i) => ({ members: [i], gated: false }));
}

/** Puts a model's blocks on a device, one after the other. */
export class WeightPlacer implements Disposable {
  private readonly endLayers: EndLayerKernels;
  /** Codes on their way, as they come. */
  private staging: { readonly pointer: DevicePointer; readonly bytes: number } | undefined;
  private bytes = 0;

  constructor(
    private readonly device: MemoryDevice,
    private readonly scheme: Scheme,
  ) {
    this.endLayers = new EndLayerKernels(device);
  }

  /** Bytes of packed weights and tables so far. */
  get weightBytes(): number {
    return this.bytes;
  }

  /** @throws NoCudaKernel when the block has parts that no kernel takes, PlanishError when memory is short. */
  block(program: BlockProgram, block: PackedBlock): CudaBlock {
    const { device } = this;
    const { keyTransform, keyClip, valueClip } = block;
    const square = (matrix: Float32Array) => {
      const { headDim } = cacheShape(program);
      return device.put(paddedHalves(matrix, headDim, headDim));
    };
    return {
      gains: mapValues(block.norms, ({ gain }) => device.put(Float32Array.from(gain.data))),
      biases: mapValues(block.norms, ({ bias }) =>
        bias?.data.some((value) => value !== 0)
          ? device.put(Float32Array.from(bias.data))
          : undefined,
      ),
      factors: Object.fromEntries(
        program.steps.flatMap((step) =>
          step.op === "scale" && typeof step.factor !== "number"
            ? [[step.factor, device.put(Float32Array.from(block.kept[step.factor].data))] as const]
            : [],
        ),
      ),
      sites: Object.fromEntries(
        fuse(program).flatMap((step) =>
          step.op === "site" ? [[step.step.site, this.site(block, step)] as const] : [],
        ),
      ),
      queryMatrix: keyTransform && square(keyTransform.inverseT),
      keyMatrix: keyTransform && square(keyTransform.matrix),
      keyBalance: keyTransform?.balance && {
        shift: device.put(keyTransform.balance.shift),
        diag: device.put(keyTransform.balance.diag),
        inverse: device.put(keyTransform.balance.diag.map((x) => 1 / x)),
      },
      cacheFactors: device.put(Float32Array.from([...factors(keyClip), ...factors(valueClip)])),
    };
  }

  /** Embedding, head and final norm. */
  endLayersOf(source: EndLayerSource): CudaEndLayers {
    const { embedding: stored, head, finalNorm, embeddingScale, logitSoftcap } = source;
    const embedding = this.table(stored);
    return {
      embedding,
      head: head ? this.table(head) : embedding,
      finalNorm: finalNorm && {
        kind: finalNorm.kind,
        gain: this.device.put(Float32Array.from(finalNorm.gain.data)),
        bias: finalNorm.bias && this.device.put(Float32Array.from(finalNorm.bias.data)),
        epsilon: finalNorm.epsilon,
      },
      embeddingScale,
      logitSoftcap,
    };
  }

  /** As codes, where it is stored so; as the checkpoint stores it, where that is 16 bits; else rounded to halves. */
  private table(matrix: StoredMatrix): Table {
    const codes = matrix.quantized?.();
    if (codes) {
      const { table, bytes } = placeTable(this.device, matrix.shape, codes, this.scheme);
      this.bytes += bytes;
      return table;
    }
    const bytes = matrix.halves() ?? floatsToHalfBytes(matrix.values(), "embedding");
    this.bytes += bytes.byteLength;
    return { pointer: this.device.put(bytes), bf16: matrix.type === "BF16" };
  }

  private site(block: PackedBlock, fused: FusedSite): CudaSite {
    const { device } = this;
    const { place, products: read } = fused;
    const { site, width } = place;
    const shape = siteShape(place, block.transforms[site]);
    const linears = read.map(({ step }) => requirePart(block, step.linear));
    const grid = this.gridOf(linears);
    const { precise } = planSite(shape, device.driver.info.sharedBytesPerBlock, grid);
    const { rows, columns } = siteGeometry(shape);
    const { left, right } = block.transforms[site] ?? {};
    const { setOf, factors: sets } = codeSets(linears.map((linear) => linear.activationClip));
    const counts = linears.map((linear) => linear.shape[0]);
    const grids = linears.map((linear) => gridKey(linear, (own) => this.bitsOf(own)));
    const products = groupLinears(counts, setOf, isSilu(fused.gated), grids).map(
      (group): CudaProduct => {
        const [first] = group.members;
        return {
          ...this.product(
            group.members.map((i) => linears[i]),
            width,
            group.gated,
          ),
          set: setOf[first],
          setTiles: group.setTiles,
          column: counts.slice(0, first).reduce((sum, count) => sum + count, 0),
        };
      },
    );
    return {
      shape,
      precise,
      left: left && device.put(paddedHalves(left, shape.left, rows)),
      right: right && device.put(paddedHalves(right, shape.right, columns)),
      clips: device.put(Float32Array.from(sets.flat())),
      sets: sets.length,
      bits: block.activationBits?.[site] ?? this.scheme.activationBits,
      grid,
      products,
    };
  }

  /** Bits in which codes of this width are kept. */
  private bitsOf(own: number = this.scheme.weightBits): 4 | 8 {
    return own <= 4 ? 4 : 8;
  }

  /** How a site's codes have scales, and which sums of them its linears need. */
  private gridOf(linears: readonly PackedLinear[]): SiteGrid {
    const { activationGroup: span, activationOffset: zero } = this.scheme;
    const units = linears.flatMap(({ path, shape, quantized }) =>
      quantized?.offset
        ? [Math.min(groupOf(path, quantized, shape[1]) ?? BLOCK_COLUMNS, span ?? BLOCK_COLUMNS)]
        : [],
    );
    const sums = LEGAL_GROUPS.find((size) => size === Math.min(...units));
    return { span, zero, sums };
  }

  private product(
    linears: readonly PackedLinear[],
    columns: number,
    gated: boolean,
  ): Omit<CudaProduct, "set" | "setTiles" | "column"> {
    const { device } = this;
    const [{ path: firstPath, quantized: firstCodes }] = linears;
    const bits = this.bitsOf(firstCodes?.bits);
    const group = firstCodes && groupOf(firstPath, firstCodes, columns);
    const rows = linears.reduce((sum, { shape }) => sum + shape[0], 0);
    const order = { rows, gated };
    const size = rows * columns;
    if (!this.staging || this.staging.bytes < size) {
      if (this.staging) device.free(this.staging.pointer);
      this.staging = undefined;
      this.staging = { pointer: device.allocate(size), bytes: size };
    }
    const perRow = group ? columns / group : 1;
    const scale = new Float32Array(rows * perRow);
    const offset = firstCodes?.offset && new Float32Array(rows * perRow);
    const shift = firstCodes ? codeShift(firstCodes, bits) : 0;
    const bias = linears.some((linear) => linear.bias) ? new Float32Array(rows) : undefined;
    let row = 0;
    for (const { path, shape, quantized, grid, bias: own } of linears) {
      if (grid) throw new NoCudaKernel(`${path} has a static grid, which no CUDA kernel takes`);
      if (!quantized) throw new PlanishError(`${path} holds no codes`);
      if (quantized.codes.length !== shape[0] * columns)
        throw new PlanishError(
          `${path} holds ${quantized.codes.length} codes for ${shape[0]}×${columns} weights`,
        );
      device.write(this.staging.pointer + row * columns, quantized.codes);
      scale.set(quantized.scale, row * perRow);
      if (quantized.offset) offset?.set(quantized.offset, row * perRow);
      if (own) bias?.set(own, row);
      row += shape[0];
    }
    const bytes = packedBytes(order, columns, bits);
    const weights = device.allocate(bytes);
    // The next write to the staging area is ordered behind the packing by the stream.
    this.endLayers.pack(this.staging.pointer, columns, order, bits, weights, -shift);
    this.bytes += bytes;
    const put = (values: Float32Array | Uint16Array) => {
      this.bytes += values.byteLength;
      return device.put(values);
    };
    const halves = group !== undefined && areHalves(scale) && (!offset || areHalves(offset));
    const inGroups = (values: Float32Array, fill: number) =>
      put(asStored(orderGroups(values, columns, group ?? columns, order, fill), halves));
    return {
      order,
      columns,
      bits,
      weights,
      featureScale: group ? inGroups(scale, 1) : put(orderFeatures(scale, order, 1)),
      groups: group && { columns: group, halves, offset: offset && inGroups(offset, 0), shift },
      bias: bias && device.put(orderFeatures(bias, order, 0)),
    };
  }

  [Symbol.dispose](): void {
    if (this.staging) this.device.free(this.staging.pointer);
    this.staging = undefined;
  }
}

/** Whether a product computes a gate in its epilogue. */
function isSilu(gated: ActivationStep | undefined): boolean {
  return gated?.activation === "silu" && !gated.clamp;
}

function requirePart(block: PackedBlock, role: LinearName): PackedLinear {
  const linear = block.linears[role];
  if (!linear) throw new PlanishError(`linear "${role}" is missing`);
  return linear;
}

/** How a site's kernel sees its rows. */
function siteShape(
  { site, width, attention }: SitePlace,
  transform: PackedTransform | undefined,
): SiteShape {
  const side = (data: Float32Array | undefined) => data && Math.sqrt(data.length);
  const hasLeft = transform?.left !== undefined;
  const hasRight = transform?.right !== undefined;
  // Attention's splits are joined per head.
  if (attention) {
    const shape = { left: attention.heads, right: attention.headDim, hasLeft, hasRight };
    if (hasLeft && side(transform.left) !== shape.left)
      throw new PlanishError(
        `the transform at ${site} is ${side(transform.left)} wide, for ${shape.left} heads`,
      );
    return shape;
  }
  if (!transform || (!hasLeft && !hasRight)) return plainShape(width);
  let left = side(transform.left);
  let right = side(transform.right);
  right ??= width / (left ?? 1);
  left ??= width / right;
  if (left * right !== width)
    throw new PlanishError(
      `the transform at ${site} is ${left}×${right}, its activation ${width} wide`,
    );
  return { left, right, hasLeft, hasRight };
}
