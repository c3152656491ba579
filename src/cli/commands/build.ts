/** `planish build`: compiles the CPU kernels from source into the user's cache, where the loader looks before the packages. */

import { existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import type { Command } from "commander";
import { builtLibraryFolder } from "../../backend/cpu/library-path.js";
import { InterruptedError, PlanishError } from "../../common/errors.js";
import { formatDuration } from "../../common/format.js";
import { packageRoot } from "../../common/package.js";
import type { ProgressTask } from "../../common/progress.js";
import { perform } from "../action.js";
import { addExamples } from "../program.js";

/** The part of native/build.mjs that is used here; it is JavaScript, since a clone runs it before anything is compiled. */
interface Builder {
  findCompiler(): unknown;
  buildNative(options: {
    readonly out: string;
    readonly compiler: unknown;
    readonly signal: AbortSignal;
    readonly log: (line: string) => void;
    readonly onUnit: (done: number, total: number) => void;
  }): Promise<{
    readonly path: string;
    readonly levels: readonly string[];
    readonly upToDate: boolean;
  }>;
}

interface BuildFlags {
  readonly clean?: boolean;
}

export function register(program: Command): void {
  const command = program
    .command("build")
    .summary("compile the CPU kernels for this machine from source")
    .description(
      "Compiles the CPU kernels with the system's C++17 compiler ($CXX, else c++, g++ or clang++) into the user's cache. " +
        "From then on they are used instead of the prebuilt package. It takes minutes; what is done is kept.",
    )
    .option("--clean", "remove what was built, so that the prebuilt package serves again")
    .action(
      perform<BuildFlags, []>(async ({ reporter, signal }, flags) => {
        const out = builtLibraryFolder();
        if (flags.clean) {
          const removed = existsSync(out);
          rmSync(out, { recursive: true, force: true });
          reporter.result({ removed: removed ? out : null }, () =>
            removed ? `removed ${out}` : `nothing was built in ${out}`,
          );
          return;
        }
        const source = join(packageRoot, "native", "build.mjs");
        if (!existsSync(source))
          throw new PlanishError(`the kernels' source is not in ${packageRoot}; reinstall planish`);
        const builder = (await import(pathToFileURL(source).href)) as Builder;
        const started = performance.now();
        mkdirSync(out, { recursive: true });
        let task: ProgressTask | undefined;
        try {
          const { path, levels, upToDate } = await builder.buildNative({
            out,
            compiler: builder.findCompiler(),
            signal,
            log: (line) => {
              reporter.info(line);
            },
            onUnit: (done, total) => {
              if (done > 0) task?.advance();
              else if (total > 0) task = reporter.task("compiling", total);
            },
          });
          const seconds = (performance.now() - started) / 1000;
          reporter.result({ path, levels, upToDate, seconds }, () =>
            upToDate
              ? `${path} is up to date (${levels.join(", ")})`
              : `${path} (${levels.join(", ")}), built in ${formatDuration(seconds)}`,
          );
        } catch (error) {
          if (signal.aborted) throw new InterruptedError("stopped; what is compiled is kept");
          throw new PlanishError(
            `cannot build the CPU kernels: ${(error as Error).message.split("\n").slice(0, 3).join(" ")}`,
            { cause: error },
          );
        } finally {
          task?.done();
        }
      }),
    );
  addExamples(command, ["planish build", "CXX=clang++ planish build", "planish build --clean"]);
}
