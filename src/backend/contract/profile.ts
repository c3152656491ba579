/** Wraps a backend so that the time of every kernel is added up by name: what benches and profiles print. */
import type { Backend, Kernels } from "./training.js";

export interface KernelTime {
  readonly kernel: string;
  readonly calls: number;
  readonly seconds: number;
}

export interface ProfiledBackend extends Backend {
  /** Time by kernel since the last `reset`, largest first. Kernels that run asynchronously are not waited for. */
  times(): KernelTime[];
  reset(): void;
}

export function profiledBackend(backend: Backend): ProfiledBackend {
  const totals = new Map<string, { calls: number; seconds: number }>();
  const kernels: Record<string, (args: never) => void> = {};
  for (const name of Object.keys(backend.kernels) as (keyof Kernels)[]) {
    const table: Record<string, (args: never) => void> = { ...backend.kernels };
    const run = table[name];
    const total = { calls: 0, seconds: 0 };
    totals.set(name, total);
    kernels[name] = (args) => {
      const start = performance.now();
      run(args);
      total.seconds += (performance.now() - start) / 1000;
      total.calls++;
    };
  }
  const overrides: Partial<ProfiledBackend> = {
    kernels: kernels as unknown as Kernels,
    times: () =>
      [...totals]
        .map(([kernel, t]) => ({ kernel, ...t }))
        .filter((t) => t.calls > 0)
        .sort((a, b) => b.seconds - a.seconds),
    reset: () => {
      for (const t of totals.values()) {
        t.calls = 0;
        t.seconds = 0;
      }
    },
  };
  return new Proxy(backend as ProfiledBackend, {
    get(target, key) {
      const own: unknown = Reflect.get(overrides, key);
      if (own !== undefined) return own;
      const value: unknown = Reflect.get(target, key);
      return typeof value === "function"
        ? (value as (...args: unknown[]) => unknown).bind(target)
        : value;
    },
  });
}
