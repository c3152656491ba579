/**
 * The kernels compiled to WebAssembly, as a NativeLibrary: the same calls from the ABI's table, on addresses in one
 * linear memory. Typed arrays outside it are copied in for a call, and out again where the kernel writes them.
 *
 * Limits: 4 GiB of memory for weights, cache and everything between; one library and one pool per JavaScript thread that
 * asks for it.
 */
import { PlanishError } from "../../common/errors.js";
import { FUNCTIONS, type FunctionName, type ParameterType } from "../contract/abi.js";
import { abiNumber, cName, parametersOf, type Parameter } from "../contract/abi-types.js";
import type { NativeLibrary } from "../contract/native-library.js";
import type { WasmExports } from "./exports.js";
import { LinearMemory, MOST_PAGES, PAGE_BYTES } from "./linear-memory.js";
import { chooseWasmModule, compileWasm } from "./module.js";
import { Threads } from "./threads.js";
import { Wasm, type WasmMemory } from "./webassembly.js";

/** As scripts/build-wasm.mjs links it. */
const FIRST_PAGES = 512;
/** Copied arguments up to this many bytes use a block that stays. */
const SCRATCH_BYTES = 2 ** 20;
const ALIGNMENT = 64;
const LIMIT = "a WebAssembly memory has at most 4 GiB, which native kernels have not";

/** A block of the memory; once given back it is nobody's, whatever else still names it. */
interface Handle {
  readonly address: number;
  bytes: number;
}

/** `pl_select`'s argument: a C string, or null. */
const LEVEL_NAME: Parameter = {
  name: "level",
  kind: "memory",
  element: "u8",
  readOnly: true,
  optional: true,
  length: "*",
};

type Value = number | bigint;
type Call = (...args: Value[]) => Value;

const loaded = new Map<string, NativeLibrary>();

/**
 * The library, loaded on first use: from a module's file, else the best level that is built and runs here.
 * @throws PlanishError when it is not built, or the JavaScript engine does not run it.
 */
export function loadWasmLibrary(path = chooseWasmModule()): NativeLibrary {
  let library = loaded.get(path);
  if (!library) loaded.set(path, (library = instantiate(path)));
  return library;
}

function refused(bytes: number): string {
  return `out of memory: ${(bytes / 2 ** 20).toFixed(0)} MiB more were refused; ${LIMIT}`;
}

/** Grows to 4 GiB at most; shared, so that typed arrays over it stay what they are when it grows. */
function newMemory(): WasmMemory {
  try {
    return new Wasm.Memory({ initial: FIRST_PAGES, maximum: MOST_PAGES, shared: true });
  } catch (cause) {
    throw new PlanishError(
      `the WebAssembly kernels got no memory (${(cause as Error).message}); the system must allow a process to reserve 10 GiB of addresses`,
      { cause },
    );
  }
}

