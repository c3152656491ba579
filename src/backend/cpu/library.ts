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
import { FUNCTIONS, type FunctionName } from "../contract/abi.js";
import type { NativeLibrary } from "../contract/native-library.js";
import { nativeAdvice, nativeLibrary } from "./library-path.js";
import { abiNumber, cName, parametersOf, type Parameter } from "../contract/abi-types.js";

/** A bound foreign function. Pointers are typed arrays, addresses or null; integers and reals are numbers. */
type ForeignFunction = (...args: unknown[]) => unknown;

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
