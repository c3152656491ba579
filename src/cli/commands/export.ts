/** `planish export`: a model in the layout of another program. */

import { mkdtempSync, rmSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { InvalidArgumentError, Option, type Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { LIMITS } from "../../common/bounds.js";
import { UsageError } from "../../common/errors.js";
import { formatBytes, formatTable } from "../../common/format.js";
import { outputPlace } from "../../common/place.js";
import type { ExportResult } from "../../formats/export-options.js";
import { exportGguf } from "../../formats/gguf/from-artifact.js";
import { DEFAULT_SAMPLES, exportGgufModel } from "../../formats/gguf/from-model.js";
import { FILE_TYPE_NAMES, type GgufFileType } from "../../formats/gguf/types.js";
import { EXPORTS, type ExportFormat } from "../../formats/index.js";
import { DROPPABLE, type Droppable } from "../../formats/source.js";
import { isArtifact } from "../../quantize/artifact/artifact.js";
import { quantize } from "../../quantize/run/pipeline.js";
import { perform, type CommandContext } from "../action.js";
import { integer } from "../flags.js";
import { addExamples } from "../program.js";
import {
  deviceOption,
  MODEL_ARGUMENT,
  seedOption,
  threadsOption,
  type DeviceFlags,
} from "./shared.js";

interface ExportFlags extends DeviceFlags {
  readonly to: ExportFormat;
  readonly out: string;
  readonly scheme?: string;
  readonly drop: readonly Droppable[];
  readonly type?: GgufFileType;
  readonly calibration?: string;
  readonly samples?: number;
  readonly seqLen?: number;
  readonly seed: number;
}

export function register(program: Command): void {
  const command = program
    .command("export")
    .summary("write a model in the layout of another program")
    .description(
      "Writes an artifact of `planish quantize` in the layout of another program. What the layout cannot hold is an " +
        "error that names it. Of an original, with --scheme, its weights are rounded to nearest first. To gguf an original " +
        "goes without an artifact: its weights are rounded for the activations of a calibration text, onto the grids of --type.",
    )
    .argument("<model>", MODEL_ARGUMENT)
    .addOption(
      new Option(
        "--to <format>",
        Object.entries(EXPORTS)
          .map(([n, e]) => `${n}: ${e.summary}`)
          .join("; "),
      )
        .choices(Object.keys(EXPORTS))
        .makeOptionMandatory(),
    )
    .requiredOption(
      "--out <path>",
      "the directory to write, which must not exist; of gguf the file",
    )
    .option(
      "--scheme <scheme>",
      "of an original: round it to nearest on these grids, such as w4a16kv16",
    )
    .option(
      "--drop <parts>",
      `parts that may be left out where the layout has no place for them: ${DROPPABLE.join(", ")}`,
      droppable,
      [],
    )
    .addOption(
      new Option("--type <type>", "gguf: of an original, the file's type (default: q4_0)").choices(
        FILE_TYPE_NAMES,
      ),
    )
    .option(
      "--calibration <text>",
      "gguf, of an original: wikipedia (embedded, the default) or a text file",
    )
    .option(
      "--samples <n>",
      `gguf, of an original: windows of it (default: ${DEFAULT_SAMPLES})`,
      integer({ min: 1, max: LIMITS.samples }),
    )
    .option(
      "--seq-len <n>",
      "gguf, of an original: tokens per window (default: 2048)",
      integer({ min: 1, max: LIMITS.tokens }),
    )
    .addOption(seedOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<ExportFlags, [string]>(async (context, flags, model) => {
        const { reporter, signal } = context;
        const { to } = flags;
        refuseUnused(flags);
        const path = await resolveModel(model, { progress: reporter, signal });
        const file = EXPORTS[to].writes === "file";
        const out = outputPlace(flags.out, { kind: file ? "file" : "new directory", source: path });
        const result = await carryOut(context, flags, model, path, out);
        for (const part of result.dropped) reporter.warn(`left out: ${part}`);
        for (const note of result.notes) reporter.note(note);
        reporter.result(result, () =>
          formatTable(
            ["exported", out],
            [
              ["format", result.format],
              ["size", formatBytes(result.bytes)],
            ],
          ),
        );
      }),
    );
  addExamples(command, [
    "planish export tiny-w4a4kv4 --to compressed-tensors --drop clips,cache --out tiny-ct",
    "planish export models/tiny-llama --scheme w4a16kv16 --to compressed-tensors --out tiny-w4a16",
    "planish export models/tiny-llama --to gguf --type q4_0 --out tiny-q4_0.gguf",
  ]);
}

/** @throws UsageError for a flag of other layouts. */
function refuseUnused({ to, type, calibration, samples, seqLen }: ExportFlags): void {
  if (to === "gguf") return;
  const given = Object.entries({ type, calibration, samples, "seq-len": seqLen });
  const [name] = given.find(([, value]) => value !== undefined) ?? [];
  if (name !== undefined) throw new UsageError(`--${name} goes with --to gguf; leave it out`);
}

async function carryOut(
  context: CommandContext,
  flags: ExportFlags,
  model: string,
  path: string,
  out: string,
): Promise<ExportResult> {
  const { reporter, signal } = context;
  const { to, drop, type, scheme } = flags;
  if (to === "gguf" && scheme === undefined && !isArtifact(path)) {
    using backend = openBackend({ ...flags, progress: reporter });
    const { calibration, samples, seqLen, seed } = flags;
    const options = { out, type: type ?? "q4_0", calibration, samples, seqLen, seed, signal };
    return await exportGgufModel(path, { ...options, backend, progress: reporter });
  }
  using artifact = await artifactOf(context, flags, model, path, out);
  if (to === "gguf") return await exportGguf(artifact.path, { out, drop, type, signal });
  return await EXPORTS[to].run(artifact.path, { out, drop, signal });
}

/** The artifact to export: the one given, or one made of an original for as long as it takes. */
async function artifactOf(
  { reporter, signal }: CommandContext,
  flags: ExportFlags,
  model: string,
  path: string,
  out: string,
): Promise<{ path: string } & Disposable> {
  const { scheme } = flags;
  if (isArtifact(path)) {
    if (scheme !== undefined)
      throw new UsageError(
        `${model} has its scheme already; leave out --scheme, or give the original`,
      );
    return { path, [Symbol.dispose]: () => undefined };
  }
  if (scheme === undefined)
    throw new UsageError(
      `${model} is no artifact: quantize it first, or give --scheme to have it rounded to nearest, such as --scheme w4a16kv16`,
    );
  const directory = mkdtempSync(join(dirname(resolve(out)), ".planish-export-"));
  const remove = (): void => rmSync(directory, { recursive: true, force: true });
  try {
    using source = openCheckpoint(path);
    using backend = openBackend({ ...flags, progress: reporter });
    const rounded = join(directory, "rounded");
    const options = { method: "rtn", scheme, progress: reporter, signal };
    await quantize({ backend, source, out: rounded, ...options });
    return { path: rounded, [Symbol.dispose]: remove };
  } catch (error) {
    remove();
    throw error;
  }
}

function droppable(text: string): Droppable[] {
  return text.split(",").map((part) => {
    const known = DROPPABLE.find((name) => name === part.trim());
    if (known === undefined)
      throw new InvalidArgumentError(`give a list of ${DROPPABLE.join(", ")}, not "${part}"`);
    return known;
  });
}
