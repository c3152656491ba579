/** `--budget`: what a quantized model may cost. */
import { InvalidArgumentError, Option } from "commander";
import type { Budget } from "../../quantize/run/bits.js";
import { byteCount } from "./engine-flags.js";

export const budgetOption = (): Option =>
  new Option(
    "--budget <size=…|kl=…>",
    "give single sites more bits than the scheme's, those that cost most without: as many as fit size=95MB, as few as reach kl=0.1 " +
      "nats a token, or both (size=95MB,kl=0.1)",
  ).argParser(parseBudget);

/** @throws InvalidArgumentError for anything but `size=…`, `kl=…`, or both with a comma between. */
export function parseBudget(text: string): Budget {
  const budget: { size?: number; kl?: number } = {};
  for (const part of text.split(",")) {
    const match = /^\s*(size|kl)=(.+)$/i.exec(part);
    const name = match?.[1].toLowerCase() as keyof Budget | undefined;
    if (!match || name === undefined || budget[name] !== undefined)
      throw new InvalidArgumentError("Give size=95MB, kl=0.1, or both with a comma between.");
    if (name === "size") budget.size = byteCount(match[2]);
    else budget.kl = divergence(match[2]);
  }
  return budget;
}

function divergence(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value) || value <= 0)
    throw new InvalidArgumentError("Give a divergence in nats a token above zero, such as kl=0.1.");
  return value;
}
