/**
 * Everything the command line prints. Results go to stdout (text, or exactly one JSON document with `--json`);
 * remarks, warnings and progress go to stderr, so that a pipe sees results only.
 */

import type { ProgressSink, ProgressTask } from "../common/progress.js";
import { BarProgress, LineProgress, NoProgress, type ProgressDisplay } from "./progress.js";

export interface ReporterOptions {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly verbose?: boolean;
  readonly stdout?: NodeJS.WriteStream;
  readonly stderr?: NodeJS.WriteStream;
}

/** One per command run; lower rooms see it as a `ProgressSink`. */
export class Reporter implements ProgressSink {
  readonly json: boolean;
  readonly verbose: boolean;
  readonly quiet: boolean;
  readonly #stdout: NodeJS.WriteStream;
  readonly #stderr: NodeJS.WriteStream;
  readonly #display: ProgressDisplay;
  #printed = false;

  constructor(options: ReporterOptions = {}) {
    this.json = options.json ?? false;
    this.verbose = options.verbose ?? false;
    this.quiet = options.quiet ?? false;
    this.#stdout = options.stdout ?? process.stdout;
    this.#stderr = options.stderr ?? process.stderr;
    if (this.quiet) this.#display = new NoProgress();
    else if (this.#stderr.isTTY && process.env.TERM !== "dumb") {
      this.#display = new BarProgress(this.#stderr);
    } else {
      this.#display = new LineProgress((line) => this.#stderr.write(`${line}\n`));
    }
  }

  /** Internals, for `--verbose`. */
  debug(message: string): void {
    if (this.verbose) this.#log(message);
  }

  /** A remark; hidden by `--quiet`. */
  info(message: string): void {
    if (!this.quiet) this.#log(message);
  }

  /** `info`, under the name that lower rooms know. */
  note(message: string): void {
    this.info(message);
  }

  /** A fallback taken, or a suspicious value: always shown. */
  warn(message: string): void {
    this.#log(`planish: warning: ${message}`);
  }

  /** The one line that a failed command leaves. */
  error(message: string): void {
    this.#log(`planish: ${message}`);
  }

  task(label: string, total: number): ProgressTask {
    return this.#display.task(label, total);
  }

  /**
   * Prints the command's result: `value` as the JSON document, or else the text. Throws when called twice with
   * `--json`, since two documents cannot be parsed as one.
   */
  result(value: unknown, text: () => string): void {
    if (this.json) {
      if (this.#printed) throw new Error("a command printed two JSON documents");
      this.#printed = true;
      this.#print(`${toJson(value)}\n`);
    } else {
      this.#print(`${text()}\n`);
    }
  }

  /** Whether `result` has printed the JSON document. */
  get hasPrintedJson(): boolean {
    return this.#printed;
  }

  /** A piece of text that is the result as it grows (generated tokens); nothing with `--json`. */
  stream(piece: string): void {
    if (!this.json) this.#print(piece);
  }

  /** Ends progress and restores the terminal. */
  close(): void {
    this.#display.close();
  }

  #print(text: string): void {
    // Where stdout and stderr are the same terminal, a bar must not end up inside the result.
    this.#display.aside(() => this.#stdout.write(text));
  }

  #log(line: string): void {
    this.#display.aside(() => this.#stderr.write(`${line}\n`));
  }
}

/**
 * JSON with the values that plain `JSON.stringify` would lose: non-finite numbers and bigints become strings,
 * maps objects, typed arrays arrays.
 */
export function toJson(value: unknown): string {
  return JSON.stringify(
    value,
    (_key, entry: unknown) => {
      if (typeof entry === "number" && !Number.isFinite(entry)) return String(entry);
      if (typeof entry === "bigint") return String(entry);
      if (entry instanceof Map) return Object.fromEntries(entry as Map<string, unknown>);
      if (ArrayBuffer.isView(entry) && !(entry instanceof DataView)) {
        return Array.from(entry as unknown as ArrayLike<number>);
      }
      return entry;
    },
    2,
  );
}
