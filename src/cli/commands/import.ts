/** `planish import`: a checkpoint that another program quantized, as an artifact. */

import { Option, type Command } from "commander";
import { parseScheme } from "../../backend/contract/scheme.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { UsageError } from "../../common/errors.js";
import { formatBytes, formatTable } from "../../common/format.js";
import { outputPlace } from "../../common/place.js";
import { importFlatQuant, isFlatQuant } from "../../formats/flatquant/import.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";

interface ImportFlags {
  readonly from: "flatquant";
  readonly scheme: string;
  readonly out: string;
}

export function register(program: Command): void {
  const command = program
    .command("import")
    .summary("turn a checkpoint of FlatQuant's own code into an artifact")
    .description(
      "Turns a checkpoint in FlatQuant's published layout (packed_int4) into an artifact, codes and transforms as they are. " +
        "Its directory needs the model's config.json and tokenizer files. Checkpoints of other formats need no import: " +
        "every command reads them as originals.",
    )
    .argument("<model>", "directory with quantization_config.json, or hf:org/name")
    .addOption(
      new Option("--from <format>", "its format").choices(["flatquant"]).default("flatquant"),
    )
    .requiredOption("--scheme <scheme>", "widths that it was made for, such as w4a4kv4")
    .requiredOption("--out <dir>", "the artifact's directory; must not exist")
    .action(
      perform<ImportFlags, [string]>(async ({ reporter, signal }, flags, model) => {
        const scheme = parseScheme(flags.scheme);
        const out = outputPlace(flags.out, { kind: "new directory" });
        const path = await resolveModel(model, { progress: reporter, signal });
        if (!isFlatQuant(path))
          throw new UsageError(
            `${model} has no quantization_config.json: it is no checkpoint of FlatQuant's own code; other quantized checkpoints are read as they are, by every command`,
          );
        const result = await importFlatQuant(path, { out, scheme, signal });
        reporter.result(result, () =>
          formatTable(["imported", out], [["size", formatBytes(result.bytes)]]),
        );
      }),
    );
  addExamples(command, ["planish import ./llama-flatquant --scheme w4a4kv4 --out llama-w4a4kv4"]);
}
