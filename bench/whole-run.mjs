/**
 * A whole run of `planish quantize` by the paper's recipe on a GPU, watched from outside: seconds of each block and of
 * packing, peak host memory, peak GPU memory, disk. It can be killed once on the way, and goes on with what is there:
 *
 *   node bench/whole-run.mjs CLI MODEL OUT [--kill-after BLOCKS] [--seconds N] [-- FLAGS OF quantize]
 *
 * CLI: the bundled command line (`node scripts/bundle-lane.mjs cli --only-bundle out/cli/planish.mjs`; two folders deep, where
 * it looks for the package's own data). --kill-after: SIGKILL when so many blocks are finished, then --resume. --seconds:
 * stop (SIGINT, which keeps what is finished) after so long; the same command again goes on. Numbers of earlier calls stand
 * in OUT.watch.json and are summed up.
 */
import { execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { clearInterval, setInterval } from "node:timers";

const end = process.argv.indexOf("--");
const own = end < 0 ? process.argv.slice(2) : process.argv.slice(2, end);
const further = end < 0 ? [] : process.argv.slice(end + 1);
const [cli, model, out] = own;
const flag = (name) => {
  const at = own.indexOf(name);
  return at < 0 ? undefined : Number(own[at + 1]);
};
if (!cli || !model || !out) {
  console.error("whole-run: give CLI, MODEL and OUT");
  process.exit(2);
}
const limit = flag("--seconds") ?? Infinity;
const killAfter = flag("--kill-after");
const journal = `${out}.run`;
const record = `${out}.watch.json`;
const watched = existsSync(record)
  ? JSON.parse(readFileSync(record, "utf8"))
  : { blocks: {}, seconds: 0, host: 0, gpu: 0, disk: 0, kills: 0, calls: 0 };
watched.calls++;
const began = performance.now();
const seconds = () => (performance.now() - began) / 1000;
const print = (line) => console.log(`${seconds().toFixed(1).padStart(7)} s  ${line}`);

const finished = () =>
  existsSync(journal)
    ? readdirSync(journal).filter((name) => /^block-\d+\.safetensors$/.test(name)).length
    : 0;

function bytesOf(path) {
  if (!existsSync(path)) return 0;
  const stat = statSync(path);
  if (!stat.isDirectory()) return stat.size;
  return readdirSync(path).reduce((sum, name) => {
    try {
      return sum + bytesOf(join(path, name));
    } catch {
      return sum;
    }
  }, 0);
}

function gpuBytes() {
  try {
    const text = execFileSync(
      "nvidia-smi",
      ["--query-gpu=memory.used", "--format=csv,noheader,nounits"],
      { encoding: "utf8" },
    );
    return Math.max(...text.trim().split("\n").map(Number)) * 2 ** 20;
  } catch {
    return 0;
  }
}

/** Runs the command once; resolves to how it ended. */
function attempt(resume, kill) {
  const args = [cli, "quantize", model, "--out", out, "--device", "cuda", "--preset", "paper"];
  args.push("--seed", "0", "--no-verdict", ...(resume ? ["--resume"] : []), ...further);
  print(`node ${args.join(" ")}`);
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  for (const stream of [child.stdout, child.stderr])
    stream.on("data", (data) => {
      for (const line of String(data).split("\n")) if (line.trim()) print(`  ${line}`);
    });
  let blocks = finished();
  let since = seconds();
  let reason = "";
  const look = setInterval(() => {
    try {
      const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
      watched.host = Math.max(watched.host, 1024 * Number(/VmHWM:\s*(\d+)/.exec(status)?.[1] ?? 0));
    } catch {
      // It has ended.
    }
    watched.gpu = Math.max(watched.gpu, gpuBytes());
    watched.disk = Math.max(watched.disk, bytesOf(journal) + bytesOf(out));
    const now = finished();
    if (now > blocks) {
      watched.blocks[now - 1] = (seconds() - since) / (now - blocks);
      print(`block ${now} finished, ${watched.blocks[now - 1].toFixed(1)} s`);
      [blocks, since] = [now, seconds()];
      if (kill !== undefined && blocks >= kill && !reason) {
        reason = "killed";
        child.kill("SIGKILL");
      }
    }
    if (seconds() > limit && !reason) {
      reason = "stopped";
      child.kill("SIGINT");
    }
  }, 500);
  return new Promise((done) => {
    child.on("exit", (code, signal) => {
      clearInterval(look);
      print(`ended: ${reason || "by itself"}, ${signal ?? code}`);
      done({ reason, code });
    });
  });
}

let outcome = await attempt(existsSync(journal), watched.kills === 0 ? killAfter : undefined);
if (outcome.reason === "killed") {
  watched.kills++;
  const resumed = seconds();
  outcome = await attempt(true, undefined);
  print(`after the kill: ${(seconds() - resumed).toFixed(1)} s`);
}
watched.seconds += seconds();
watched.done = outcome.code === 0 && outcome.reason === "";
writeFileSync(record, JSON.stringify(watched, null, 1));
const times = Object.values(watched.blocks);
const gb = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`;
console.log(
  [
    `${watched.done ? "done" : "not done yet"} after ${(watched.seconds / 60).toFixed(1)} minutes in ${watched.calls} calls`,
    `${times.length} blocks timed, ${(times.reduce((a, b) => a + b, 0) / (times.length || 1)).toFixed(1)} s each`,
    `host ${gb(watched.host)}, GPU ${gb(watched.gpu)}, disk beside the source ${gb(watched.disk)}`,
    `artifact ${gb(bytesOf(out))}, killed ${watched.kills} times`,
  ].join("; "),
);
process.exitCode = watched.done || outcome.reason === "stopped" ? 0 : 1;
