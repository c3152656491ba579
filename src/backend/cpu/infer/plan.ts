/** Lists of kernel calls that the native side runs in one go (native/plan.cpp), from the ABI's table. */
import {
  CODES,
  PLAN_OPERATIONS,
  type PlanArguments,
  type PlanOperation,
} from "../../contract/abi.js";
import { PLAN_WORDS, planParameters, type Parameter } from "../../contract/abi-types.js";
import type { EngineMemory, Place } from "./memory.js";

/** Writes one argument where its word lies. */
function writer(parameter: Parameter): (view: DataView, at: number, value: unknown) => void {
  const integer = (view: DataView, at: number, value: number | bigint) =>
    view.setBigInt64(at, BigInt(value), true);
  switch (parameter.kind) {
    case "number":
      return parameter.type === "f32" || parameter.type === "f64"
        ? (view, at, value) => view.setFloat64(at, value as number, true)
        : (view, at, value) => integer(view, at, value as number);
    case "flag":
      return (view, at, value) => integer(view, at, value ? 1 : 0);
    case "code": {
      const words: readonly string[] = CODES[parameter.code];
      return (view, at, value) => {
        const code = words.indexOf(value as string);
        if (code < 0) throw new RangeError(`plan: ${parameter.name} is ${String(value)}`);
        integer(view, at, code);
      };
    }
    case "memory":
      return (view, at, value) => {
        const address = value ?? (parameter.optional ? 0n : undefined);
        // Typed arrays move; a plan outlives the call that makes it.
        if (typeof address !== "bigint")
          throw new RangeError(`plan: ${parameter.name} is no address`);
        integer(view, at, address);
      };
  }
}

const WRITERS = PLAN_OPERATIONS.map((name) =>
  planParameters(name).map((parameter) => ({
    name: parameter.name,
    write: writer(parameter),
  })),
);

/** What a multi-part product is made of (PackedPart in native/packed_matmul.h). */
export interface ProductPart {
  readonly n: number;
  readonly a: bigint;
  readonly aScale: bigint;
  readonly packed: bigint;
  readonly bScale: bigint;
  readonly bias: bigint;
  readonly out: bigint;
  readonly outStride: number;
}

/** The same for weights with a scale per group (GroupPart in native/group_matmul.h). */
export interface GroupPart extends Omit<ProductPart, "bScale"> {
  /** 0n: activations have no offsets. */
  readonly aOffset: bigint;
  readonly form: number;
}

export class Plan {
  private readonly calls: {
    readonly operation: number;
    readonly args: Readonly<Record<string, unknown>>;
  }[] = [];
  private place: Place<Uint8Array> | undefined;

  constructor(private readonly memory: EngineMemory) {}

  /** Appends a call of a kernel: everything but rows and chunks, and of a `length` one row's part. */
  add<K extends PlanOperation>(operation: K, args: PlanArguments<K>): void {
    this.calls.push({
      operation: PLAN_OPERATIONS.indexOf(operation),
      args: args,
    });
  }

  /** A table of parts, as `product` takes it. */
  parts(parts: readonly ProductPart[]): bigint {
    return this.table(
      parts.flatMap(({ n, a, aScale, packed, bScale, bias, out, outStride }) => [
        ...[BigInt(n), a, aScale, packed],
        ...[bScale, bias, out, BigInt(outStride)],
      ]),
    );
  }

  /** A table of parts with weights in groups. */
  groupParts(parts: readonly GroupPart[]): bigint {
    return this.table(
      parts.flatMap(({ n, a, aScale, aOffset, packed, form, bias, out, outStride }) => [
        ...[BigInt(n), a, aScale, aOffset, packed, BigInt(form)],
        ...[bias, out, BigInt(outStride)],
      ]),
    );
  }

  /** Words of 64 bits where kernels find them. */
  table(words: readonly bigint[]): bigint {
    const place = this.memory.alloc<Uint8Array>("u8", words.length * 8);
    new BigInt64Array(place.data.buffer, place.data.byteOffset, words.length).set(words);
    return place.address;
  }

  get length(): number {
    return this.calls.length;
  }

  /** Writes the calls to native memory; returns their address. */
  finish(): bigint {
    this.place = this.memory.alloc<Uint8Array>("u8", this.calls.length * PLAN_WORDS * 8);
    const view = new DataView(this.place.data.buffer, this.place.data.byteOffset);
    this.calls.forEach(({ operation, args }, call) => {
      const base = call * PLAN_WORDS * 8;
      view.setBigInt64(base, BigInt(operation), true);
      WRITERS[operation].forEach(({ name, write }, i) => {
        write(view, base + 8 * (i + 1), args[name]);
      });
    });
    return this.place.address;
  }
}
