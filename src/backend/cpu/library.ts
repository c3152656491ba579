/**
 * Loads the native kernels (native/build/planish_native.so) through koffi and turns their error codes into errors.
 *
 * Limits: one library and one thread pool per process; its kernels are called from one thread at a time.
 */
import { constants } from "node:buffer";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type * as Koffi from "koffi";
import { PlanishError } from "../../common/errors.js";

/** A bound foreign function. Pointers are typed arrays or null; integers and reals are numbers. */
export type NativeFunction = (...args: unknown[]) => unknown;

export interface NativeLibrary {
  /**
   * Binds a C function that returns an int status (0: success), declared as in planish.h, with pointers written
   * `void*` or `const void*`. The bound function throws PlanishError with the library's reason on any other status.
   */
  kernel(prototype: string): (...args: unknown[]) => void;
  /** Binds any other function; what it returns is returned. */
  bind(prototype: string): NativeFunction;
  /**
   * An ArrayBuffer over native memory, which must stay mapped for as long as the ArrayBuffer is reachable. More than
   * `buffer.constants.MAX_LENGTH` bytes would end the process: NativeMapping makes these, piece by piece.
   */
  view(pointer: unknown, bytes: number): ArrayBuffer;
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

const require = createRequire(import.meta.url);

/**
 * The compiled library's path, whether this file runs from src/ or dist/. The environment variable
 * PLANISH_NATIVE_LIBRARY names another build of it (tests use one with emulated tile instructions).
 */
export function nativeLibraryPath(): string {
  if (process.env.PLANISH_NATIVE_LIBRARY) return process.env.PLANISH_NATIVE_LIBRARY;
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, "package.json")) && dirname(directory) !== directory) {
    directory = dirname(directory);
  }
  return join(directory, "native", "build", "planish_native.so");
}

/** Whether the compiled library is present. */
export function nativeLibraryExists(): boolean {
  return existsSync(nativeLibraryPath());
}

let loaded: NativeLibrary | undefined;

/**
 * The library, loaded on first use, at the level that the environment variable PLANISH_ISA names, else the best.
 * Throws PlanishError when it is not built or when PLANISH_ISA names a level that this machine lacks.
 */
export function loadNativeLibrary(): NativeLibrary {
  if (loaded) return loaded;
  const path = nativeLibraryPath();
  if (!existsSync(path)) {
    throw new PlanishError(
      "the CPU kernels are not built; run `npm run build:native` (needs a C++17 compiler), or use --device reference",
    );
  }
  const koffi = require("koffi") as typeof Koffi;
  let handle: Koffi.LibraryHandle;
  try {
    handle = koffi.load(path);
  } catch (cause) {
    throw new PlanishError(
      `the CPU kernels do not load (${(cause as Error).message}); run \`npm run build:native\` to build them anew`,
      { cause },
    );
  }
  const bind = (prototype: string): NativeFunction => {
    try {
      return handle.func(prototype) as NativeFunction;
    } catch (cause) {
      throw new PlanishError(
        `the built CPU kernels lack "${prototype.slice(0, prototype.indexOf("("))}"; run \`npm run build:native\``,
        { cause },
      );
    }
  };
  const lastError = bind("const char* pl_last_error()");
  const kernel = (prototype: string) => {
    const call = bind(prototype);
    return (...args: unknown[]): void => {
      if (call(...args) !== 0) throw new PlanishError(String(lastError()));
    };
  };
  const select = kernel("int pl_select(const char* level)");
  const level = bind("const char* pl_level()");
  const levels = bind("const char* pl_levels()");
  const description = bind("const char* pl_description()");
  const setThreads = bind("int pl_set_threads(int count)");
  const threads = bind("int pl_threads()");
  const library: NativeLibrary = {
    kernel,
    bind,
    view(pointer, bytes) {
      if (bytes > constants.MAX_LENGTH)
        throw new RangeError(
          `a view of ${bytes} bytes; the runtime has at most ${constants.MAX_LENGTH}`,
        );
      return koffi.view(pointer, bytes);
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
