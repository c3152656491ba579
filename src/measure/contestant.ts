/**
 * One side of the engine's benchmark, in a process of its own, so that its memory can be told and its threads sleep
 * while another is measured. Started by fork (src/measure/engine.ts), it answers one request at a time.
 */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { openCudaExecutor } from "../engine/gpu.js";
import { IntegerExecutor, openIntegerExecutor, type StepProfile } from "../engine/processor.js";

export interface ContestantSettings {
  readonly kind: "planish" | "node-llama-cpp";
  readonly path: string;
  /** What runs a model of ours (default: the processor). */
  readonly device?: "cpu" | "cuda";
  readonly threads: number;
  readonly prompt: number;
  readonly generate: number;
}

/** What is asked: one measured run. */
export interface RunRequest {
  readonly run: true;
}

export interface RunReport {
  /** Milliseconds for the prompt, its last token's logits included: the time to the first token. */
  readonly prefill: number;
  /** Milliseconds per token generated after it. */
  readonly decode: number;
  /** Resident bytes of the process after the run. */
  readonly resident: number;
  readonly description: string;
  /** Seconds by kind of kernel, where we can tell. */
  readonly prefillProfile?: StepProfile;
  readonly decodeProfile?: StepProfile;
}

interface Contestant {
  readonly description: string;
  /** Milliseconds of a prompt and of each token after it. */
  run(): Promise<Pick<RunReport, "prefill" | "decode" | "prefillProfile" | "decodeProfile">>;
}

/** Any ids do: the arithmetic does not look at them. */
function someTokens(count: number, vocabulary: number): number[] {
  return Array.from({ length: count }, (_, i) => 100 + ((i * 7919) % (vocabulary - 200)));
}

function openPlanish(settings: ContestantSettings): Contestant {
  const { path, threads, prompt, generate, device } = settings;
  const engine =
    device === "cuda" ? openCudaExecutor(path) : openIntegerExecutor(path, { threads });
  const profiled = engine instanceof IntegerExecutor ? engine : undefined;
  const count = Math.ceil((prompt + generate) / engine.pageTokens);
  engine.reserve(count);
  const pages = Int32Array.from({ length: count }, (_, i) => i);
  const tokens = Int32Array.from(someTokens(prompt + generate, engine.shape.vocabSize));
  return {
    description: `${engine.description}; weights ${(engine.weightBytes / 1e6).toFixed(0)} MB`,
    run: async () => {
      profiled?.startProfile();
      const started = performance.now();
      await engine.step([{ tokens: tokens.subarray(0, prompt), start: 0, pages, logits: "last" }]);
      const prefill = performance.now() - started;
      const prefillProfile = profiled?.profile();
      profiled?.startProfile();
      const begun = performance.now();
      for (let t = prompt; t < prompt + generate; t++)
        await engine.step([{ tokens: tokens.subarray(t, t + 1), start: t, pages, logits: "last" }]);
      const decode = (performance.now() - begun) / generate;
      return { prefill, decode, prefillProfile, decodeProfile: profiled?.profile() };
    },
  };
}

/** The part of node-llama-cpp that is used here. */
interface LlamaSequence {
  clearHistory(): Promise<void>;
  evaluate(tokens: readonly number[], options?: object): AsyncGenerator<number>;
}
interface LlamaModule {
  readonly getLlama: (options: object) => Promise<{
    loadModel(options: object): Promise<{
      createContext(options: object): Promise<{ getSequence(): LlamaSequence }>;
      readonly fileInfo: unknown;
    }>;
  }>;
}

/** Directory of node-llama-cpp in bench/peers, or undefined when it is not installed there. */
export function peerDirectory(): string | undefined {
  let root = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(root, "package.json")) && dirname(root) !== root) root = dirname(root);
  const directory = join(root, "bench", "peers", "node_modules", "node-llama-cpp");
  return existsSync(join(directory, "package.json")) ? directory : undefined;
}

async function openPeer({
  path,
  threads,
  prompt,
  generate,
}: ContestantSettings): Promise<Contestant> {
  const directory = peerDirectory();
  if (!directory) throw new Error("node-llama-cpp is not installed in bench/peers");
  const { version } = JSON.parse(readFileSync(join(directory, "package.json"), "utf8")) as {
    version: string;
  };
  const { getLlama } = (await import(
    pathToFileURL(join(directory, "dist", "index.js")).href
  )) as LlamaModule;
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
    logLevel: "error",
  });
  const model = await llama.loadModel({ modelPath: path, gpuLayers: 0, useMmap: true });
  const contextSize = Math.ceil((prompt + generate + 8) / 64) * 64;
  const context = await model.createContext({
    threads,
    contextSize,
    batchSize: prompt,
    flashAttention: true,
  });
  const sequence = context.getSequence();
  const tokens = someTokens(prompt, 40_000);
  return {
    description: `node-llama-cpp ${version}, ${threads} threads`,
    run: async () => {
      await sequence.clearHistory();
      // Greedy, and past end-of-text: what is measured is evaluation.
      const options = { temperature: 0, yieldEogToken: true };
      const started = performance.now();
      const generated = sequence.evaluate(tokens, options);
      await generated.next();
      const prefill = performance.now() - started;
      const begun = performance.now();
      let count = 0;
      while (count < generate && !(await generated.next()).done) count++;
      const decode = (performance.now() - begun) / Math.max(count, 1);
      await generated.return(undefined);
      return { prefill, decode };
    },
  };
}

async function serve(settings: ContestantSettings): Promise<void> {
  const contestant = settings.kind === "planish" ? openPlanish(settings) : await openPeer(settings);
  process.on("message", () => {
    void contestant.run().then((times) => {
      // What loading left behind is not what the model needs.
      globalThis.gc?.();
      const report: RunReport = {
        ...times,
        resident: process.memoryUsage.rss(),
        description: contestant.description,
      };
      process.send?.(report);
    });
  });
  process.send?.("ready");
}

const given = process.env.PLANISH_BENCH_CONTESTANT;
if (given !== undefined && process.send) await serve(JSON.parse(given) as ContestantSettings);
