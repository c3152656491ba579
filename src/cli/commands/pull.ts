/** `planish pull`: a model by name, fetched into the cache; prints where it lies. */

import type { Command } from "commander";
import { resolveModel, SHORT_NAMES } from "../../checkpoint/hub.js";
import { outputPlace } from "../../common/place.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";

interface PullFlags {
  readonly cacheDir?: string;
  readonly verify?: boolean;
}

export function register(program: Command): void {
  const command = program
    .command("pull")
    .summary("fetch a model into the cache and print its path")
    .description(
      "Fetches a model into the cache, unless it is there, and prints its path. Other commands fetch by themselves.",
    )
    .argument("<model>", `hf:org/name[@revision], or one of ${SHORT_NAMES.join(", ")}`)
    .option("--cache-dir <dir>", "where to keep it (default: the hub's own cache, see HF_HOME)")
    .option("--verify", "hash the files of a model that is there; fetch again what is damaged")
    .action(
      perform<PullFlags, [string]>(async ({ reporter, signal }, flags, model) => {
        const { verify } = flags;
        const cacheDir =
          flags.cacheDir === undefined
            ? undefined
            : outputPlace(flags.cacheDir, { flag: "--cache-dir", kind: "directory" });
        const path = await resolveModel(model, { cacheDir, verify, progress: reporter, signal });
        reporter.result({ model, path }, () => path);
      }),
    );
  addExamples(command, [
    "planish pull smollm2-135m-instruct",
    "planish pull hf:Qwen/Qwen2.5-0.5B-Instruct",
  ]);
}
