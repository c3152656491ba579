/**
 * GGUF files of ours in llama.cpp itself (node-llama-cpp, of bench/peers): each loads, and its next tokens are as likely as our
 * own reading of the file says. Needs `npm install --prefix bench/peers`.
 */
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../src/common/package.js";
import { exportGgufModel } from "../../src/formats/gguf/from-model.js";
import { FILE_TYPE_NAMES, type GgufFileType } from "../../src/formats/gguf/types.js";
import { peerDirectory } from "../../src/measure/contestant.js";
import { LanguageModel } from "../../src/models/language-model.js";
import { Graph } from "../../src/tensor/tensor.js";
import { temporaryDirectory } from "../checkpoint/files.js";

const root = temporaryDirectory();
const TEXT = "Once upon a time there was a small village near the sea, and the people who lived";

type Evaluated = readonly { readonly next?: { readonly probabilities?: Map<number, number> } }[];
/** The part of node-llama-cpp that is used here. */
interface Llama {
  loadModel(options: { modelPath: string }): Promise<{
    tokenize(text: string): number[];
    createContext(options: { contextSize: number }): Promise<{
      getSequence(): {
        controlledEvaluate(input: readonly (number | [number, object])[]): Promise<Evaluated>;
      };
      dispose(): Promise<void>;
    }>;
    dispose(): Promise<void>;
  }>;
}
let llama: Llama;

beforeAll(async () => {
  const directory = peerDirectory();
  if (!directory) throw new Error("run: npm install --prefix bench/peers");
  const peer = (await import(pathToFileURL(join(directory, "dist/index.js")).href)) as {
    getLlama(options: object): Promise<Llama>;
  };
  llama = await peer.getLlama({ gpu: false, build: "never" });
});

/** Probabilities of what follows a text, by our own reading of a file. */
function ours(path: string, ids: readonly number[]): Float64Array {
  using backend = openBackend();
  using checkpoint = openCheckpoint(path);
  using model = LanguageModel.load(backend, checkpoint);
  using g = new Graph(backend);
  const logits = g.read(model.logits(g, model.hidden(g, Int32Array.from(ids))));
  const last = Float64Array.from(logits.slice(logits.length - logits.length / ids.length));
  const most = last.reduce((a, b) => Math.max(a, b));
  const powers = last.map((x) => Math.exp(x - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

describe("llama.cpp", () => {
  it.each(FILE_TYPE_NAMES)(
    "runs %s, and gives the probabilities that we read",
    async (type: GgufFileType) => {
      const path = join(root, `${type}.gguf`);
      {
        using backend = openBackend();
        const calibration = join(packageRoot, "LICENSE");
        const source = join(packageRoot, "models/tiny-llama");
        await exportGgufModel(source, {
          backend,
          type,
          out: path,
          calibration,
          samples: 4,
          seqLen: 256,
        });
      }
      const model = await llama.loadModel({ modelPath: path });
      const ids = model.tokenize(TEXT);
      using checkpoint = openCheckpoint(path);
      expect(ids).toEqual(loadTokenizer(checkpoint).encode(TEXT));
      const context = await model.createContext({ contextSize: 128 });
      const last = ids.length - 1;
      const evaluated = await context
        .getSequence()
        .controlledEvaluate([
          ...ids.slice(0, last),
          [ids[last], { generateNext: { probabilities: true } }],
        ]);
      const theirs = evaluated[last].next?.probabilities;
      await context.dispose();
      await model.dispose();
      let distance = 0;
      ours(path, ids).forEach((p, id) => (distance += Math.abs(p - (theirs?.get(id) ?? 0)) / 2));
      // llama.cpp rounds activations to 8 bits: half a step of 1/127 for each of a few dozen products on the way.
      expect(distance).toBeLessThan(0.05);
    },
  );
});
