/** `planish report`: self-contained HTML of an artifact or a comparison. */
import { closeSync, existsSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { PlanishError, UsageError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import { outputPlace } from "../../common/place.js";
import { writeAtomically } from "../../common/temporary.js";
import { refuseOther, report } from "../../experiments/page/report.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";
import { deviceOption, threadsOption, type DeviceFlags } from "./shared.js";

interface ReportFlags extends DeviceFlags {
  readonly source?: string;
  readonly out?: string;
}

export function register(program: Command): void {
  const command = program
    .command("report")
    .summary("draw an artifact or a comparison as one HTML file")
    .description(
      "Writes one HTML file per directory that opens from disk and fetches nothing: tables, errors per block and site, " +
        "channel magnitudes and distributions before and after each transform, recipes.",
    )
    .argument("<dir...>", "artifacts of `planish quantize`, or directories of `planish compare`")
    .option("--out <file>", "where to write it (default: report.html in the directory)")
    .option(
      "--source <model>",
      "the full-precision model, to look into tensors (a comparison remembers where it was)",
    )
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<ReportFlags, [string[]]>(async ({ reporter, signal }, flags, directories) => {
        if (flags.out !== undefined && directories.length > 1)
          throw new UsageError(
            `--out names one file, and ${directories.length} directories were given; give one of them`,
          );
        for (const directory of directories) refuseOther(directory);
        const files = directories.map((directory) =>
          pageFile(flags.out, join(directory, "report.html")),
        );
        const source =
          flags.source && (await resolveModel(flags.source, { progress: reporter, signal }));
        using backend = openBackend({ ...flags, progress: reporter });
        const written: { directory: string; file: string; bytes: number }[] = [];
        for (const [i, directory] of directories.entries()) {
          const html = await report({ backend, directory, source, progress: reporter, signal });
          const file = files[i];
          writeAtomically(file, html);
          written.push({ directory, file, bytes: Buffer.byteLength(html) });
        }
        reporter.result({ reports: written }, () =>
          written.map(({ file, bytes }) => `${file} (${formatBytes(bytes)})`).join("\n"),
        );
      }),
    );
  addExamples(command, [
    "planish report tiny-comparison",
    "planish report tiny-w4a4kv4 --source models/tiny-llama --out tiny.html",
  ]);
}

/** Where a page goes. A file that is there is replaced when it is a page, and nothing else: a slip must not cost a model. */
function pageFile(given: string | undefined, usual: string): string {
  const file = outputPlace(given ?? usual, { kind: "file" });
  if (existsSync(file) && !/^\s*<!doctype html/i.test(beginning(file)))
    throw new PlanishError(`--out ${file} is there and is no HTML page; choose another file`);
  return given ?? usual;
}

function beginning(file: string): string {
  const bytes = Buffer.alloc(256);
  const fd = openSync(file, "r");
  try {
    return bytes.toString("utf8", 0, readSync(fd, bytes));
  } finally {
    closeSync(fd);
  }
}
