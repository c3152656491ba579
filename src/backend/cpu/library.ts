/**
 * Loads the native kernels (library-path.ts says from where) through koffi and turns their error codes into errors.
 *
 * Limits: one library and one thread pool per process; its kernels are called from one thread at a time.
 */
import { constants } from "node:buffer";
import { createRequire } from "node:module";
import type * as Koffi from "koffi";
import { PlanishError } from "../../common/errors.js";
import { loadWasmLibrary } from "../wasm/library.js";
import { FUNCTIONS, type FunctionName, type KernelName } from "../contract/abi.js";
import { nativeAdvice, nativeLibrary } from "./library-path.js";
import { abiNumber, cName, parametersOf, type Parameter } from "../contract/abi-types.js";

/** A bound foreign function. Pointers are typed arrays, addresses or null; integers and reals are numbers. */
type ForeignFunction = (...args: unknown[]) => unknown;

export interface NativeLibrary {
  /**
   * Binds a kernel of the ABI's table, arguments in C's order and unchecked: for native-kernels.ts. The bound function
   * throws PlanishError with the library's reason where the kernel fails.
   */
  kernel(name: KernelName, parameters: readonly Parameter[]): (...args: unknown[]) => void;
  /** Zero-filled memory; null where the system refuses it. */
  allocate(bytes: number): unknown;
  release(pointer: unknown, bytes: number): void;
  /** Gives physical pages back; the range stays mapped and reads as zeros. */
  discard(pointer: unknown, bytes: number): void;
  /** What is left of a memory of its own; absent where the machine's is the limit. */
  readonly freeBytes?: () => number;
  /** Why there is not more memory, for messages; absent where the machine's is the limit. */
  readonly limit?: string;
  /** Runs the calls of a plan on a step's rows and chunks; adds up seconds per operation where they are wanted. */
  runPlan(
    plan: bigint,
    calls: number,
    rows: number,
    chunks: number,
    seconds: Float64Array | null,
  ): void;
  /**
   * A buffer over native memory and where in it the pointer's bytes begin. The memory must stay mapped for as long as the
   * buffer is reachable. More than `buffer.constants.MAX_LENGTH` bytes would end the process: NativeMapping makes these,
   * piece by piece.
   */
  view(
    pointer: unknown,
    bytes: number,
  ): { readonly buffer: ArrayBufferLike; readonly offset: number };
  /** The address of what a bound function returned as a pointer. */
  address(pointer: unknown): bigint;
  /** Chooses the instruction-set level; undefined for the best. Throws PlanishError when this machine lacks it. */
  selectLevel(level: string | undefined): void;
  /** Name of the level in use: portable, avx2, avx512 or amx. */
  level(): string;
  /** Levels that this machine runs and this build has, best last. */
  levels(): string[];
  /** One line: processor and level. */
  description(): string;
  /** Threads of the pool; 0 means one per hardware core. Returns the number set. */
  setThreads(count: number): number;
  threads(): number;
}

/** Why `allocate` gave nothing, in one line. */
export function refusal(library: NativeLibrary, bytes: number, advice: string): string {
  const size = `out of memory: ${(bytes / 2 ** 20).toFixed(0)} MiB more were refused`;
  return library.limit
    ? `${size}: ${library.limit}; ${advice}`
    : `${size} by the system; ${advice}`;
}

const require = createRequire(import.meta.url);

/** koffi takes a typed array, an address or null for `void*`, whatever it points to. */
const KOFFI_TYPES = {
  i32: "int32_t",
  i64: "int64_t",
  f32: "float",
  f64: "double",
  text: "const char*",
  address: "void*",
  status: "int",
  void: "void",
} as const;

function declaration(parameter: Parameter): string {
  const { name } = parameter;
  if (parameter.kind === "memory") return `${parameter.readOnly ? "const void*" : "void*"} ${name}`;
  return `${parameter.kind === "number" ? KOFFI_TYPES[parameter.type] : "int32_t"} ${name}`;
}

