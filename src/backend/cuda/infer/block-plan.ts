/**
 * Prepares a block program for the engine on CUDA: its fused steps (`fuse.ts`) as calls of the engine's kernels, and where
 * their values lie. A site's products write their outputs side by side, and SiLU(gate)·up is computed by the product where
 * one product holds both.
 */
import {
  BLOCK_INPUT,
  type AttentionStep,
  type BlockProgram,
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
  | { readonly op: "attention"; readonly step: AttentionStep; readonly out: Region };

export interface PlannedBlock {
  readonly calls: readonly PlannedCall[];
  /** Where the block's output lies. */
  readonly output: Region;
}

/** `input`: where the block's input lies. @throws NoCudaKernel naming what has no kernel. */
export function planCudaBlock(
  program: BlockProgram,
  block: Pick<CudaBlock, "sites">,
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

  constructor(
    private readonly block: Pick<CudaBlock, "sites">,
    private readonly slots: Slots,
    input: Region,
  ) {
    this.place(BLOCK_INPUT, input);
  }

  run(program: BlockProgram): PlannedBlock {
    const calls = fuse(program).map((fused): PlannedCall => {
      const call = this.call(fused);
      for (const value of fused.frees) this.free(value);
      return call;
    });
    return { calls, output: this.region(program.out) };
  }

  private call(fused: ReturnType<typeof fuse>[number]): PlannedCall {
    switch (fused.op) {
      case "site":
        return this.site(fused);
      case "cache":
        return {
          op: "cache",
          fused,
          q: this.region(fused.queries.root),
          k: this.region(fused.keys.root),
          v: this.region(fused.step.v),
        };
      case "attention": {
        const { step } = fused;
        const width = step.heads * step.headDim;
        const out = { slot: this.slots.take(width), column: 0, stride: width };
        this.place(step.out, out);
        this.mixed.add(step.out);
        return { op: "attention", step, out };
      }
      case "add":
        throw new NoCudaKernel("a sum that no product computes has no CUDA kernel");
      case "norm":
        throw new NoCudaKernel(
          "a norm that something else than a site reads, as after a residual sum, has no CUDA kernel",
        );
      case "carry":
      case "multiply":
      case "activation":
        throw new NoCudaKernel(
          "recurrent layers, short convolutions and gates between steps have no CUDA kernel",
        );
      case "transform":
      case "route":
      case "experts":
      case "weigh":
      case "arrange":
      case "scale":
      case "take":
      case "splice":
        throw new NoCudaKernel(
          "a mixture of experts, or values made of parts, have no CUDA kernel",
        );
    }
  }

  private site(fused: FusedSite): PlannedCall {
    const { products, accumulate, gated, step } = fused;
    const input = this.input(fused);
    const common = { op: "site", site: step.site, input, accumulate } as const;
    if (accumulate) {
      const [product, ...others] = products;
      if (others.length > 0)
        throw new NoCudaKernel("several products that add themselves to a sum have no CUDA kernel");
      const out = this.region(product.onto ?? product.out);
      this.place(product.out, out);
      return { ...common, out };
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
    return { ...common, out };
  }

  private input({ input }: FusedSite): PlannedInput {
    if (input.kind === "plain") {
      const x = this.region(input.x);
      return { kind: this.mixed.has(input.x) ? "attention" : "plain", x };
    }
    if (input.kind === "norm")
      return { kind: "norm", x: this.region(input.step.x), step: input.step };
    const activated = this.regions.get(input.step.out);
    if (activated) return { kind: "plain", x: activated };
    const { activation, gate, x } = input.step;
    if (gate === undefined || activation !== "silu")
      throw new NoCudaKernel(
        `${gate === undefined ? "an ungated" : "a gated"} MLP with ${activation} has no CUDA kernel; gated SiLU has`,
      );
    return { kind: "gated", gate: this.region(gate), up: this.region(x) };
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
