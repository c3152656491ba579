/**
 * Bundles the GPU lane into one file and runs it: `node scripts/bundle-cuda-tests.mjs [executor] [--only-bundle FILE]`. The suites
 * are written for vitest; here a few functions stand in for it (test/cuda/vitest-shim.ts), so that the lane runs on a
 * GPU machine that has Node.js and koffi only.
 */
import { spawnSync } from "node:child_process";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** Bundles one entry of the repository for Node.js, with `require` for koffi. */
export async function bundle(entry, outfile) {
  await build({
    entryPoints: [join(root, entry)],
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
    external: ["koffi"],
    alias: { vitest: join(root, "test/cuda/vitest-shim.ts") },
    banner: {
      js: 'import { createRequire as bannerRequire } from "node:module"; const require = bannerRequire(import.meta.url);',
    },
  });
}

const benches = {
  step: "bench/cuda-step.ts",
  layer: "bench/cuda-layer.ts",
  engine: "bench/cuda-engine.ts",
};
const entries = {
  bench: benches[process.argv[3]] ?? benches.step,
  executor: "test/cuda/executor.ts",
};
const entry = entries[process.argv[2]] ?? "test/cuda/main.ts";
const at = process.argv.indexOf("--only-bundle");
const outfile = at > 0 ? resolve(process.argv[at + 1]) : join(root, "out", "cuda-tests.mjs");
await bundle(entry, outfile);
if (at < 0) {
  const { status } = spawnSync(process.execPath, [outfile, ...process.argv.slice(2)], {
    stdio: "inherit",
    env: {
      PLANISH_GOLDEN: join(root, "test", "golden"),
      PLANISH_TINY_LLAMA: join(root, "models", "tiny-llama"),
      ...process.env,
    },
  });
  process.exitCode = status ?? 1;
}
