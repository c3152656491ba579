#!/usr/bin/env node
/**
 * Reads every kernel of native/cuda with NVRTC, in every variant that test/cuda/compile.ts lists, on any machine: what a
 * renamed macro or function broke is found without a GPU, in seconds. Assembly is left to `npx tsx test/cuda/compile.ts`.
 *
 *   node scripts/check-cuda.mjs [--optional]
 *
 * NVRTC comes from PyPI into out/nvrtc (90 MB, once). Without Python 3, PyPI, or a package for this platform the check fails
 * and says so; with --optional it says so and passes.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const NVRTC = "nvidia-cuda-nvrtc-cu12==12.9.86";
const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const environment = join(root, "out", "nvrtc");
const packages = join(environment, "packages");
const optional = process.argv.includes("--optional");

function install() {
  const stamp = join(environment, "version");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === NVRTC) return;
  const pip = join(environment, "bin", "pip");
  for (const [command, args] of [
    ["python3", ["-m", "venv", environment]],
    [pip, ["install", "--quiet", "--no-deps", "--upgrade", "--target", packages, NVRTC]],
  ]) {
    const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
    if (status === 0) continue;
    const reason = error ? error.message : `${stdout}${stderr}`.trim();
    console.error(`check-cuda: ${NVRTC} cannot be installed here: ${reason}`);
    if (optional) console.log("check-cuda: skipped, native/cuda was not compiled");
    process.exit(optional ? 0 : 1);
  }
  writeFileSync(stamp, NVRTC);
}

install();
const home = join(packages, "nvidia", "cuda_nvrtc");
const tsx = join(root, "node_modules", "tsx", "dist", "cli.mjs");
const { status, stdout, stderr, error } = spawnSync(
  process.execPath,
  [tsx, join(root, "test", "cuda", "compile.ts"), "sm_90a", "--syntax"],
  {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 1 << 28,
    env: {
      ...process.env,
      CUDA_HOME: home,
      LD_LIBRARY_PATH: [join(home, "lib"), process.env.LD_LIBRARY_PATH ?? ""]
        .filter(Boolean)
        .join(delimiter),
    },
  },
);
const lines = stdout.split("\n");
const good = lines.filter((line) => line.startsWith("ok "));
for (const line of lines) if (!line.startsWith("ok ") && line) console.log(line);
if (stderr) console.error(stderr.trim());
if (error) console.error(`check-cuda: ${error.message}`);
console.log(`check-cuda: ${good.length} variants of kernels read`);
if (status !== 0 || good.length === 0) process.exitCode = 1;
