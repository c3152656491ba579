/**
 * Progress on a terminal (bars with time left) and elsewhere (plain lines at intervals), behind the
 * `ProgressSink` tasks that lower rooms report to.
 */

import { MultiBar } from "cli-progress";
import type { ProgressTask } from "../common/progress.js";
import { formatDuration, formatNumber } from "../common/format.js";

/** Seconds on a clock that never runs backwards. */
export type Clock = () => number;

export const systemClock: Clock = () => performance.now() / 1000;

/**
 * The rate is taken over at least this many of the latest reports, so that it follows work whose speed changes, and at least
 * this many seconds, so that pauses between stretches of steps (a block's preparation) are spread over them.
 */
const RATE_WINDOW = 20;
const RATE_SECONDS = 600;
/** Reports closer than this (seconds) share a place, so that ten minutes of them stay few. */
const REPORT_GAP = 0.5;
/**
 * In the first seconds no rate is taken from fewer reports than this, or than this share of the units left: the first one may
 * hold a long preparation.
 */
const EARLY = { seconds: 60, reports: 20, share: 1 / 20 } as const;
/** Units reported this soon (seconds) were done before: a resumed run must not pass for a fast one. */
const HEAD_START = 0.1;

/** How far one task is, and how long it will still take. Draws nothing. */
export class ProgressMeter {
  readonly total: number;
  value = 0;
  detail = "";
  readonly #start: number;
  #reports: { time: number; value: number }[];

  constructor(
    readonly label: string,
    total: number,
    readonly clock: Clock,
  ) {
    this.total = Math.max(0, total);
    this.#start = clock();
    this.#reports = [{ time: this.#start, value: 0 }];
  }

