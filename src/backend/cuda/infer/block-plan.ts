/**
 * Prepares a block program for the engine on CUDA: its fused steps (`fuse.ts`) as calls of the engine's kernels, and where
 * their values lie. A site's products write their outputs side by side, and SiLU(gate)·up is computed by the product where
 * one product holds both.
 */
import {
  BLOCK_INPUT,
  type ActivationStep,
  type AttentionStep,
  type BlockProgram,
  type KeptName,
  type NormStep,
  type ValueName,
} from "../../contract/program.js";
import { fuse, type FusedCache, type FusedSite } from "../../contract/fuse.js";
import type { Slot, Slots } from "../../contract/slots.js";
import { NoCudaKernel } from "./support.js";
import type { CudaBlock } from "./weights.js";

/** Columns of a slot's rows that hold a value, f32. */
export interface Region {
  readonly slot: Slot;
  /** First column. */
  readonly column: number;
  readonly stride: number;
}

/** What a site's kernel reads. */
export type PlannedInput =
  | { readonly kind: "plain"; readonly x: Region }
  | { readonly kind: "norm"; readonly x: Region; readonly step: NormStep }
  | { readonly kind: "gated"; readonly gate: Region; readonly up: Region }
  /** What attention gave: rows, or splits that are still to be joined. */
  | { readonly kind: "attention"; readonly x: Region };

export type PlannedCall =
  | {
      readonly op: "site";
      readonly site: string;
      readonly input: PlannedInput;
      readonly out: Region;
      readonly accumulate: boolean;
    }
  | {
      readonly op: "cache";
      readonly fused: FusedCache;
      readonly q: Region;
      readonly k: Region;
      readonly v: Region;
    }
  | { readonly op: "attention"; readonly step: AttentionStep; readonly out: Region }
  | {
      readonly op: "norm";
      readonly step: NormStep;
      readonly groups: number;
      readonly gains: number;
      readonly x: Region;
      readonly out: Region;
    }
  | {
      readonly op: "pair";
      readonly kind: "add" | "multiply";
      readonly width: number;
      readonly a: Region;
      readonly b: Region;
      readonly out: Region;
    }
  | {
      readonly op: "activation";
      readonly step: ActivationStep;
      readonly width: number;
      readonly gate?: Region;
      readonly x: Region;
      readonly out: Region;
    }
  | {
      readonly op: "scale";
      readonly factor: number | KeptName;
      readonly width: number;
      readonly x: Region;
      readonly out: Region;
    };

export interface PlannedBlock {
  readonly calls: readonly PlannedCall[];
  /** Where the block's output lies. */
  readonly output: Region;
}

/** What a plan depends on of a block's weights. */
export type PlannableBlock = Pick<CudaBlock, "sites"> & Partial<Pick<CudaBlock, "biases">>;

/** `input`: where the block's input lies. @throws NoCudaKernel naming what has no kernel. */
export function planCudaBlock(
  program: BlockProgram,
  block: PlannableBlock,
  slots: Slots,
  input: Region,
): PlannedBlock {
  return new Planner(block, slots, input).run(program);
}

class Planner {
  private readonly regions = new Map<ValueName, Region>();
  /** Values that share a slot and are still to be read. */
  private readonly tenants = new Map<Slot, number>();
  private readonly mixed = new Set<ValueName>();
  /** Slots of what one step reads, and nothing else. */
  private passing: Slot[] = [];

  constructor(
    private readonly block: PlannableBlock,
    private readonly slots: Slots,
    input: Region,
  ) {
    this.place(BLOCK_INPUT, input);
  }

  run(program: BlockProgram): PlannedBlock {
    const calls = fuse(program).flatMap((fused): readonly PlannedCall[] => {
      const planned = this.call(fused);
      for (const value of fused.frees) this.free(value);
      for (const slot of this.passing) this.slots.release(slot);
      this.passing = [];
      return planned;
    });
    return { calls, output: this.region(program.out) };
  }

  private call(fused: ReturnType<typeof fuse>[number]): readonly PlannedCall[] {
    switch (fused.op) {
      case "site":
        return this.site(fused);
      case "cache":
        return [this.cache(fused)];
      case "attention": {
        const { step } = fused;
        const out = this.take(step.out, step.heads * step.headDim);
        this.mixed.add(step.out);
        return [{ op: "attention", step, out }];
      }
      case "norm": {
        const { step, groups, gains, inPlace } = fused;
        const x = this.rows(step.x);
        const out = this.result(step.out, groups * step.width, inPlace ? x : undefined);
        return [{ op: "norm", step, groups, gains, x, out }];
      }
      case "add":
      case "multiply": {
        const { op, step, width, onto } = fused;
        const [a, b] = [this.rows(step.a), this.rows(step.b)];
        const place = onto === undefined ? undefined : this.region(onto);
        return [{ op: "pair", kind: op, width, a, b, out: this.result(step.out, width, place) }];
      }
      case "activation": {
        const { step, width } = fused;
        return [this.activation(step, width, this.take(step.out, width))];
      }
      case "scale": {
        const { step, width, inPlace } = fused;
        const x = this.rows(step.x);
        const out = this.result(step.out, width, inPlace ? x : undefined);
        return [{ op: "scale", factor: step.factor, width, x, out }];
      }
      case "transform":
      case "route":
      case "experts":
      case "weigh":
        throw new NoCudaKernel("a mixture of experts has no CUDA kernel");
      case "arrange":
      case "take":
      case "splice":
      case "carry":
        throw new NoCudaKernel(`a step "${fused.op}" has no CUDA kernel`);
    }
  }