function instantiate(path: string): NativeLibrary {
  const module = compileWasm(path);
  const memory = newMemory();
  const instance = new Wasm.Instance(module, {
    env: { memory },
    wasi_snapshot_preview1: {
      clock_time_get(_clock: number, _precision: bigint, at: number) {
        const nanoseconds = BigInt(Math.round(performance.now() * 1e6));
        new DataView(memory.buffer).setBigUint64(at >>> 0, nanoseconds, true);
        return 0;
      },
    },
  });
  const exports = instance.exports as unknown as WasmExports & Readonly<Record<string, Call>>;
  exports._initialize();
  const blocks = new LinearMemory(memory);
  const threads = new Threads(module, memory, exports);
  const call = callsWithMemory(memory, blocks);
  const text = (address: Value) => {
    const bytes = new Uint8Array(memory.buffer, Number(address) >>> 0);
    // A copy: decoders refuse shared memory.
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  };
  const lastError = () => text(exports.pl_last_error());
  const exported = (name: FunctionName) => {
    const target = exports[`pl_${cName(name)}`];
    const parameters = Object.entries(FUNCTIONS[name].parameters).flatMap(([parameter, type]) =>
      parametersOf({ [parameter]: type as ParameterType }),
    );
    return (...args: unknown[]) => call(target, parameters, args);
  };
  const checked = (target: Call, parameters: readonly Parameter[]) => {
    return (...args: unknown[]): void => {
      if (call(target, parameters, args) !== 0) throw new PlanishError(lastError());
    };
  };
  if (Number(exports.pl_abi()) !== abiNumber())
    throw new PlanishError(
      "the built WebAssembly kernels are of another version; run `npm run build:wasm`",
    );
  const runPlan = exported("runPlan");
  const setThreads = exported("setThreads");
  return {
    kernel: (name, parameters) => checked(exports[`pl_${cName(name)}`], parameters),
    allocate(bytes): Handle | null {
      const address = blocks.take(bytes);
      return address === undefined ? null : { address, bytes };
    },
    // Nothing is ever unmapped, so what is discarded is free at once, and released no more.
    release: (pointer) => giveBack(blocks, pointer as Handle),
    discard: (pointer) => giveBack(blocks, pointer as Handle),
    freeBytes: () => MOST_PAGES * PAGE_BYTES - FIRST_PAGES * PAGE_BYTES - blocks.used,
    limit: LIMIT,
    runPlan(...args) {
      if (runPlan(...args) !== 0) throw new PlanishError(lastError());
    },
    view: (pointer) => ({ buffer: memory.buffer, offset: Number(addressOf(pointer)) }),
    address: addressOf,
    selectLevel(name) {
      const bytes = name === undefined ? null : new TextEncoder().encode(`${name}\0`);
      if (call(exports.pl_select, [LEVEL_NAME], [bytes]) !== 0) throw new PlanishError(lastError());
    },
    level: () => text(exports.pl_level()),
    levels: () => text(exports.pl_levels()).split(","),
    description: () => text(exports.pl_description()),
    setThreads(count) {
      // More only when asked for: a program with two threads was once seen not to end (docs/wasm.md).
      const wanted = count > 0 ? count : 1;
      const set = Number(setThreads(wanted));
      if (set === 0) throw new PlanishError(lastError());
      threads.startUpTo(set);
      return set;
    },
    threads: () => Number(exports.pl_threads()),
  };
}

function addressOf(pointer: unknown): bigint {
  return typeof pointer === "bigint" ? pointer : BigInt((pointer as Handle).address);
}

function giveBack(blocks: LinearMemory, handle: Handle): void {
  if (handle.bytes > 0) blocks.give(handle.address, handle.bytes);
  handle.bytes = 0;
}

/** A call of an export with the arguments that a foreign function takes. */
type CallWithMemory = (
  target: Call,
  parameters: readonly Parameter[],
  args: readonly unknown[],
) => Value;

interface Copy {
  readonly array: NodeJS.TypedArray;
  /** From the first copy's place. */
  readonly offset: number;
  readonly written: boolean;
}

/** Typed arrays that lie elsewhere are copied in, and those that the export writes out again. */
function callsWithMemory(memory: WasmMemory, blocks: LinearMemory): CallWithMemory {
  const scratch = blocks.take(SCRATCH_BYTES);
  if (scratch === undefined) throw new PlanishError(refused(SCRATCH_BYTES));
  // Of a shared memory that grew there are several, which all stay valid.
  const own = new WeakSet<ArrayBufferLike>();
  const isOwn = (buffer: ArrayBufferLike) => {
    own.add(memory.buffer);
    return own.has(buffer);
  };
  return (target, parameters, args) => {
    const copies: Copy[] = [];
    let bytes = 0;
    const values = args.map((value, i): Value | Copy => {
      const parameter = parameters[i];
      if (parameter.kind === "number" && parameter.type === "i64") return BigInt(value as number);
      if (parameter.kind !== "memory") return Number(value);
      if (value === null || value === undefined) return 0;
      if (typeof value === "bigint") return Number(value);
      const array = value as NodeJS.TypedArray;
      if (isOwn(array.buffer)) return array.byteOffset;
      const copy = { array, offset: bytes, written: !parameter.readOnly };
      bytes += Math.ceil(array.byteLength / ALIGNMENT) * ALIGNMENT;
      copies.push(copy);
      return copy;
    });
    if (copies.length === 0) return target(...(values as Value[]));
    const start = bytes > SCRATCH_BYTES ? blocks.take(bytes) : scratch;
    if (start === undefined) throw new PlanishError(refused(bytes));
    const placeOf = ({ array, offset }: Copy) =>
      new Uint8Array(memory.buffer, start + offset, array.byteLength);
    const bytesOf = ({ array }: Copy) =>
      new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    try {
      for (const copy of copies) placeOf(copy).set(bytesOf(copy));
      const result = target(
        ...values.map((value) => (typeof value === "object" ? start + value.offset : value)),
      );
      for (const copy of copies) if (copy.written) bytesOf(copy).set(placeOf(copy));
      return result;
    } finally {
      if (start !== scratch) blocks.give(start, bytes);
    }
  };
}
