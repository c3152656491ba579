/**
 * Three projects: `unit` (fast, the default while working), `golden` (the float64 vectors, alone by `npm run
 * test:golden`) and `cli` (starts the built program). Every test file gets a process of its own: the native
 * library reads PLANISH_ISA once, when it is loaded, and a worker thread's environment does not reach it.
 */

import { defineConfig } from "vitest/config";

const SECOND = 1000;

// Only for what hangs: the slowest test takes half a minute alone, and a busy machine may be ten times slower.
const shared = {
  pool: "forks",
  isolate: true,
  testTimeout: 600 * SECOND,
  hookTimeout: 300 * SECOND,
} as const;

export default defineConfig({
  test: {
    // Two cores: native kernels start their own threads, so more files at once only wait for one another.
    maxWorkers: 2,
    projects: [
      {
        test: {
          ...shared,
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: ["test/golden-checks/**", "test/cli/**"],
        },
      },
      {
        test: {
          ...shared,
          name: "golden",
          include: ["test/golden-checks/**/*.test.ts"],
        },
      },
      {
        test: {
          ...shared,
          name: "cli",
          include: ["test/cli/**/*.test.ts"],
          globalSetup: ["test/cli/global-setup.ts"],
        },
      },
    ],
  },
});
