/** Errors meant for people: one line that says what was given, what is accepted and what to do. */

/**
 * A failure the user can act on. The command line prints only its message (a stack trace with `--verbose`)
 * and exits with `exitCode`: 1 when the work failed, 2 on bad usage.
 */
export class PlanishError extends Error {
  override readonly name: string = "PlanishError";
  readonly exitCode: 1 | 2;

  constructor(message: string, options: { exitCode?: 1 | 2; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.exitCode = options.exitCode ?? 1;
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
