/**
 * Compiles every kernel of native/cuda with NVRTC, as the CUDA backend would, for each architecture given
 * (default: from Ampere to Blackwell). Needs NVRTC, no GPU: `npx tsx test/cuda/compile.ts [sm_80 …] [FILE …] [--syntax]`;
 * --syntax reads the sources only, which takes seconds and does not look at assembly.
 */
import { readdirSync } from "node:fs";
import { kernelSource, kernelSourceFolder } from "../../src/backend/cuda/modules.js";
import { Nvrtc } from "../../src/backend/cuda/nvrtc.js";

const architectures = process.argv.slice(2).filter((word) => /^(sm|compute)_/.test(word));
const only = process.argv.slice(2).filter((word) => !/^((sm|compute)_|--)/.test(word));
const syntaxOnly = process.argv.includes("--syntax");
if (architectures.length === 0)
  architectures.push("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a");
const compiler = new Nvrtc();
const print = (line: string) => process.stdout.write(`${line}\n`);
print(`NVRTC ${compiler.version.join(".")} from ${compiler.path}`);

const ATTENTION = [
  ["DIM=128"],
  ["DIM=96"],
  ["DIM=64", "OUT16=1"],
  ["DIM=32"],
  ["DIM=128", "BITS=16", "OUT16=1"],
] as const;

