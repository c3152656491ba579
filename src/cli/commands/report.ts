/** `planish report`: self-contained HTML of an artifact or a comparison. */
import { join } from "node:path";
import type { Command } from "commander";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { UsageError } from "../../common/errors.js";
import { formatBytes } from "../../common/format.js";
import { writeAtomically } from "../../quantize/journal.js";
import { report } from "../../report/page/report.js";
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
        const source =
          flags.source && (await resolveModel(flags.source, { progress: reporter, signal }));
        using backend = openBackend({ ...flags, progress: reporter });
        const written: { directory: string; file: string; bytes: number }[] = [];
        for (const directory of directories) {
          const html = await report({ backend, directory, source, progress: reporter, signal });
          const file = flags.out ?? join(directory, "report.html");
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
