/** The part of the JavaScript API of WebAssembly that is used here; Node's types leave it to the DOM's. */

export interface WasmMemory {
  /** Of a shared memory a larger one after each growth; the former ones stay valid. */
  readonly buffer: SharedArrayBuffer;
  /** Adds 64 KiB pages and returns how many there were. @throws RangeError where the limit or the system forbids it. */
  grow(pages: number): number;
}

/** A compiled module; it can be posted to other threads. */
export type WasmModule = object;

interface WebAssemblyApi {
  readonly Memory: new (descriptor: {
    readonly initial: number;
    readonly maximum: number;
    readonly shared: true;
  }) => WasmMemory;
  readonly Module: new (bytes: Uint8Array) => WasmModule;
  readonly Instance: new (
    module: WasmModule,
    imports: Readonly<Record<string, Readonly<Record<string, unknown>>>>,
  ) => { readonly exports: object };
  validate(bytes: Uint8Array): boolean;
}

export const { WebAssembly: Wasm } = globalThis as unknown as {
  readonly WebAssembly: WebAssemblyApi;
};
