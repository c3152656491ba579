/** `planish demo`: the whole job on the embedded model: quantize twice, score, continue one prompt with each. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import type { Backend } from "../../backend/contract/training.js";
import { openBackend } from "../../backend/open.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import { LIMITS } from "../../common/bounds.js";
import { formatBytes, formatDuration, formatTable } from "../../common/format.js";
import { companionFile } from "../../common/companions.js";
import { outputPlace } from "../../common/place.js";
import { generate } from "../../engine/generate.js";
import { evaluatePerplexity } from "../../evaluate/perplexity.js";
import { readDocuments, tokenizeCorpus } from "../../quantize/calibration/text.js";
import { quantize } from "../../quantize/run/pipeline.js";
import { loadModel } from "../../quantize/artifact/load.js";
import { perform, type CommandContext } from "../action.js";
import { integer } from "../flags.js";
import { addExamples } from "../program.js";
import { deviceOption, seedOption, threadsOption, type DeviceFlags } from "./shared.js";

interface DemoFlags extends DeviceFlags {
  readonly out?: string;
  readonly limit?: number;
  readonly quick?: boolean;
  readonly seed: number;
}

interface Candidate {
  readonly label: string;
  readonly path: string;
  readonly scheme: string;
  readonly bytes: number;
  /** Seconds of quantizing; absent for the original. */
  readonly quantizeSeconds?: number;
}

interface Outcome extends Candidate {
  readonly perplexity: number;
  readonly continuation: string;
}

const demoModel = () => companionFile("demo", "tiny-llama");
const SCHEME = "w4a4kv4";
const PROMPT = "The ship was";

interface Way {
  readonly label: string;
  readonly method: string;
  readonly preset?: string;
  readonly recipe?: Readonly<Record<string, number>>;
}

const ROUNDING: Way = { label: "rounding to nearest", method: "rtn" };
const FLATQUANT: Way = { label: "FlatQuant, preset fast", method: "flatquant", preset: "fast" };
/** Sixteen steps a block on short windows: enough to beat rounding, not to show what the method can do. */
const QUICK: Way = {
  ...FLATQUANT,
  label: "FlatQuant, 16 steps a block",
  recipe: { samples: 16, seqLen: 128, epochs: 2, batch: 2 },
};
const QUICK_WINDOWS = 20;

export function register(program: Command): void {
  const command = program
    .command("demo")
    .summary("quantize the embedded model two ways and compare")
    .description(
      "Quantizes the embedded tiny-llama by rounding and with FlatQuant, prints perplexities (WikiText-2 test, " +
        "windows of 512 tokens) and sizes, and continues one prompt with each.",
    )
    .option("--out <dir>", "keep the artifacts in this directory (default: they are removed)")
    .option(
      "--limit <n>",
      "score only the first n windows",
      integer({ min: 1, max: LIMITS.samples }),
    )
    .option("--quick", `train for seconds and score ${QUICK_WINDOWS} windows: worse numbers, soon`)
    .addOption(seedOption())
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<DemoFlags, []>(async (context, flags) => {
        const model = demoModel();
        const kept = flags.out !== undefined;
        const directory =
          flags.out === undefined
            ? mkdtempSync(join(tmpdir(), "planish-demo-"))
            : outputPlace(flags.out, { kind: "directory", source: model });
        for (const { method } of [ROUNDING, FLATQUANT])
          outputPlace(join(directory, method), { kind: "new directory" });
        try {
          using backend = openBackend({ ...flags, progress: context.reporter });
          context.reporter.info(`running on ${backend.name}: ${backend.description}`);
          const candidates = await makeCandidates(context, backend, flags, directory);
          // All three have the original's tokenizer, and a text takes seconds to tokenize.
          const tokens = textTokens();
          const outcomes: Outcome[] = [];
          for (const candidate of candidates) {
            outcomes.push(await tryOut(context, backend, flags, tokens, candidate));
          }
          const document = { model, prompt: PROMPT, seed: flags.seed, outcomes };
          context.reporter.result(document, () => render(outcomes));
        } finally {
          if (!kept) rmSync(directory, { recursive: true, force: true });
        }
      }),
    );
  addExamples(command, [
    "planish demo",
    "planish demo --quick",
    "planish demo --out demo-artifacts",
  ]);
}

async function makeCandidates(
  { reporter, signal }: CommandContext,
  backend: Backend,
  flags: DemoFlags,
  directory: string,
): Promise<Candidate[]> {
  using source = openCheckpoint(demoModel());
  const bytes = [...source.tensors.values()].reduce((sum, tensor) => sum + tensor.bytes, 0);
  const candidates: Candidate[] = [
    { label: "as trained", path: demoModel(), scheme: "bf16", bytes },
  ];
  for (const { method, preset, recipe, label } of [ROUNDING, flags.quick ? QUICK : FLATQUANT]) {
    reporter.info(`quantizing to ${SCHEME}: ${label}`);
    const result = await quantize({
      backend,
      source,
      out: join(directory, method),
      method,
      preset,
      recipe,
      scheme: SCHEME,
      seed: flags.seed,
      progress: reporter,
      signal,
    });
    candidates.push({
      label,
      path: result.out,
      scheme: result.info.scheme,
      bytes: result.bytes,
      quantizeSeconds: result.seconds,
    });
  }
  return candidates;
}

function textTokens(): Int32Array {
  using source = openCheckpoint(demoModel());
  return tokenizeCorpus(loadTokenizer(source), readDocuments("wikitext2"));
}

async function tryOut(
  { reporter, signal }: CommandContext,
  backend: Backend,
  flags: DemoFlags,
  tokens: Int32Array,
  candidate: Candidate,
): Promise<Outcome> {
  using loaded = loadModel(backend, candidate.path);
  const tokenizer = loadTokenizer(loaded.checkpoint);
  const { perplexity } = await evaluatePerplexity(loaded.model, tokens, {
    limit: flags.limit ?? (flags.quick ? QUICK_WINDOWS : undefined),
    progress: reporter,
    signal,
    label: `scoring ${candidate.label}`,
  });
  const { text } = await generate(loaded.model, tokenizer, {
    prompt: PROMPT,
    maxTokens: 32,
    signal,
  });
  return { ...candidate, perplexity, continuation: text };
}

function render(outcomes: readonly Outcome[]): string {
  const table = formatTable(
    ["model", "scheme", "size", { title: "perplexity", decimals: 2 }, "quantized in"],
    outcomes.map((o) => [
      o.label,
      o.scheme,
      formatBytes(o.bytes),
      o.perplexity,
      o.quantizeSeconds === undefined ? undefined : formatDuration(o.quantizeSeconds),
    ]),
  );
  const texts = outcomes.map(
    ({ label, continuation }) => `${label}:\n  ${PROMPT}${continuation.replace(/\n/g, "\n  ")}`,
  );
  return [table, ...texts].join("\n\n");
}
