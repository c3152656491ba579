/**
 * The engine end to end: prompt and decoding speed, time to the first token and memory of our 16-bit path, of artifacts,
 * and of node-llama-cpp with the same weights as GGUF. Each side lives in a process of its own; rounds alternate between
 * them, and medians with quartiles are told, since other work on the machine disturbs all alike.
 */
import { fork, type ChildProcess } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { createCpuBackend } from "../backend/cpu/train/backend.js";
import { loadNativeLibrary } from "../backend/cpu/library.js";
import { PlanishError } from "../common/errors.js";
import { peerDirectory, type ContestantSettings, type RunReport } from "./contestant.js";
import { PLAIN_TYPES, requantizeGguf } from "./gguf-requantize.js";
import { ceilingProbe, timing, type Timing } from "./kernels.js";

export interface EngineBenchOptions {
  /** Models of ours: originals and artifacts. */
  readonly models: readonly string[];
  /** The same weights as GGUF: rounded to the plain types for node-llama-cpp. */
  readonly gguf?: string;
  /** Where the rounded GGUF files are kept. */
  readonly scratch: string;
  /** What runs our models (default: the processor); node-llama-cpp always runs on the processor. */
  readonly device?: "cpu" | "cuda";
  readonly threads?: number;
  readonly rounds?: number;
  readonly prompt?: number;
  readonly generate?: number;
  readonly withoutPeer?: boolean;
  readonly onRound?: (done: number) => void;
  readonly signal?: AbortSignal;
}

export interface ContestantReport {
  readonly name: string;
  readonly description: string;
  /** Milliseconds of the prompt: the time to the first token. */
  readonly prefill: Timing;
  readonly prefillTokensPerSecond: number;
  /** Milliseconds per token after the prompt. */
  readonly decode: Timing;
  readonly decodeTokensPerSecond: number;
  readonly residentBytes: number;
  /** Shares of time by kind of kernel, in the median run. */
  readonly prefillShares?: Readonly<Record<string, number>>;
  readonly decodeShares?: Readonly<Record<string, number>>;
}

export interface EngineBenchReport {
  readonly machine: string;
  readonly node: string;
  readonly threads: number;
  readonly rounds: number;
  readonly prompt: number;
  readonly generate: number;
  /** 10⁹ operations per second of int8 and bf16 products from registers, and 10⁹ bytes of memory read. */
  readonly ceilings: { readonly int8: number; readonly bf16: number; readonly memory: number };
  readonly contestants: readonly ContestantReport[];
  /** Why the peer's lines are missing. */
  readonly peerMissing?: string;
}

interface Running {
  readonly name: string;
  readonly child: ChildProcess;
  readonly reports: RunReport[];
}

const PEER_INSTALL =
  "cd bench/peers && ONNXRUNTIME_NODE_INSTALL=skip NODE_LLAMA_CPP_SKIP_DOWNLOAD=true npm install (in a clone of the repository)";

/** Resolves with the next message; rejects when the process ends first. */
function nextMessage<T>(child: ChildProcess, name: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = (code: number | null) =>
      reject(new PlanishError(`${name} ended with status ${String(code)}`));
    child.once("exit", stop);
    child.once("message", (message) => {
      child.off("exit", stop);
      resolve(message as T);
    });
  });
}

