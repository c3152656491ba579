/** `planish eval`: perplexity of an original or an artifact, alone or beside another. */

import type { Command } from "commander";
import type { Backend } from "../../backend/backend.js";
import { openBackend } from "../../backend/open.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import { formatDuration, formatTable } from "../../common/format.js";
import { evaluatePerplexity, type PerplexityResult } from "../../evaluate/perplexity.js";
import { readDocuments, tokenizeCorpus } from "../../quantize/calibration/text.js";
import { loadModel } from "../../quantize/load.js";
import { perform, type CommandContext } from "../action.js";
import { integer } from "../flags.js";
import { addExamples } from "../program.js";
import { deviceOption, MODEL_ARGUMENT, threadsOption, type DeviceFlags } from "./shared.js";

interface EvalFlags extends DeviceFlags {
  readonly ppl: string;
  readonly seqLen?: number;
  readonly limit?: number;
  readonly against?: string;
}

interface Score extends PerplexityResult {
  readonly model: string;
  /** What the model's weights, activations and KV cache are kept in. */
  readonly scheme: string;
  readonly method?: string;
}

export function register(program: Command): void {
  const command = program
    .command("eval")
    .summary("measure perplexity")
    .description("Measures perplexity over consecutive, non-overlapping windows of a text.")
    .argument("<model>", MODEL_ARGUMENT)
    .option("--ppl <text>", "wikitext2 (embedded test split) or a text file", "wikitext2")
    .option(
      "--seq-len <n>",
      "tokens per window (default: 2048, or half of what shorter models were made for)",
      integer({ min: 2 }),
    )
    .option("--limit <n>", "score only the first n windows", integer({ min: 1 }))
    .option("--against <model>", "score this model as well, and compare")
    .addOption(deviceOption())
    .addOption(threadsOption())
    .action(
      perform<EvalFlags, [string]>(async (context, flags, model) => {
        // Read first: a misspelled file name should not cost the loading of a model.
        const documents = readDocuments(flags.ppl);
        using backend = openBackend({ ...flags, progress: context.reporter });
        context.reporter.debug(backend.description);
        const score = await scoreModel(context, backend, flags, documents, model);
        const against = flags.against
          ? await scoreModel(context, backend, flags, documents, flags.against)
          : undefined;
        const document = { text: flags.ppl, ...score, against };
        context.reporter.result(document, () => render(against ? [against, score] : [score]));
      }),
    );
  addExamples(command, [
    "planish eval models/tiny-llama",
    "planish eval tiny-w4a4kv4 --against models/tiny-llama",
    "planish eval smollm2-135m-instruct --ppl notes.txt --limit 10 --json",
  ]);
}

async function scoreModel(
  { reporter, signal }: CommandContext,
  backend: Backend,
  flags: EvalFlags,
  documents: readonly string[],
  name: string,
): Promise<Score> {
  const path = await resolveModel(name, { progress: reporter, signal });
  using loaded = loadModel(backend, path);
  const tokens = tokenizeCorpus(loadTokenizer(loaded.checkpoint), documents);
  const result = await evaluatePerplexity(loaded.model, tokens, {
    seqLen: flags.seqLen,
    limit: flags.limit,
    progress: reporter,
    signal,
    label: name,
  });
  const { info } = loaded;
  return { model: name, scheme: info?.scheme ?? "as stored", method: info?.method, ...result };
}

function render(scores: readonly Score[]): string {
  return formatTable(
    ["model", "scheme", "method", { title: "perplexity", decimals: 2 }, "windows × tokens", "time"],
    scores.map((s) => [
      s.model,
      s.scheme,
      s.method,
      s.perplexity,
      `${s.windows} × ${s.seqLen}`,
      formatDuration(s.seconds),
    ]),
  );
}
