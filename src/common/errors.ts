/** Errors meant for people: one line that says what was given, what is accepted and what to do. */

/**
 * A failure the user can act on. The command line prints only its message (a stack trace with `--verbose`)
 * and exits with `exitCode`: 1 when the work failed, 2 on bad usage.
 */
export class PlanishError extends Error {
  override readonly name: string = "PlanishError";
  readonly exitCode: 1 | 2;
  /** The work can go on where it stopped, by the same command with `--resume`. */
  readonly resumable: boolean;

  constructor(
    message: string,
    options: { exitCode?: 1 | 2; resumable?: boolean; cause?: unknown } = {},
  ) {
    super(message, { cause: options.cause });
    this.exitCode = options.exitCode ?? 1;
    this.resumable = options.resumable ?? false;
  }
}

/** Bad usage: unknown flag, illegal value, wrong combination. */
export class UsageError extends PlanishError {
  override readonly name = "UsageError";
  constructor(message: string, options: { cause?: unknown } = {}) {
    super(message, { ...options, exitCode: 2 });
  }
}

/** Work stopped on request (Ctrl-C, abort signal); what is finished is kept. */
export class InterruptedError extends PlanishError {
  override readonly name = "InterruptedError";
}

/** Whether work ended because it was asked to. */
export function isInterruption(error: unknown): boolean {
  return error instanceof InterruptedError || (error as Error | undefined)?.name === "AbortError";
}

/** An interruption or failure of work that can go on: its message with `kept`, what is finished, behind it. */
export function asResumable(error: unknown, kept: string): PlanishError {
  const message = `${error instanceof Error ? error.message : String(error)}; ${kept}`;
  const options = { resumable: true, cause: error };
  return isInterruption(error)
    ? new InterruptedError(message, options)
    : new PlanishError(message, options);
}