  advance(by = 1, detail?: string): void {
    const time = this.clock();
    this.value = Math.min(this.total, this.value + by);
    if (detail !== undefined) this.detail = detail;
    const report = { time, value: this.value };
    if (time - this.#start < HEAD_START) {
      this.#reports = [report];
    } else {
      const before = this.#reports.at(-2);
      if (this.#reports.length > RATE_WINDOW && before && time - before.time < REPORT_GAP)
        this.#reports.pop();
      this.#reports.push(report);
      while (this.#reports.length > RATE_WINDOW && time - this.#reports[1].time >= RATE_SECONDS)
        this.#reports.shift();
    }
  }

  /** Share done, 0 to 1; an empty task is done. */
  get fraction(): number {
    return this.total === 0 ? 1 : this.value / this.total;
  }

  /** Seconds since the task was opened. */
  get elapsed(): number {
    return this.clock() - this.#start;
  }

  /** Estimated seconds until the end; undefined until there are reports enough for a rate. */
  get secondsLeft(): number | undefined {
    const needed = Math.min(EARLY.reports, (this.total - this.value) * EARLY.share);
    if (this.#reports.length <= needed && this.elapsed < EARLY.seconds) return undefined;
    const first = this.#reports[0];
    const last = this.#reports[this.#reports.length - 1];
    const perUnit = (last.time - first.time) / (last.value - first.value);
    if (!Number.isFinite(perUnit)) return undefined;
    return Math.max(0, (this.total - this.value) * perUnit - (this.clock() - last.time));
  }

  /** `12/32 (38%), 1 min 05 s left, loss 0.0012`; percent are rounded down, so 100 means all. */
  describe(): string {
    return this.descriptions()[0];
  }

  /** `describe`, then shorter ones: without the detail, without the time left. */
  descriptions(): [string, ...string[]] {
    const count = `${formatNumber(this.value)}/${formatNumber(this.total)} (${Math.floor(100 * this.fraction)}%)`;
    const left = this.secondsLeft;
    const time =
      left !== undefined && this.fraction < 1
        ? `${count}, ${left < 1 ? "<1 s" : formatDuration(left)} left`
        : count;
    return [this.detail === "" ? time : `${time}, ${this.detail}`, time, count];
  }
}

/** What `Reporter` needs of either kind of display. */
export interface ProgressDisplay {
  task(label: string, total: number): ProgressTask;
  /** Runs `write` with the display out of the way. */
  aside(write: () => void): void;
  /** Ends every task; the display stays usable. */
  close(): void;
}

/** Shows nothing: `--quiet`. */
export class NoProgress implements ProgressDisplay {
  task(): ProgressTask {
    return { advance: () => undefined, done: () => undefined };
  }
  aside(write: () => void): void {
    write();
  }
  close(): void {
    // Nothing is held.
  }
}

/** A line is due after this much progress … */
const LINE_STEP = 0.1;
/** … or this many seconds; … */
const LINE_INTERVAL = 10;
/** … but short tasks must not flood a log. */
const LINE_MINIMUM_GAP = 1;

/** Plain lines, for logs and pipes. */
export class LineProgress implements ProgressDisplay {
  constructor(
    private readonly writeLine: (line: string) => void,
    private readonly clock: Clock = systemClock,
  ) {}

  task(label: string, total: number): ProgressTask {
    const meter = new ProgressMeter(label, total, this.clock);
    let shownAt = this.clock();
    let shownFraction = 0;
    let open = true;
    this.writeLine(`${label} …`);
    return {
      advance: (by, detail) => {
        meter.advance(by, detail);
        const gap = this.clock() - shownAt;
        const stepped = meter.fraction - shownFraction >= LINE_STEP - 1e-9;
        if (meter.fraction < 1 && (gap >= LINE_INTERVAL || (stepped && gap >= LINE_MINIMUM_GAP))) {
          shownAt = this.clock();
          shownFraction = meter.fraction;
          this.writeLine(`${label}: ${meter.describe()}`);
        }
      },
      done: () => {
        if (!open) return;
        open = false;
        const how = meter.fraction < 1 ? `ended at ${meter.describe()}, after` : "done in";
        if (meter.fraction < 1 || meter.elapsed >= LINE_MINIMUM_GAP) {
          this.writeLine(`${label}: ${how} ${formatDuration(meter.elapsed)}`);
        }
      },
    };
  }

  aside(write: () => void): void {
    write();
  }

  close(): void {
    // Lines leave nothing behind.
  }
}

const REDRAW_INTERVAL = 0.1;
const BAR_WIDTH = 24;
/** Of a terminal that does not say. */
const DEFAULT_COLUMNS = 80;

/** Bars at the bottom of a terminal, one per open task; they vanish when their task is done. */
export class BarProgress implements ProgressDisplay {
  readonly #meters = new Set<ProgressMeter>();
  #bars: MultiBar | undefined;
  #drawnAt = 0;

  constructor(
    private readonly stream: NodeJS.WriteStream,
    private readonly clock: Clock = systemClock,
  ) {}

  task(label: string, total: number): ProgressTask {
    const meter = new ProgressMeter(label, total, this.clock);
    this.#erase();
    this.#meters.add(meter);
    this.#draw();
    return {
      advance: (by, detail) => {
        meter.advance(by, detail);
        // The library redraws from a timer, which long synchronous kernels starve.
        if (this.clock() - this.#drawnAt >= REDRAW_INTERVAL) {
          this.#drawnAt = this.clock();
          this.#bars?.update();
        }
      },
      done: () => {
        if (!this.#meters.delete(meter)) return;
        this.#bars?.stop();
        this.#bars = undefined;
        this.#draw();
      },
    };
  }

  aside(write: () => void): void {
    this.#erase();
    write();
    this.#draw();
  }

  close(): void {
    this.#meters.clear();
    this.#erase();
  }

  #erase(): void {
    this.#bars?.stop();
    this.#bars = undefined;
  }

  #draw(): void {
    if (this.#meters.size === 0) return;
    this.#bars = new MultiBar({
      stream: this.stream,
      clearOnComplete: true,
      forceRedraw: true,
      // The last column stays free: some terminals wrap a line that fills it.
      format: (_options, _params, meter: ProgressMeter) =>
        barLine(meter, (this.stream.columns || DEFAULT_COLUMNS) - 1),
    });
    for (const meter of this.#meters) this.#bars.create(meter.total, 0, meter);
    this.#drawnAt = this.clock();
    this.#bars.update();
  }
}

/** Narrower bars say nothing; the percentage does. */
const LEAST_BAR_WIDTH = 6;

/**
 * `calibrating [=========---------------] 12/32 (38%), 1 min 05 s left, loss 0.0012`. What does not fit into `width`
 * columns is left out: some of the bar first, then the detail, the time, the bar and the end of the label.
 */
export function barLine(meter: ProgressMeter, width = Infinity): string {
  const percent = `${Math.floor(100 * meter.fraction)}%`;
  const label = Array.from(meter.label);
  for (const text of [...meter.descriptions(), percent]) {
    const room = width - label.length - Array.from(text).length - 4;
    if (room >= LEAST_BAR_WIDTH)
      return `${meter.label} [${bar(meter.fraction, Math.min(BAR_WIDTH, room))}] ${text}`;
  }
  const room = Math.max(0, width - percent.length - 1);
  const short = label.length <= room ? meter.label : `${label.slice(0, room - 1).join("")}…`;
  return room > 1 ? `${short} ${percent}` : percent.slice(0, Math.max(0, width));
}

function bar(fraction: number, width: number): string {
  const filled = Math.floor(fraction * width);
  return "=".repeat(filled) + "-".repeat(width - filled);
}
