/** `planish export`: an artifact in the layout of another program. */

import { mkdtempSync, rmSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { InvalidArgumentError, Option, type Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { UsageError } from "../../common/errors.js";
import { formatBytes, formatTable } from "../../common/format.js";
import { outputPlace } from "../../common/place.js";
import { EXPORTS, type ExportFormat } from "../../formats/index.js";
import { DROPPABLE, type Droppable } from "../../formats/source.js";
import { isArtifact } from "../../quantize/artifact/artifact.js";
import { quantize } from "../../quantize/run/pipeline.js";
import { perform, type CommandContext } from "../action.js";
import { addExamples } from "../program.js";
import { deviceOption, MODEL_ARGUMENT, threadsOption, type DeviceFlags } from "./shared.js";

interface ExportFlags extends DeviceFlags {
  readonly to: ExportFormat;
  readonly out: string;
  readonly scheme?: string;
  readonly drop: readonly Droppable[];
}

export function register(program: Command): void {
  const command = program
    .command("export")
    .summary("write an artifact in the layout of another program")
    .description(
      "Writes an artifact of `planish quantize` in the layout of another program. What the layout cannot hold is an " +
        "error that names it. Of an original, with --scheme, its weights are rounded to nearest first.",
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
    .requiredOption("--out <dir>", "the directory to write; must not exist")
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
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<ExportFlags, [string]>(async (context, flags, model) => {
        const { reporter, signal } = context;
        const { to, drop } = flags;
        const out = outputPlace(flags.out, { kind: "new directory" });
        const path = await resolveModel(model, { progress: reporter, signal });
        using artifact = await artifactOf(context, flags, model, path, out);
        const result = await EXPORTS[to].run(artifact.path, { out, drop, signal });
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
  ]);
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
