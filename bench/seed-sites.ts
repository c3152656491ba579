/**
 * Which site makes two seeds differ: puts one site's parameters of run B (all blocks) into run A, and measures. Both
 * artifacts come from the embedded model, quantized with --keep-parameters.
 *
 *   npx tsx bench/seed-sites.ts ARTIFACT_A ARTIFACT_B [windows]
 */
import { join } from "node:path";
import { openBackend } from "../src/backend/open.js";
import { openCheckpoint } from "../src/checkpoint/open.js";
import { loadTokenizer } from "../src/checkpoint/tokenizer.js";
import { formatTable } from "../src/common/format.js";
import { packageRoot } from "../src/common/package.js";
import { evaluatePerplexity } from "../src/evaluate/perplexity.js";
import { readQuantizationInfo } from "../src/quantize/artifact/artifact.js";
import { readDocuments, tokenizeCorpus } from "../src/quantize/calibration/text.js";
import type { ParameterValues } from "../src/quantize/schema/parameters.js";
import { parseScheme } from "../src/backend/contract/scheme.js";
import { readKeptParameters, simulatedModel } from "../src/quantize/artifact/simulated-model.js";
import { blockProgram, parseModelConfig } from "../src/models/architectures/index.js";
import { siteOfLinear } from "../src/backend/contract/program.js";

const [pathA, pathB] = process.argv.slice(2);
const windows = Number(process.argv.at(4) ?? "200");
const SEQ_LEN = 512;

const backend = openBackend({});
const source = openCheckpoint(join(packageRoot, "models", "tiny-llama"));
const scheme = parseScheme(readQuantizationInfo(pathA).scheme);
const a = readKeptParameters(pathA);
const b = readKeptParameters(pathB);
const tokens = tokenizeCorpus(loadTokenizer(source), readDocuments("wikitext2"));

const program = blockProgram(parseModelConfig(source.config).config, 0);

/** The site a parameter belongs to; P_o and P_v share the linears of attn_out, the clip of values goes with P_v. */
function siteOf(name: string): string {
  if (name.startsWith("clip.k.") || name.startsWith("k_head")) return "k_head";
  if (name.startsWith("clip.v.") || name.startsWith("v_head")) return "v_head";
  const path = /^(?:clip|round)\.(.+?)(?:\.[wa]_(?:max|min))?$/.exec(name)?.[1];
  if (path === undefined) return name.slice(0, name.indexOf("."));
  const [role] = Object.entries(program.linears).find(([, linear]) => linear.path === path) ?? [];
  return role === undefined ? path : siteOfLinear(program, role).site;
}

const mixed = (own: ParameterValues, other: ParameterValues, site: string): ParameterValues =>
  new Map(
    [...own].map(([name, value]) => [name, (siteOf(name) === site && other.get(name)) || value]),
  );

async function perplexity(parameters: readonly ParameterValues[]): Promise<number> {
  using model = simulatedModel(backend, source, scheme, parameters);
  return (await evaluatePerplexity(model, tokens, { seqLen: SEQ_LEN, limit: windows })).perplexity;
}

const [perplexityA, perplexityB] = [await perplexity(a), await perplexity(b)];
const sites = [...new Set([...a[0].keys()].map(siteOf))];
const rows: (string | number)[][] = [];
for (const site of sites) {
  const intoA = await perplexity(a.map((own, layer) => mixed(own, b[layer], site)));
  const intoB = await perplexity(b.map((own, layer) => mixed(own, a[layer], site)));
  rows.push([site, (intoA - perplexityA).toFixed(2), (intoB - perplexityB).toFixed(2)]);
}
process.stdout.write(
  `first ${windows} windows: A ${perplexityA.toFixed(2)}, B ${perplexityB.toFixed(2)}\n\n` +
    formatTable(["site", "A with B's", "B with A's"], rows) +
    "\n",
);