  private cache(fused: FusedCache): PlannedCall {
    const [q, k, v] = [fused.queries.root, fused.keys.root, fused.step.v].map((value) =>
      this.rows(value),
    );
    if (k.stride !== v.stride)
      throw new NoCudaKernel("keys and values of different strides have no CUDA kernel");
    for (const { norm } of [fused.queries, fused.keys]) if (norm) this.checkHeadNorm(norm);
    return { op: "cache", fused, q, k, v };
  }

  private checkHeadNorm(step: NormStep): void {
    if (step.kind === "layer") throw new NoCudaKernel("layer norms of heads have no CUDA kernel");
    this.checkBias(step);
  }

  private checkBias({ norm }: NormStep): void {
    if (this.block.biases?.[norm] !== undefined)
      throw new NoCudaKernel(`the RMS norm ${norm} has a bias, which no CUDA kernel adds`);
  }

  private activation(step: ActivationStep, width: number, out: Region): PlannedCall {
    const gate = step.gate === undefined ? undefined : this.rows(step.gate);
    return { op: "activation", step, width, gate, x: this.rows(step.x), out };
  }

  /** A region of its own for a value. */
  private take(value: ValueName, width: number): Region {
    const out = { slot: this.slots.take(width), column: 0, stride: width };
    this.place(value, out);
    return out;
  }

  /** The same, or the place of what is read for the last time. */
  private result(value: ValueName, width: number, place: Region | undefined): Region {
    if (!place) return this.take(value, width);
    this.regions.set(value, place);
    return place;
  }

  /** A value that lies as rows, also while attention's splits do not. */
  private rows(value: ValueName): Region {
    if (this.mixed.has(value))
      throw new NoCudaKernel("attention's output read by something else than a site has no kernel");
    return this.region(value);
  }

  private site(fused: FusedSite): readonly PlannedCall[] {
    const { products, accumulate, gated, step } = fused;
    const { input, before } = this.input(fused);
    const common = { op: "site", site: step.site, input, accumulate } as const;
    if (accumulate) {
      const [product, ...others] = products;
      if (others.length > 0)
        throw new NoCudaKernel("several products that add themselves to a sum have no CUDA kernel");
      const out = this.region(product.onto ?? product.out);
      this.place(product.out, out);
      return [...before, { ...common, out }];
    }
    const activated =
      gated && this.block.sites[step.site]?.products.some(({ order }) => order.gated);
    const stride = activated
      ? products[0].width
      : products.reduce((sum, { width }) => sum + width, 0);
    const out = { slot: this.slots.take(stride), column: 0, stride };
    let column = 0;
    for (const { out: value, width } of products) {
      this.place(value, { ...out, column: activated ? 0 : column });
      column += width;
    }
    if (gated && activated) this.regions.set(gated.out, out);
    return [...before, { ...common, out }];
  }

  /** What a site's kernel reads, and calls before it that make this from what a site's kernel does not compute itself. */
  private input({ input, place }: FusedSite): {
    readonly input: PlannedInput;
    readonly before: readonly PlannedCall[];
  } {
    const { width } = place;
    if (input.kind === "plain") {
      const x = this.region(input.x);
      return { input: { kind: this.mixed.has(input.x) ? "attention" : "plain", x }, before: [] };
    }
    if (input.kind === "norm") {
      const { step } = input;
      const x = this.rows(step.x);
      if (step.kind === "rms" && step.width === width) {
        this.checkBias(step);
        return { input: { kind: "norm", x, step }, before: [] };
      }
      const out = this.pass(width);
      const groups = width / step.width;
      return {
        input: { kind: "plain", x: out },
        before: [{ op: "norm", step, groups, gains: 1, x, out }],
      };
    }
    const { step } = input;
    const activated = this.regions.get(step.out);
    if (activated) return { input: { kind: "plain", x: activated }, before: [] };
    const { activation, gate, x, clamp } = step;
    if (gate !== undefined && activation === "silu" && !clamp)
      return { input: { kind: "gated", gate: this.rows(gate), up: this.rows(x) }, before: [] };
    const out = this.pass(width);
    return { input: { kind: "plain", x: out }, before: [this.activation(step, width, out)] };
  }

  /** A place for what the step being planned reads itself. */
  private pass(width: number): Region {
    const slot = this.slots.take(width);
    this.passing.push(slot);
    return { slot, column: 0, stride: width };
  }

  private region(value: ValueName): Region {
    const found = this.regions.get(value);
    if (!found) throw new NoCudaKernel(`the value "${value}" lies nowhere`);
    return found;
  }

  private place(value: ValueName, region: Region): void {
    this.regions.set(value, region);
    this.tenants.set(region.slot, (this.tenants.get(region.slot) ?? 0) + 1);
  }

  private free(value: ValueName): void {
    const { slot } = this.region(value);
    const left = (this.tenants.get(slot) ?? 1) - 1;
    this.tenants.set(slot, left);
    if (left === 0) this.slots.release(slot);
  }
}
