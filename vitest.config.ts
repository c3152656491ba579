/**
 * Three groups of tests: `unit` (in this process), `cli` (starts the built program, which its setup builds), and
 * `golden` (files named `*.golden.test.ts`: everything held to the float64 vectors, also run alone by
 * `npm run test:golden` with `PLANISH_GOLDEN` naming another directory).
 */

import { defineConfig } from "vitest/config";

const shared = { pool: "forks", testTimeout: 60_000 } as const;

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          ...shared,
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: ["test/cli/**", "test/**/*.golden.test.ts"],
        },
      },
      {
        test: {
          ...shared,
          name: "cli",
          include: ["test/cli/**/*.test.ts"],
          globalSetup: ["test/cli/global-setup.ts"],
          testTimeout: 120_000,
        },
      },
      { test: { ...shared, name: "golden", include: ["test/**/*.golden.test.ts"] } },
    ],
  },
});
