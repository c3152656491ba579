/** Flags of the commands that run an engine, and how they become its options. */

import { InvalidArgumentError, Option } from "commander";
import { MAX_SETTINGS_BYTES, readUserText } from "../../common/read-file.js";
import { isLegalBits, LEGAL_BITS, type Bits } from "../../backend/contract/scheme.js";
import { LIMITS } from "../../common/bounds.js";
import type { ProgressSink } from "../../common/progress.js";
import type { EngineOptions } from "../../engine/engine.js";
import type { DeviceFlags } from "./shared.js";

export interface EngineFlags {
  readonly simulated?: boolean;
  readonly dequantize?: boolean;
  readonly kvBits?: Bits;
  readonly kvMemory?: number;
  readonly chatTemplate?: string;
  readonly lookUp?: boolean;
}

export const simulatedOption = (): Option =>
  new Option(
    "--simulated",
    "run the same grids in float32 instead of the integer kernels: slower, for comparison",
  );

export const dequantizeOption = (): Option =>
  new Option(
    "--dequantize",
    "run a GGUF file's weights in 16 bits; default: as the file has them, with activations of 8 bits",
  );

export const keptKvBitsOption = (): Option =>
  new Option("--kv-bits <bits>", "bits of the KV cache (keep; default: 8)").argParser(cacheBits);

export const kvBitsOption = (): Option =>
  new Option(
    "--kv-bits <bits>",
    "bits of the KV cache beside a GGUF file's own weights (default: 8)",
  ).argParser(cacheBits);

function cacheBits(text: string): Bits {
  const value = Number(text);
  if (text.trim() === "" || !isLegalBits(value))
    throw new InvalidArgumentError(`Give one of ${LEGAL_BITS.join(", ")}.`);
  return value;
}

export const kvMemoryOption = (): Option =>
  new Option(
    "--kv-memory <size>",
    "memory for the KV cache, such as 500MB or 2GB (default: a quarter of what is free, or what is useful if less)",
  ).argParser(byteCount);

export const chatTemplateOption = (): Option =>
  new Option(
    "--chat-template <file>",
    "Jinja file that writes messages down, in place of the model's own template",
  );

export const lookUpOption = (): Option =>
  new Option(
    "--look-up",
    "guess what comes next from what came before: the same texts, copies and summaries faster",
  );

/** The engine's options that the flags say. @throws PlanishError when the template's file cannot be read. */
export function engineOptions(
  flags: DeviceFlags & EngineFlags,
  progress: ProgressSink,
): EngineOptions {
  const { device, threads, simulated, dequantize, kvBits, kvMemory, chatTemplate, lookUp } = flags;
  return {
    device,
    threads,
    simulated,
    dequantize,
    kvBits,
    kvMemory,
    lookUp,
    chatTemplate: chatTemplate === undefined ? undefined : readTemplate(chatTemplate),
    progress,
  };
}

function readTemplate(file: string): string {
  return readUserText(file, {
    what: "chat template",
    most: MAX_SETTINGS_BYTES,
    hint: "give a Jinja file",
  });
}

const UNITS: Readonly<Record<string, number>> = { "": 1, KB: 1e3, MB: 1e6, GB: 1e9 };

/** A size in bytes: a number with KB, MB or GB (powers of 1000), or without unit. */
export function byteCount(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMG]B)?$/i.exec(text.trim());
  const bytes = match ? Number(match[1]) * UNITS[(match[2] ?? "").toUpperCase()] : NaN;
  if (!Number.isSafeInteger(Math.round(bytes)) || bytes < 1 || bytes > LIMITS.bytes)
    throw new InvalidArgumentError("Give a size such as 500MB or 2GB.");
  return Math.round(bytes);
}
