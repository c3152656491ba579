/**
 * A GPU for the engine's executor without a GPU: memory is JavaScript's, and a launch runs a plain statement of what its
 * kernel computes, in float64. What the executor hands to the kernels (addresses, strides, tables, sets, the order of
 * launches, graphs replayed with other tables) is thereby checked on any machine; the kernels themselves are checked on a
 * GPU (checks.ts). Every launch is also compared with its kernel's parameter list in native/cuda/engine.
 *
 * Memory is poisoned, and an address outside of it throws.
 */
import { kernelSignature } from "../../../../src/backend/cuda/modules.js";
import { EngineKernels } from "../../../../src/backend/cuda/infer/kernels.js";
import type { MemoryDevice } from "../../../../src/backend/cuda/infer/memory-device.js";
import { EmulatedKernels } from "./emulated-kernels.js";
import type { EmulatedKernel, Launch } from "./emulated-launch.js";
import { EmulatedMemory } from "./emulated-memory.js";

export class EmulatedDevice implements MemoryDevice, Disposable {
  readonly stream = 1;
  readonly kernels: EngineKernels;
  readonly driver: MemoryDevice["driver"];
  readonly modules: MemoryDevice["modules"];
  /** Launches, replays of graphs and captures so far. */
  readonly counts = { launches: 0, replays: 0, captures: 0 };
  disposed = false;
  /** Hears of memory that is set to a value. */
  onFill: (bytes: number) => void = () => undefined;

  private readonly graphs = new Map<number, Launch[]>();
  private recording: Launch[] | undefined;
  private readonly memory = new EmulatedMemory();
  private readonly statements = new EmulatedKernels(this.memory);

  constructor(capability = 90) {
    const info = {
      name: "emulated",
      capability,
      multiprocessors: 132,
      sharedBytesPerBlock: 227 * 1024,
    };
    this.driver = {
      info,
      createEvent: () => 1,
      destroyEvent: () => undefined,
      record: () => undefined,
      synchronizeEvent: () => undefined,
      memory: () => ({ free: 2 ** 30, total: 2 ** 34 }),
      allocatePinned: (bytes: number) => {
        const address = this.allocate(bytes);
        return { address, bytes: this.memory.find(address).bytes };
      },
      freePinned: () => undefined,
      copyToDevice: (target: number, source: number, bytes: number) =>
        this.memory
          .view(Uint8Array, target, bytes)
          .set(this.memory.view(Uint8Array, source, bytes)),
      fillBytes: (target: number, value: number, bytes: number) => {
        this.memory.view(Uint8Array, target, bytes).fill(value);
        this.onFill(bytes);
      },
      copyOnDevice: (target: number, source: number, bytes: number) =>
        this.memory
          .view(Uint8Array, target, bytes)
          .set(this.memory.view(Uint8Array, source, bytes)),
      launch: (...given: unknown[]) =>
        this.launch(...(given as Parameters<EmulatedDevice["launch"]>)),
      capture: (_stream: number, enqueue: () => void) => {
        this.recording = [];
        enqueue();
        this.graphs.set(++this.counts.captures, this.recording);
        this.recording = undefined;
        return this.counts.captures;
      },
      launchGraph: (graph: number) => {
        this.counts.replays++;
        const launches = this.graphs.get(graph);
        if (!launches) throw new Error(`graph ${graph} is gone`);
        for (const launch of launches) this.statements.run(launch);
      },
      destroyGraph: (graph: number) => this.graphs.delete(graph),
    } as unknown as MemoryDevice["driver"];
    this.modules = {
      get: (file: string, name: string, defines: readonly string[]) => ({
        key: `${file} ${name}`,
        name,
        handle: 1,
        signature: kernelSignature(file, name),
        sharedLimit: 0,
        defines: Object.fromEntries(
          defines.map((define): [string, number] => [
            define.split("=")[0],
            Number(define.split("=")[1]),
          ]),
        ),
      }),
    } as unknown as MemoryDevice["modules"];
    this.kernels = new EngineKernels(this);
  }

  allocate(bytes: number): number {
    return this.memory.allocate(bytes);
  }

  free(pointer: number): void {
    this.memory.free(pointer);
  }

  write(target: number, data: ArrayBufferView): void {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    this.memory.view(Uint8Array, target, bytes.length).set(bytes);
  }

  put(data: ArrayBufferView): number {
    const pointer = this.allocate(data.byteLength);
    this.write(pointer, data);
    return pointer;
  }

  read<T extends ArrayBufferView>(source: number, target: T): T {
    const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
    bytes.set(this.memory.view(Uint8Array, source, bytes.length));
    return target;
  }

  synchronize(): void {
    // Launches run as they come.
  }

  [Symbol.dispose](): void {
    this.disposed = true;
  }
  private launch(
    kernel: EmulatedKernel,
    grid: readonly number[],
    block: readonly number[],
    shared: number,
    _stream: number,
    args: readonly number[],
  ): void {
    const { key, signature } = kernel;
    if (args.length !== signature.length) throw new Error(`${key}: ${args.length} arguments`);
    args.forEach((value, i) => {
      const fits = signature[i] === "d" ? Number.isFinite(value) : Number.isSafeInteger(value);
      if (!fits) throw new Error(`${key}: argument ${i} is ${value}`);
      if (signature[i] === "p" && value !== 0) this.memory.find(value);
    });
    if (grid.some((size) => !(size > 0)) || grid.slice(1).some((size) => size > 65535))
      throw new Error(`${key}: grid ${grid.join("×")}`);
    if (block[0] > 1024 || shared > 227 * 1024) throw new Error(`${key}: ${block[0]}, ${shared}`);
    this.counts.launches++;
    const launch = { kernel, grid, args: [...args] };
    if (this.recording) this.recording.push(launch);
    else this.statements.run(launch);
  }
}