/** Sources that are specialized by shape, with shapes worth compiling. */
const VARIANTS: Readonly<Record<string, readonly (readonly string[])[]>> = {
  kronecker: [
    ["LEFT=64", "RIGHT=64"],
    ["LEFT=112", "RIGHT=128", "DIAG=1"],
    ["LEFT=0", "RIGHT=128"],
    ["LEFT=0", "RIGHT=64"],
    ["LEFT=32", "RIGHT=128"],
    ["LEFT=24", "RIGHT=24", "DIAG=1"],
    ["LEFT=128", "RIGHT=0"],
    ["LEFT=5", "RIGHT=7"],
  ],
  attention_mma: [["HEAD_DIM=64"], ["HEAD_DIM=128"]],
  "engine/gemm": [
    ["TOKENS=16", "STAGES=3", "EPILOGUE=1", "WBITS=8"],
    ["TOKENS=32", "STAGES=6", "EPILOGUE=2"],
    ["TOKENS=64", "STAGES=6", "EPILOGUE=1"],
    ["TOKENS=64", "STAGES=6", "EPILOGUE=2"],
    ["TOKENS=64", "STAGES=4", "EPILOGUE=1", "WBITS=8"],
  ],
  "engine/gemm_mma": [
    ["NIBBLES=1", "TOKENS=8", "SPLIT=8", "STAGES=4"],
    ["NIBBLES=1", "TOKENS=64", "SPLIT=2", "STAGES=3", "EPILOGUE=2"],
    ["NIBBLES=1", "TOKENS=64", "ACROSS=2", "STAGES=3", "OUT16=1"],
    ["NIBBLES=1", "TOKENS=64", "ACROSS=2", "STAGES=4", "EPILOGUE=1"],
    ["NIBBLES=1", "TOKENS=64", "ACROSS=2", "STAGES=4", "EPILOGUE=2", "OUT16=1"],
    ["TOKENS=8", "SPLIT=2", "STAGES=4", "EPILOGUE=1"],
    ["TOKENS=64", "STAGES=3", "EPILOGUE=2"],
    ["TOKENS=64", "ACROSS=2", "STAGES=3"],
    ["TOKENS=64", "ACROSS=2", "STAGES=4", "EPILOGUE=2", "OUT16=1"],
    ["WBITS=8", "TOKENS=16", "SPLIT=4", "STAGES=2"],
    ["WBITS=8", "TOKENS=64", "ACROSS=2", "STAGES=2", "EPILOGUE=1"],
    ["DP4A=1", "TOKENS=8", "SPLIT=4", "EPILOGUE=1"],
    ["DP4A=1", "TOKENS=32", "EPILOGUE=2", "OUT16=1"],
    ["DP4A=1", "TOKENS=64", "OUT16=1"],
    ["DP4A=1", "TOKENS=64", "WBITS=8"],
  ],
  "engine/gemm_narrow": [
    ["TOKENS=8", "STAGES=3", "EPILOGUE=1"],
    ["TOKENS=8", "STAGES=3", "EPILOGUE=2"],
    ["TOKENS=16", "STAGES=2"],
    ["TOKENS=16", "STAGES=2", "EPILOGUE=2", "OUT16=1"],
    ["TOKENS=8", "STAGES=2", "WBITS=8"],
  ],
  "engine/gemm_group": [
    ["TOKENS=64", "STAGES=4"],
    ["TOKENS=64", "STAGES=4", "WGROUP=128", "AGROUP=0", "EPILOGUE=2"],
    ["TOKENS=64", "STAGES=3", "WGROUP=128", "AGROUP=128", "WBITS=8", "SCALE16=0"],
    ["TOKENS=64", "STAGES=3", "WGROUP=32", "AGROUP=32", "OFFSETS=1", "SUMGROUP=32", "EPILOGUE=1"],
    ["TOKENS=64", "STAGES=3", "WGROUP=16", "AGROUP=64", "WBITS=8", "SCALE16=0"],
    ["TOKENS=8", "SLABS=1", "ACROSS=8", "STAGES=6", "WGROUP=0", "AGROUP=64", "EPILOGUE=1"],
    ["TOKENS=16", "SLABS=4", "ACROSS=4", "STAGES=4", "EPILOGUE=2"],
    ["TOKENS=32", "SLABS=8", "ACROSS=2", "STAGES=4", "OFFSETS=1", "OUT16=1"],
  ],
  "engine/gemm_group_narrow": [
    ["TOKENS=8", "STAGES=2", "EPILOGUE=1"],
    ["TOKENS=16", "STAGES=2", "BUFFERS=1", "EPILOGUE=2", "OFFSETS=1", "OUT16=1"],
    ["TOKENS=8", "STAGES=2", "WARPS=8", "WGROUP=16", "AGROUP=64", "WBITS=8", "SCALE16=0"],
    ["TOKENS=8", "STAGES=3", "WGROUP=0", "AGROUP=128", "EPILOGUE=2"],
    ["TOKENS=8", "STAGES=3", "WGROUP=32", "AGROUP=0", "OFFSETS=1", "SUMGROUP=16", "SCALE16=0"],
  ],
  "engine/gemm_prefill": [
    ["STAGES=6", "EPILOGUE=2", "OUT16=1"],
    ["STAGES=6", "EPILOGUE=1"],
    ["STAGES=6", "OUT16=1"],
    ["STAGES=4", "WBITS=8", "EPILOGUE=1"],
  ],
  "engine/site": [
    ["LEFT=64", "RIGHT=64"],
    ["LEFT=86", "RIGHT=128", "INPUT=0", "IN16=1", "TAIL=0"],
    ["LEFT=86", "RIGHT=128", "INPUT=0", "BM=16"],
    ["LEFT=32", "RIGHT=128", "HAS_RIGHT=0", "INPUT=3"],
    ["LEFT=7", "RIGHT=11", "INPUT=2", "QMAX=127"],
    ["LEFT=64", "RIGHT=64", "SPAN=64"],
    ["LEFT=112", "RIGHT=128", "INPUT=0", "SPAN=128", "SUMS=32"],
    ["LEFT=86", "RIGHT=128", "INPUT=0", "TAIL=0", "SPAN=32", "ZERO=1", "SUMS=32"],
    ["LEFT=32", "RIGHT=128", "HAS_RIGHT=0", "INPUT=3", "SPAN=64", "QMAX=127"],
    ["LEFT=16", "RIGHT=15", "INPUT=2", "SPAN=16", "QMAX=31"],
    ["LEFT=64", "RIGHT=64", "SUMS=32", "QMAX=127"],
  ],
  "engine/site_cluster": [
    ["LEFT=86", "RIGHT=128"],
    ["LEFT=86", "RIGHT=128", "INPUT=2"],
    ["LEFT=32", "RIGHT=128", "HAS_RIGHT=0", "INPUT=3"],
    ["LEFT=6", "RIGHT=64", "QMAX=127"],
  ],
  "engine/queries_keys_values": [
    ["DIM=128"],
    ["DIM=128", "MOST_ROWS=16"],
    ["DIM=32", "MATRIX=0"],
    ["DIM=96"],
    ["DIM=128", "BALANCE=1"],
    ["DIM=64", "BALANCE=1", "MOST_ROWS=16"],
    ["DIM=128", "IN16=1", "OUT16=1"],
    ["DIM=128", "MATRIX=0", "BITS=16", "IN16=1", "OUT16=1"],
  ],
  "engine/attention_decode": [
    ["DIM=128"],
    ["DIM=32"],
    ["DIM=128", "TILES=2"],
    ["DIM=128", "BITS=16", "OUT16=1"],
    ["DIM=128", "RING=2", "EARLY=0"],
    ["DIM=128", "RING=2", "EARLY=0", "TILES=2"],
    ["DIM=128", "RING=3", "EARLY=0"],
    ["DIM=32", "RING=6"],
  ],
  "engine/end_layers": [
    ["NT=1", "BF16=1"],
    ["NT=2"],
    ["NT=4", "NORM=0", "WBITS=8"],
    ["NT=8", "BF16=1", "GATED=1"],
  ],
  "engine/rows": [[], ["KIND=1", "OP=1"], ["OP=2"], ["OP=3"], ["OP=4"], ["OP=5"], ["OP=6"]],
  "engine/tables": [
    [],
    ["BITS=4", "SPAN=64", "NT=8"],
    ["BITS=4", "SPAN=128", "NT=2", "SCALE16=0", "OFFSETS=1"],
    ["BITS=8", "SPAN=16", "NT=4", "SCALE16=0"],
    ["BITS=4", "SPAN=16"],
    ["BITS=8", "SPAN=128", "NT=1"],
  ],
  "engine/attention_prefill": ATTENTION,
  "engine/attention_prefill_wgmma": ATTENTION,
};

