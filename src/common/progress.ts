/**
 * How long work tells what it is doing: a plain interface that every room may call, and that the command line
 * implements with bars or lines. Lower rooms take a `ProgressSink` as an argument and never print themselves.
 */

/** One piece of work of known size. */
export interface ProgressTask {
  /**
   * Reports `by` more units done (default 1). `detail` is a few words shown beside the bar, such as the current
   * loss; it replaces the previous one.
   */
  advance(by?: number, detail?: string): void;
  /** Ends the task, whether or not all of its units were done. Calling it twice is harmless. */
  done(): void;
}

/** Where progress, remarks and warnings go. */
export interface ProgressSink {
  /** Opens a task of `total` units. Tasks may overlap; each must be ended with `done`. */
  task(label: string, total: number): ProgressTask;
  /** A line worth reading once: an estimate, a finished stage. */
  note(message: string): void;
  /** A fallback taken or a suspicious value: shown even with `--quiet`. */
  warn(message: string): void;
}

const silentTask: ProgressTask = {
  advance: () => undefined,
  done: () => undefined,
};

/** Discards everything: the default of library calls. */
export const silentProgress: ProgressSink = {
  task: () => silentTask,
  note: () => undefined,
  warn: () => undefined,
};
