/** `planish bench`: what this machine does, beside what it could do. */

import { join } from "node:path";
import { existsSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { Option, type Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { benchEngine, formatEngineReport } from "../../measure/engine.js";
import { benchEngineKernels, formatEngineKernels } from "../../measure/engine-kernels.js";
import { benchKernels, formatBenchReport } from "../../measure/kernels.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { cudaObstacle, requireCuda } from "../../engine/gpu.js";
import { outputPlace } from "../../common/place.js";
import { openSource } from "../../engine/source.js";
import { isArtifact } from "../../quantize/artifact/artifact.js";
import { quantize } from "../../quantize/run/pipeline.js";
import { formatScheme, parseScheme } from "../../backend/contract/scheme.js";
import { perform, type CommandContext } from "../action.js";
import { integer, nameList } from "../flags.js";
import { addExamples } from "../program.js";
import { MODEL_ARGUMENT, threadsOption } from "./shared.js";

interface BenchFlags {
  readonly rounds: number;
  readonly threads?: number;
  readonly device?: "cpu" | "cuda";
  /** Commander's form of `--no-peer`. */
  readonly peer: boolean;
  readonly schemes: string[];
  readonly gguf?: string;
  readonly prompt: number;
  readonly generate: number;
  readonly scratch: string;
}

export function register(program: Command): void {
  const command = program
    .command("bench")
    .summary("measure kernels, or a model end to end, beside the machine's ceilings")
    .description(
      "`bench kernels` measures matrix products in f32, bf16 and int8 and the engine's packed products, sites and " +
        "decoding, each as a fraction of the ceiling measured in the same run, beside onnxruntime-node where bench/peers " +
        "has it. `bench MODEL` measures prompt and decoding speed, time to the first token and memory of a model in the " +
        "engine: an artifact alone, an original in 16 bits and rounded to each scheme, beside node-llama-cpp with --gguf.",
    )
    .argument("[what]", `"kernels", or ${MODEL_ARGUMENT}`, "kernels")
    .option("--rounds <n>", "measured rounds after the warm-up", integer({ min: 1, max: 1000 }), 9)
    .option("--no-peer", "leave the peers out")
    .option("--schemes <list>", "schemes to round an original to", nameList, [
      "w4a4kv4",
      "w4a8kv8",
      "w8a8kv8",
      "w4a16kv16",
    ])
    .option(
      "--gguf <file>",
      "the same model as GGUF, for node-llama-cpp (default: MODEL where it is one)",
    )
    .option("--prompt <n>", "tokens of the prompt", integer({ min: 1, max: 1 << 20 }), 512)
    .option("--generate <n>", "tokens generated after it", integer({ min: 1, max: 1 << 20 }), 64)
    .option("--scratch <dir>", "where rounded models are kept", join(tmpdir(), "planish-bench"))
    .addOption(
      new Option(
        "--device <name>",
        "what runs the model: native kernels (cpu, the default) or an NVIDIA GPU (cuda: artifacts only)",
      ).choices(["cpu", "cuda"]),
    )
    .addOption(threadsOption())
    .action(
      perform<BenchFlags, [string]>(async (context, flags, what) =>
        what === "kernels" ? kernels(context, flags) : model(context, flags, what),
      ),
    );
  addExamples(command, [
    "planish bench kernels",
    "planish bench kernels --threads 1 --json",
    "planish bench models/tiny-llama --schemes w4a4kv4",
    "planish bench tiny-w4a4kv4 --device cuda --prompt 900",
    "planish bench SmolLM2-135M-Instruct.Q4_1.gguf --rounds 7",
  ]);
}

async function kernels({ reporter, signal }: CommandContext, flags: BenchFlags): Promise<void> {
  const task = reporter.task("measuring", flags.rounds + 1);
  const { rounds, threads } = flags;
  const report = await benchKernels({
    rounds,
    threads,
    withoutPeer: !flags.peer,
    onRound: () => task.advance(),
    signal,
  });
  const engine = benchEngineKernels({ rounds, threads, signal });
  task.done();
  reporter.result(
    { ...report, engine },
    () => `${formatBenchReport(report)}\n\n${formatEngineKernels(engine)}`,
  );
}

async function model(
  { reporter, signal }: CommandContext,
  flags: BenchFlags,
  name: string,
): Promise<void> {
  if (flags.device === "cuda") requireCuda();
  const scratch = outputPlace(flags.scratch, { flag: "--scratch", kind: "directory" });
  mkdirSync(scratch, { recursive: true });
  const path = await resolveModel(name, { progress: reporter, signal });
  const models: string[] = [];
  if (flags.device === "cuda" && !isArtifact(path))
    reporter.note("the original is left out: the engine on the GPU runs artifacts");
  else models.push(path);
  if (!isArtifact(path)) models.push(...(await rounded(reporter, path, flags)));
  const task = reporter.task("measuring", flags.rounds);
  const report = await benchEngine({
    models,
    gguf: flags.gguf ?? (path.endsWith(".gguf") ? path : undefined),
    scratch,
    rounds: flags.rounds,
    threads: flags.threads,
    device: flags.device,
    prompt: flags.prompt,
    generate: flags.generate,
    withoutPeer: !flags.peer,
    onRound: () => task.advance(),
    signal,
  });
  task.done();
  reporter.result(report, () => formatEngineReport(report));
}

/** Artifacts of the schemes, by plain rounding: speed does not depend on how integers were chosen. */
async function rounded(
  reporter: CommandContext["reporter"],
  path: string,
  flags: BenchFlags,
): Promise<string[]> {
  const artifacts: string[] = [];
  using model = flags.device === "cuda" ? openSource(path) : undefined;
  using source = openCheckpoint(path);
  using backend = openBackend({ threads: flags.threads });
  const hash = (await source.hash()).slice(0, 12);
  for (const text of flags.schemes) {
    const scheme = parseScheme(text);
    const obstacle = model && cudaObstacle({ ...model, scheme });
    if (obstacle !== undefined) {
      reporter.warn(`${formatScheme(scheme)} is left out: ${obstacle}`);
      continue;
    }
    const out = join(flags.scratch, `${formatScheme(scheme)}-${hash}`);
    if (!existsSync(out)) await quantize({ backend, source, out, method: "rtn", scheme });
    artifacts.push(out);
  }
  return artifacts;
}
