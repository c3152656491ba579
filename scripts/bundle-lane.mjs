/**
 * Bundles a lane into one file and runs it: `node scripts/bundle-lane.mjs cuda|executor|levels|levels-engine|step|layer|engine|groups|cli [--only-bundle FILE]
 * [ARGUMENTS]`. The suites are written for vitest; here a few functions stand in for it (test/cuda/registered-tests.ts), so
 * that a lane runs on a machine that has Node.js and koffi only: one with a GPU, or with another processor.
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
    alias: { vitest: join(root, "test/cuda/registered-tests.ts") },
    banner: {
      js: 'import { createRequire as bannerRequire } from "node:module"; const require = bannerRequire(import.meta.url);',
    },
  });
}

const lanes = {
  cuda: "test/cuda/main.ts",
  executor: "test/cuda/executor.ts",
  levels: "test/levels/main.ts",
  "levels-engine": "test/levels/executor.ts",
  step: "bench/cuda-step.ts",
  layer: "bench/cuda-layer.ts",
  engine: "bench/cuda-engine.ts",
  groups: "bench/cuda-groups.ts",
  cli: "src/cli/main.ts",
};
const [name = "cuda", ...rest] = process.argv.slice(2);
if (!Object.hasOwn(lanes, name)) {
  console.error(`bundle-lane: no lane "${name}"; there are ${Object.keys(lanes).join(", ")}`);
  process.exit(2);
}
const at = rest.indexOf("--only-bundle");
const outfile = at < 0 ? join(root, "out", `lane-${name}.mjs`) : resolve(rest[at + 1]);
await bundle(lanes[name], outfile);
if (at < 0) {
  const { status } = spawnSync(process.execPath, [outfile, ...rest], {
    stdio: "inherit",
    env: {
      PLANISH_GOLDEN: join(root, "test", "golden"),
      PLANISH_TINY_LLAMA: join(root, "models", "tiny-llama"),
      ...process.env,
    },
  });
  process.exitCode = status ?? 1;
}