/** Whether an architecture has a source's instructions: wgmma is Hopper's own, and Turing has dot products only. */
function has(architecture: string, name: string, defines: readonly string[]): boolean {
  const hoppers = [
    "engine/gemm",
    "engine/gemm_narrow",
    "engine/gemm_prefill",
    "engine/attention_prefill_wgmma",
  ];
  if (hoppers.includes(name)) return architecture.endsWith("_90a");
  const number = Number(/\d+/.exec(architecture));
  if (name === "engine/site_cluster" || defines.some((define) => define.startsWith("RING=")))
    return number >= 90;
  return name !== "engine/gemm_mma" || number > 75 || defines.includes("DP4A=1");
}

let failures = 0;
for (const architecture of architectures) {
  for (const file of readdirSync(kernelSourceFolder(), {
    recursive: true,
    encoding: "utf8",
  }).filter((name) => name.endsWith(".cu"))) {
    const name = file.slice(0, -".cu".length);
    if (only.length > 0 && !only.includes(name)) continue;
    for (const defines of VARIANTS[name] ?? [[]]) {
      if (!has(architecture, name, defines)) continue;
      const start = performance.now();
      const label = [file, ...defines, architecture].join(" ");
      try {
        const { image, log } = compiler.compile({
          ...kernelSource(name, architecture, defines),
          options: process.env.PTXAS ? ["--ptxas-options=-v"] : [],
          syntaxOnly,
        });
        const milliseconds = (performance.now() - start).toFixed(0);
        print(`ok   ${label}: ${image.length} bytes, ${milliseconds} ms${log ? `\n${log}` : ""}`);
      } catch (error) {
        failures++;
        print(`FAIL ${label}: ${(error as Error).message}`);
      }
    }
  }
}
if (failures > 0) process.exitCode = 1;
