/** `npm run test:interop`: what other programs make of our exports. Needs Python, and installs its packages under out/. */
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    name: "interop",
    include: ["test/interop/**/*.interop.ts"],
    pool: "forks",
    testTimeout: 600_000,
    hookTimeout: 1_800_000,
    maxWorkers: 1,
  },
});