function functionPrototype(name: FunctionName): string {
  const { returns, parameters } = FUNCTIONS[name];
  const list = Object.entries(parameters).map(([parameter, type]) =>
    type === "text" || type === "address"
      ? `${KOFFI_TYPES[type]} ${parameter}`
      : declaration(parametersOf({ [parameter]: type })[0]),
  );
  return `${KOFFI_TYPES[returns]} pl_${cName(name)}(${list.join(", ")})`;
}

/** Whether there is a compiled library. */
export function nativeLibraryExists(): boolean {
  return nativeLibrary()?.exists ?? false;
}

let loaded: NativeLibrary | undefined;

/**
 * The library, loaded on first use, at the level that the environment variable PLANISH_ISA names, else the best.
 * Throws PlanishError when it is not built or when PLANISH_ISA names a level that this machine lacks.
 */
export function loadNativeLibrary(): NativeLibrary {
  if (loaded) return loaded;
  const taken = nativeLibrary();
  if (!taken?.exists)
    throw new PlanishError(
      taken
        ? `PLANISH_NATIVE_LIBRARY names ${taken.path}, where no file is; correct it or unset it`
        : `there are no CPU kernels here; ${nativeAdvice()}, or use --device reference`,
    );
  const { path } = taken;
  // Tests name WebAssembly's modules so.
  if (path.endsWith(".wasm")) return loadWasmLibrary(path);
  const koffi = require("koffi") as typeof Koffi;
  let handle: Koffi.LibraryHandle;
  try {
    handle = koffi.load(path);
  } catch (cause) {
    throw new PlanishError(
      `the CPU kernels of ${taken.title} do not load (${(cause as Error).message}); ${nativeAdvice()}`,
      { cause },
    );
  }
  const bind = (prototype: string): ForeignFunction => {
    try {
      return handle.func(prototype) as ForeignFunction;
    } catch (cause) {
      throw new PlanishError(
        `the CPU kernels of ${taken.title} lack "${prototype.slice(0, prototype.indexOf("("))}"; ${nativeAdvice()}`,
        { cause },
      );
    }
  };
  const exported = (name: FunctionName) => bind(functionPrototype(name));
  if (Number(exported("abi")()) !== abiNumber())
    throw new PlanishError(
      `the CPU kernels of ${taken.title} are of another version; ${nativeAdvice()}`,
    );
  const lastError = exported("lastError");
  const checked = (call: ForeignFunction) => {
    return (...args: unknown[]): void => {
      if (call(...args) !== 0) throw new PlanishError(String(lastError()));
    };
  };
  const select = checked(exported("select"));
  const level = exported("level");
  const levels = exported("levels");
  const description = exported("description");
  const setThreads = exported("setThreads");
  const threads = exported("threads");
  const library: NativeLibrary = {
    kernel: (name, parameters) =>
      checked(bind(`int pl_${cName(name)}(${parameters.map(declaration).join(", ")})`)),
    allocate: exported("alloc"),
    release: exported("free"),
    discard: exported("discard"),
    runPlan: checked(exported("runPlan")),
    view(pointer, bytes) {
      if (bytes > constants.MAX_LENGTH)
        throw new RangeError(
          `a view of ${bytes} bytes; the runtime has at most ${constants.MAX_LENGTH}`,
        );
      return { buffer: koffi.view(pointer, bytes), offset: 0 };
    },
    address: (pointer) => koffi.address(pointer),
    selectLevel: (name) => select(name ?? null),
    level: () => String(level()),
    levels: () => String(levels()).split(","),
    description: () => String(description()),
    setThreads(count) {
      const set = Number(setThreads(count));
      if (set === 0) throw new PlanishError(String(lastError()));
      return set;
    },
    threads: () => Number(threads()),
  };
  try {
    library.selectLevel(process.env.PLANISH_ISA || undefined);
  } catch (cause) {
    throw new PlanishError(`PLANISH_ISA: ${(cause as Error).message}`, { cause });
  }
  loaded = library;
  return library;
}
