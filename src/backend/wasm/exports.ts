/** What a module exports, as far as it is called by name; the kernels are found by the ABI's table. */
export interface WasmExports {
  readonly __stack_pointer: { value: number };
  readonly __tls_size: { readonly value: number };
  __wasm_init_tls(block: number): void;
  _initialize(): void;
  pl_alloc(bytes: bigint): number;
  /** The pool's threads return from their work. */
  pl_wasm_end(): void;
}
