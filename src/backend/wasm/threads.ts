/**
 * The threads of the kernels' pool: each runs an instance of the module on the one memory, with a stack and thread-local
 * variables of its own, and returns from it when this thread ends: not every JavaScript engine ends a thread that sleeps in
 * an instance. A kernel does not wait for those that have not begun.
 */
import { Worker } from "node:worker_threads";
import type { WasmExports } from "./exports.js";
import type { WasmMemory, WasmModule } from "./webassembly.js";

/** What a thread begins with. */
export interface ThreadStart {
  readonly module: WasmModule;
  readonly memory: WasmMemory;
  /** In the pool, from 1 on. */
  readonly number: number;
  /** The address past its stack, which grows down. */
  readonly stackTop: number;
  /** Where its thread-local variables go. */
  readonly variables: number;
}

/**
 * As text: a file would have to be found by bundlers, and read by whatever runs TypeScript. Not every runtime lets a program
 * have a `module` and `exports` of its own.
 */
const PROGRAM = `
const { workerData } = require("node:worker_threads");
const { memory, number, stackTop, variables } = workerData;
const { exports: kernels } = new WebAssembly.Instance(workerData.module, {
  env: { memory },
  wasi_snapshot_preview1: { clock_time_get: () => 52 },
});
kernels.__stack_pointer.value = stackTop;
kernels.__wasm_init_tls(variables);
kernels.pl_wasm_work(number);
`;

const STACK_BYTES = 2 ** 20;

export class Threads {
  private started = 1;

  constructor(
    private readonly module: WasmModule,
    private readonly memory: WasmMemory,
    private readonly exports: WasmExports,
  ) {}

  /** Starts what is missing to `count` threads, the calling one included. They do not keep the process alive. */
  startUpTo(count: number): void {
    if (this.started === 1 && count > 1) process.once("exit", () => this.exports.pl_wasm_end());
    for (; this.started < count; this.started++) {
      const tls = this.exports.__tls_size.value;
      const block = this.exports.pl_alloc(BigInt(STACK_BYTES + tls + 64));
      if (block === 0) return;
      const workerData: ThreadStart = {
        module: this.module,
        memory: this.memory,
        number: this.started,
        stackTop: (block >>> 0) + STACK_BYTES,
        variables: (block >>> 0) + STACK_BYTES,
      };
      new Worker(PROGRAM, { eval: true, workerData, name: `planish-wasm-${this.started}` }).unref();
    }
  }
}
