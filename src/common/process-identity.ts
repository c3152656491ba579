/** Which process wrote a file, so that another can tell whether it still runs: pids are used again, start times are not. */
import { spawnSync } from "node:child_process";
import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { z } from "zod";

export const processSchema = z.object({
  pid: z.number().int().positive(),
  /** When it started, in the system's own words; absent where the system does not say. */
  start: z.string().optional(),
  host: z.string(),
  /** Tells machines and containers of one name apart, which share a directory all the same; absent where nothing does. */
  machine: z.string().optional(),
});

export type ProcessIdentity = z.infer<typeof processSchema>;

let own: ProcessIdentity | undefined;

/** This process. */
export function thisProcess(): ProcessIdentity {
  own ??= {
    pid: process.pid,
    start: startTime(process.pid),
    host: hostname(),
    machine: machineIdentity(),
  };
  return own;
}

/** Linux: the machine's own number and the namespace that pids count in. */
function machineIdentity(): string | undefined {
  if (process.platform !== "linux") return undefined;
  const parts = [
    () => readFileSync("/etc/machine-id", "utf8").trim(),
    () => readlinkSync("/proc/self/ns/pid"),
  ].map((read) => {
    try {
      return read();
    } catch {
      return "";
    }
  });
  return parts.join(" ").trim() || undefined;
}

/**
 * Whether a process still runs: "unknown" on another machine or in another container, where nobody can look. A process that has ended and that
 * its parent has not asked about counts as ended.
 */
export function processState(other: ProcessIdentity): "running" | "ended" | "unknown" {
  if (other.host !== hostname()) return "unknown";
  const { machine } = thisProcess();
  if (machine !== undefined && other.machine !== undefined && machine !== other.machine)
    return "unknown";
  if (!processExists(other.pid)) return "ended";
  const start = startTime(other.pid);
  if (start === undefined && process.platform === "linux") return "ended";
  return start !== undefined && other.start !== undefined && start !== other.start
    ? "ended"
    : "running";
}

/** Whether some process of this machine has the pid. */
export function processExists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: somebody else's process.
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}

/** Linux: the boot and the clock tick within it; elsewhere what `ps` says, and nothing on Windows. */
function startTime(pid: number): string | undefined {
  if (process.platform === "linux") {
    try {
      // The name of the program stands in parentheses and may hold blanks and parentheses itself.
      const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      if (fields[0] === "Z" || fields[0] === "X") return undefined;
      const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
      return `${boot}:${fields[19]}`;
    } catch {
      return undefined;
    }
  }
  if (process.platform === "win32") return undefined;
  const { stdout } = spawnSync("ps", ["-o", "lstart=", "-p", String(pid)], { encoding: "utf8" });
  return stdout?.trim() || undefined;
}
