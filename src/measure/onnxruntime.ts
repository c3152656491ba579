/**
 * The peer of the kernel benchmark: float32 matrix products in onnxruntime-node, which lives in a package of its own
 * (bench/peers), so that nobody installs it to use Planish.
 */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { matmulModel } from "./onnx-model.js";

/** The part of onnxruntime-node that is used here. */
interface OrtTensor {
  readonly data: Float32Array;
}
interface OrtSession {
  run(feeds: Record<string, OrtTensor>): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
}
interface Ort {
  Tensor: new (type: "float32", data: Float32Array, dims: number[]) => OrtTensor;
  InferenceSession: {
    create(model: Uint8Array, options: Record<string, unknown>): Promise<OrtSession>;
  };
}

export interface PeerProduct {
  run(): Promise<Float32Array>;
  release(): Promise<void>;
}

export interface Peer {
  readonly name: string;
  readonly version: string;
  /** A product of x [m,k] and w [k,n] with the given threads, ready to run again and again. */
  product(
    m: number,
    k: number,
    n: number,
    x: Float32Array,
    w: Float32Array,
    threads: number,
  ): Promise<PeerProduct>;
}

/** What to do to see the peer's column. */
export const PEER_INSTALL =
  "cd bench/peers && ONNXRUNTIME_NODE_INSTALL=skip npm install (in a clone of the repository)";

/** onnxruntime-node from bench/peers, or undefined when it is not installed there. */
export function loadPeer(): Peer | undefined {
  let root = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(root, "package.json")) && dirname(root) !== root) root = dirname(root);
  const manifest = join(root, "bench", "peers", "node_modules", "onnxruntime-node", "package.json");
  if (!existsSync(manifest)) return undefined;
  const { version } = JSON.parse(readFileSync(manifest, "utf8")) as { version: string };
  const ort = createRequire(manifest)("onnxruntime-node") as Ort;
  return {
    name: "onnxruntime-node",
    version,
    async product(m, k, n, x, w, threads) {
      const session = await ort.InferenceSession.create(matmulModel(m, k, n, w), {
        intraOpNumThreads: threads,
        interOpNumThreads: 1,
        executionProviders: ["cpu"],
      });
      const feeds = { x: new ort.Tensor("float32", x, [m, k]) };
      return {
        run: async () => (await session.run(feeds)).y.data,
        release: () => session.release(),
      };
    },
  };
}
