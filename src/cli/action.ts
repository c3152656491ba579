/**
 * The frame around every command's work: reporter, interruption, and the way from an error to one line and an
 * exit code.
 */

import type { Command } from "commander";
import { allowFetching } from "../common/companions.js";
import { InterruptedError, isInterruption, PlanishError } from "../common/errors.js";
import { Reporter } from "./output.js";
import { resumeCommand } from "./resume-command.js";

/** Exit code after a clean stop on SIGINT or SIGTERM. */
export const EXIT_INTERRUPTED = 130;

/** Flags that every command takes; declared once, on the program. */
export interface GlobalFlags {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly verbose?: boolean;
}

/** What a command's work is given besides its own arguments. */
export interface CommandContext {
  readonly reporter: Reporter;
  /**
   * Aborted by the first SIGINT or SIGTERM. Work checks it between steps, keeps what is finished, and throws
   * InterruptedError. Signals arrive only when the event loop turns: long work must await between steps.
   */
  readonly signal: AbortSignal;
}

export interface PerformOptions {
  /** The command runs until it is told to end: a signal is no interruption, and the exit code says how the work went. */
  readonly signalsEndNormally?: boolean;
}

/**
 * Wraps a command's work as a commander action. `Flags` are the command's own options, `Args` its arguments.
 * Failures end in `process.exitCode`, never in a thrown error.
 */
// eslint-disable-next-line @typescript-eslint/no-unnecessary-type-parameters -- they type the work's parameters
export function perform<Flags, Args extends unknown[]>(
  work: (context: CommandContext, flags: Flags, ...args: Args) => Promise<void> | void,
  { signalsEndNormally = false }: PerformOptions = {},
): (...raw: unknown[]) => Promise<void> {
  return async (...raw) => {
    // Commander appends the options and the command itself to the declared arguments.
    const command = raw[raw.length - 1] as Command;
    const flags = raw[raw.length - 2] as Flags;
    const args = raw.slice(0, -2) as Args;
    const globals = command.optsWithGlobals<GlobalFlags>();
    const reporter = new Reporter(globals);
    allowFetching((message) => {
      reporter.info(message);
    });
    const interruption = listenForSignals(reporter, signalsEndNormally);
    try {
      await work({ reporter, signal: interruption.signal }, flags, ...args);
      if (interruption.signal.aborted && !signalsEndNormally) process.exitCode = EXIT_INTERRUPTED;
    } catch (error) {
      process.exitCode = reportFailure(error, reporter, interruption.signal.aborted, command);
    } finally {
      interruption.dispose();
      reporter.close();
    }
  };
}

/** The first signal asks for a clean stop, the second ends the process. */
function listenForSignals(
  reporter: Reporter,
  endsNormally: boolean,
): { signal: AbortSignal; dispose: () => void } {
  const controller = new AbortController();
  const onSignal = (name: NodeJS.Signals): void => {
    if (controller.signal.aborted) {
      reporter.close();
      process.exit(EXIT_INTERRUPTED);
    }
    const what = endsNormally ? "finishing what is under way" : "stopping after the current step";
    reporter.info(`${what}; press again to quit at once`);
    controller.abort(new InterruptedError(`stopped by ${name}`));
  };
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  const dispose = (): void => {
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
  };
  return { signal: controller.signal, dispose };
}

/** Prints the error's one line (and the stack with `--verbose`); returns the exit code it asks for. */
export function reportFailure(
  error: unknown,
  reporter: Reporter,
  interrupted: boolean,
  command?: Command,
): number {
  reporter.close();
  const { message, exitCode } = describeFailure(error, interrupted, reporter.verbose, command);
  reporter.error(message);
  if (reporter.verbose && error instanceof Error) reporter.debug(stackOf(error));
  if (reporter.json && !reporter.hasPrintedJson) {
    reporter.result({ error: { message, exitCode } }, () => "");
  }
  return exitCode;
}

function describeFailure(
  error: unknown,
  interrupted: boolean,
  verbose: boolean,
  command: Command | undefined,
): { message: string; exitCode: number } {
  const name = error instanceof Error ? error.name : "";
  const text = oneLine(error instanceof Error ? error.message : String(error));
  const resumes =
    error instanceof PlanishError && error.resumable && command !== undefined && resumable(command)
      ? `; go on with: ${resumeCommand()}`
      : "";
  if (interrupted && isInterruption(error)) {
    return { message: text + resumes, exitCode: EXIT_INTERRUPTED };
  }
  if (error instanceof PlanishError && resumes !== "") {
    return { message: text + resumes, exitCode: error.exitCode };
  }
  if (error instanceof PlanishError) {
    const hint = error.exitCode === 2 && command ? `; see \`${commandPath(command)} --help\`` : "";
    return { message: text + hint, exitCode: error.exitCode };
  }
  const hint = verbose ? "" : "; run with --verbose for the stack";
  return { message: `unexpected failure: ${text || name || "no message"}${hint}`, exitCode: 1 };
}

function resumable(command: Command): boolean {
  return command.options.some(({ long }) => long === "--resume");
}

/** `planish eval` for the command named `eval`. */
export function commandPath(command: Command): string {
  const names: string[] = [];
  for (let at: Command | null = command; at !== null; at = at.parent) names.unshift(at.name());
  return names.join(" ");
}

/** Folds a message of several lines (a native compiler's, say) into one. */
export function oneLine(text: string): string {
  return text.trim().replace(/\s*\n\s*/g, " ");
}

function stackOf(error: Error): string {
  const stack = error.stack ?? error.message;
  return error.cause instanceof Error ? `${stack}\ncaused by ${stackOf(error.cause)}` : stack;
}
