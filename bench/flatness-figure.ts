/**
 * Draws docs/pictures/flatness.svg: the largest |activation| of every channel, sorted, before and after FlatQuant's
 * transform, at one site of the embedded model. Data, not decoration: run it on any artifact of it.
 *
 *   npx tsx bench/flatness-figure.ts ARTIFACT [layer] [site]
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { openBackend } from "../src/backend/open.js";
import { packageRoot } from "../src/common/package.js";
import { plainHooks } from "../src/models/interpret.js";
import { LanguageModel } from "../src/models/language-model.js";
import { siteNamed } from "../src/backend/contract/program.js";
import { openCheckpoint } from "../src/checkpoint/open.js";
import { loadTokenizer } from "../src/checkpoint/tokenizer.js";
import { readDocuments, tokenizeCorpus } from "../src/quantize/calibration/text.js";
import { readPackedBlock } from "../src/quantize/artifact/block-tensors.js";
import { readQuantizationInfo } from "../src/quantize/artifact/artifact.js";
import { parseScheme } from "../src/backend/contract/scheme.js";
import { kronecker } from "../src/tensor/ops/index.js";
import { frozen, Graph } from "../src/tensor/tensor.js";

const artifactPath = process.argv[2];
const layerText = process.argv.at(3) ?? "7";
const site = process.argv.at(4) ?? "mlp_down";
const layer = Number(layerText);
const TOKENS = 512;

const backend = openBackend({});
const source = openCheckpoint(join(packageRoot, "models", "tiny-llama"));
const model = LanguageModel.load(backend, source);
const artifact = openCheckpoint(artifactPath);
const scheme = parseScheme(readQuantizationInfo(artifactPath).scheme);
const packed = readPackedBlock(artifact, model.architecture, model.config, scheme, layer);
const transform = packed.transforms[site];
if (!transform) throw new Error(`${artifactPath} has no transform at ${site} of block ${layer}`);
const side = (data: Float32Array | undefined) =>
  data && frozen(backend, [Math.sqrt(data.length), Math.sqrt(data.length)], data);
// The diag is folded upstream, so what the artifact's transform sees is x ⊙ d; norms carry it as a ratio of gains.
const upstream = siteNamed(model.programs[layer], site).upstream;
const host = model.layers[layer].weights;
const diag =
  upstream?.kind === "norm"
    ? ratio(
        packed.norms[upstream.norm].gain.data,
        backend.read(host.norms[upstream.norm].gain.buffer ?? never()),
      )
    : upScale();

const before = new Map<string, Float64Array>();
const hooks = plainHooks(host);
const observed = model.layers.map((l, i) =>
  i !== layer
    ? l
    : {
        weights: l.weights,
        hooks: {
          ...hooks,
          linears: (...[g, at, x, roles]: Parameters<typeof hooks.linears>) => {
            if (at === site) {
              before.set("before", columnMaxima(g.read(x), x.cols));
              const d = diag && frozen(backend, [diag.length], diag);
              const y = kronecker(g, x, {
                left: side(transform.left),
                right: side(transform.right),
                diag: d,
              });
              before.set("after", columnMaxima(g.read(y), x.cols));
            }
            return hooks.linears(g, at, x, roles);
          },
        },
      },
);
const tokens = tokenizeCorpus(
  loadTokenizer(source),
  readDocuments("wikitext2").map((t) => t.slice(0, 20000)),
);
{
  using g = new Graph(backend);
  new LanguageModel(backend, model.architecture, model.config, model.endLayers, observed).hidden(
    g,
    tokens.slice(0, TOKENS),
  );
}
const target = join(packageRoot, "docs", "pictures", "flatness.svg");
writeFileSync(target, draw(sorted("before"), sorted("after")));
process.stderr.write(`wrote ${target}\n`);

function never(): never {
  throw new Error("a frozen weight has no values");
}

function ratio(folded: ArrayLike<number>, original: ArrayLike<number>): Float64Array {
  return Float64Array.from(folded, (x, i) => x / original[i]);
}

/** mlp_down's diag multiplies up_proj's rows; it is not kept, so the figure shows this site without it. */
function upScale(): Float64Array | undefined {
  return undefined;
}

function columnMaxima(data: ArrayLike<number>, cols: number): Float64Array {
  const maxima = new Float64Array(cols);
  for (let i = 0; i < data.length; i++)
    maxima[i % cols] = Math.max(maxima[i % cols], Math.abs(data[i]));
  return maxima;
}

/** Largest first, as multiples of the mean. */
function sorted(name: string): number[] {
  const maxima = [...(before.get(name) ?? never())].sort((a, b) => b - a);
  const mean = maxima.reduce((a, b) => a + b, 0) / maxima.length;
  return maxima.map((x) => x / mean);
}

function draw(plain: readonly number[], flat: readonly number[]): string {
  const [width, height, left, right, top, bottom] = [760, 320, 56, 20, 44, 44];
  const highest = Math.ceil(Math.max(...plain, ...flat));
  const x = (i: number) => left + ((width - left - right) * i) / (plain.length - 1);
  const y = (v: number) => height - bottom - ((height - top - bottom) * v) / highest;
  const line = (values: readonly number[]) =>
    values.map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
  const step = highest > 12 ? 4 : highest > 6 ? 2 : 1;
  const ticks = Array.from({ length: Math.floor(highest / step) + 1 }, (_, i) => i * step);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="Sorted channel magnitudes before and after FlatQuant" font-family="system-ui, sans-serif" font-size="13">
<rect width="${width}" height="${height}" fill="#ffffff"/>
<text x="${left}" y="22" font-size="15" font-weight="600" fill="#1b1f24">Largest activation per channel, sorted (tiny-llama, block ${layer}, ${site})</text>
${ticks.map((t) => `<line x1="${left}" x2="${width - right}" y1="${y(t)}" y2="${y(t)}" stroke="#e3e6ea"/><text x="${left - 8}" y="${y(t) + 4}" text-anchor="end" fill="#57606a">${t}×</text>`).join("\n")}
<polyline fill="none" stroke="#c2410c" stroke-width="2.5" points="${line(plain)}"/>
<polyline fill="none" stroke="#0f766e" stroke-width="2.5" points="${line(flat)}"/>
<text x="${width - right}" y="${top + 12}" text-anchor="end" fill="#c2410c">as trained: up to ${plain[0].toFixed(1)} times the mean</text>
<text x="${width - right}" y="${top + 32}" text-anchor="end" fill="#0f766e">after the transform: ${flat[0].toFixed(1)} times</text>
<text x="${(left + width - right) / 2}" y="${height - 12}" text-anchor="middle" fill="#57606a">${plain.length} channels, multiples of their mean</text>
</svg>
`;
}
