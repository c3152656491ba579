/** The kernels' library as TypeScript sees it, whatever loads it: a foreign library, or WebAssembly. */
import type { KernelName } from "./abi.js";
import type { Parameter } from "./abi-types.js";

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
