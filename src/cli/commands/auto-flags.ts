/** `--auto` and `--time` of `planish quantize`. */
import { InvalidArgumentError, Option } from "commander";
import { UsageError } from "../../common/errors.js";
import { autoChoice, choiceText, type ChooseOptions } from "../../experiments/auto/choose.js";
import { Journal } from "../../quantize/run/journal.js";
import type { Budget } from "../../quantize/run/bits.js";
import type { QuantizeOptions } from "../../quantize/run/pipeline.js";

export const autoOption = (): Option =>
  new Option(
    "--auto",
    "look at model and machine, and choose method, scheme and recipe within --budget and --time",
  );

export const timeOption = (): Option =>
  new Option(
    "--time <t>",
    "with --auto: most that quantizing may take, such as 90s, 15m or 2h (default: 25m)",
  ).argParser(parseTime);

const SECONDS = { s: 1, m: 60, h: 3600 } as const;

/** Seconds. @throws InvalidArgumentError for anything but a number above zero with s, m or h. */
export function parseTime(text: string): number {
  const match = /^(\d{1,9}(?:\.\d{1,9})?)([smh])$/i.exec(text.trim());
  const seconds = match ? Number(match[1]) * SECONDS[match[2].toLowerCase() as "s" | "m" | "h"] : 0;
  if (seconds <= 0) throw new InvalidArgumentError("Give a time such as 90s, 15m or 2h.");
  return seconds;
}

export interface AutoFlags {
  readonly out: string;
  readonly auto?: boolean;
  readonly time?: number;
  readonly method?: string;
  readonly scheme?: string;
  readonly preset?: string;
  readonly recipe?: string;
  readonly budget?: Budget;
  readonly resume?: boolean;
}

/** @throws UsageError for flags that say what `--auto` is to find out, and for `--time` without it. */
export function checkAutoFlags(
  flags: AutoFlags & { readonly given: Readonly<Record<string, unknown>> },
): void {
  if (!flags.auto) {
    if (flags.time !== undefined)
      throw new UsageError("--time limits what --auto chooses; give --auto too, or leave it out");
    return;
  }
  const { method, scheme, preset, recipe } = flags;
  const said = Object.entries({ method, scheme, preset, recipe, ...flags.given }).find(
    ([, value]) => value !== undefined,
  );
  if (said)
    throw new UsageError(
      `--auto chooses method, scheme and recipe itself, and --${said[0].replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)} was given; leave out one of the two, or say by --budget and --time what it may cost`,
    );
}

/** What `quantize` is to do: what was chosen now, or what an interrupted run was begun with. */
export async function chosenBy(
  flags: AutoFlags,
  options: ChooseOptions,
): Promise<Pick<QuantizeOptions, "method" | "scheme" | "preset" | "recipe" | "budget">> {
  const begun = flags.resume ? Journal.settingsAt(flags.out) : undefined;
  if (begun) {
    const { method, scheme, preset, recipe, budget } = begun as Required<QuantizeOptions>;
    const { size, kl } = (budget as Budget | undefined) ?? {};
    return {
      method,
      preset,
      recipe,
      scheme: method === "keep" ? undefined : scheme,
      budget: budget ? { size, kl } : undefined,
    };
  }
  const choice = await autoChoice(options);
  options.progress.note(choiceText(choice));
  const { method, scheme, preset, recipe } = choice.chosen;
  return { method, scheme, preset, recipe, budget: choice.budget };
}