async function start(name: string, settings: ContestantSettings): Promise<Running> {
  // The same file, whether this one runs from src/ or dist/.
  const file = import.meta.url.endsWith(".ts") ? "./contestant.ts" : "./contestant.js";
  const child = fork(fileURLToPath(new URL(file, import.meta.url)), {
    env: { ...process.env, PLANISH_BENCH_CONTESTANT: JSON.stringify(settings) },
    execArgv: [...process.execArgv, "--expose-gc"],
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  await nextMessage(child, name);
  return { name, child, reports: [] };
}

async function measure(running: Running): Promise<RunReport> {
  const answer = nextMessage<RunReport>(running.child, running.name);
  running.child.send({ run: true });
  return answer;
}

/** The peer's files, made where they are missing. */
async function peerFiles(gguf: string, scratch: string): Promise<{ name: string; path: string }[]> {
  mkdirSync(scratch, { recursive: true });
  const files: { name: string; path: string }[] = [];
  for (const type of PLAIN_TYPES) {
    const path = join(scratch, `${basename(gguf, ".gguf")}.planish-${type}.gguf`);
    if (!existsSync(path)) await requantizeGguf(gguf, path, type);
    files.push({ name: `node-llama-cpp ${type}`, path });
  }
  return files;
}

/** @throws PlanishError when a model does not open; rejects when `signal` aborts. */
export async function benchEngine(options: EngineBenchOptions): Promise<EngineBenchReport> {
  const { rounds = 7, prompt = 512, generate = 64, device, signal } = options;
  using backend = createCpuBackend({ threads: options.threads });
  const library = loadNativeLibrary();
  const threads = library.threads();
  const probe = ceilingProbe(library, threads);
  const memory = backend.alloc("f32", (256 << 20) / 4);
  backend.fill(memory, 1);
  const ceilings = { int8: 0, bf16: 0, memory: 0 };

  const sides: { name: string; settings: ContestantSettings }[] = options.models.map((path) => ({
    name: basename(path),
    settings: { kind: "planish", path, device, threads, prompt, generate },
  }));
  let peerMissing: string | undefined;
  if (options.withoutPeer) peerMissing = "left out";
  else if (!options.gguf) peerMissing = "give --gguf FILE, the same model as GGUF";
  else if (!peerDirectory()) peerMissing = `node-llama-cpp is not installed; ${PEER_INSTALL}`;
  else
    for (const { name, path } of await peerFiles(options.gguf, options.scratch))
      sides.push({ name, settings: { kind: "node-llama-cpp", path, threads, prompt, generate } });

  const running: Running[] = [];
  try {
    for (const { name, settings } of sides) running.push(await start(name, settings));
    // The first round warms up.
    for (let round = 0; round <= rounds; round++) {
      signal?.throwIfAborted();
      const [, bf16, int8] = probe.peaks.map((peak) => peak());
      ceilings.bf16 = Math.max(ceilings.bf16, bf16);
      ceilings.int8 = Math.max(ceilings.int8, int8);
      ceilings.memory = Math.max(ceilings.memory, probe.memory(memory));
      for (const each of running) {
        const report = await measure(each);
        if (round > 0) each.reports.push(report);
      }
      if (round > 0) options.onRound?.(round);
    }
  } finally {
    for (const { child } of running) child.kill();
  }
  return {
    machine: backend.description,
    node: process.version,
    threads,
    rounds,
    prompt,
    generate,
    ceilings,
    contestants: running.map((each) => summarize(each, prompt)),
    peerMissing,
  };
}

function summarize({ name, reports }: Running, prompt: number): ContestantReport {
  const prefill = timing(reports.map((report) => report.prefill));
  const decode = timing(reports.map((report) => report.decode));
  const middle = [...reports].sort((a, b) => a.decode - b.decode)[Math.floor(reports.length / 2)];
  return {
    name,
    description: middle.description,
    prefill,
    prefillTokensPerSecond: (1000 * prompt) / prefill.median,
    decode,
    decodeTokensPerSecond: 1000 / decode.median,
    residentBytes: Math.max(...reports.map((report) => report.resident)),
    prefillShares: shares(middle.prefillProfile),
    decodeShares: shares(middle.decodeProfile),
  };
}

function shares(
  profile: Readonly<Record<string, number>> | undefined,
): Record<string, number> | undefined {
  if (!profile) return undefined;
  const total = Object.values(profile).reduce((sum, x) => sum + x, 0);
  return Object.fromEntries(
    Object.entries(profile).flatMap(([name, seconds]) =>
      seconds > 0 ? [[name, seconds / total]] : [],
    ),
  );
}

/** The report as a table for a terminal. */
export function formatEngineReport(report: EngineBenchReport): string {
  const { ceilings, contestants, prompt, generate } = report;
  const lines = [
    `${report.machine}, Node ${report.node}; medians of ${report.rounds} alternating rounds [quartiles]`,
    `ceilings: int8 ${ceilings.int8.toFixed(0)}, bf16 ${ceilings.bf16.toFixed(0)} GOP/s; memory read ${ceilings.memory.toFixed(1)} GB/s`,
    "",
  ];
  const header = [
    "model",
    `prompt of ${prompt}, ms`,
    "tokens/s",
    `decode (${generate} after it), ms`,
    "tokens/s",
    "resident MB",
  ];
  const show = ({ median, lower, upper }: Timing, digits: number) =>
    `${median.toFixed(digits)} [${lower.toFixed(digits)}–${upper.toFixed(digits)}]`;
  const table = [
    header,
    ...contestants.map((c) => [
      c.name,
      show(c.prefill, 0),
      c.prefillTokensPerSecond.toFixed(0),
      show(c.decode, 2),
      c.decodeTokensPerSecond.toFixed(0),
      (c.residentBytes / 1e6).toFixed(0),
    ]),
  ];
  const widths = header.map((_, column) => Math.max(...table.map((line) => line[column].length)));
  for (const line of table)
    lines.push(
      line
        .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])))
        .join("  "),
    );
  lines.push("");
  for (const c of contestants) {
    lines.push(`${c.name}: ${c.description}`);
    const percent = (all: Readonly<Record<string, number>>) =>
      Object.entries(all)
        .sort(([, a], [, b]) => b - a)
        .map(([name, share]) => `${name} ${(100 * share).toFixed(0)}%`)
        .join(", ");
    if (c.prefillShares) lines.push(`  prompt: ${percent(c.prefillShares)}`);
    if (c.decodeShares) lines.push(`  decode: ${percent(c.decodeShares)}`);
  }
  if (report.peerMissing) lines.push(`peer: ${report.peerMissing}`);
  return lines.join("\n");
}
