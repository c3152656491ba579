/** How much memory this process can still be given. */
import { freemem } from "node:os";

/**
 * Bytes that are free: the machine's, or what a container's limit leaves where that is less. The limit is compared with
 * what this process holds, not with all that is charged to the container: that includes files read lately, which the
 * system gives back when memory is asked for.
 */
export function availableMemory(): number {
  // Absent before Node.js 20.12; 0 and huge numbers mean that there is no limit.
  const limit = process.constrainedMemory?.() ?? 0;
  if (!(limit > 0)) return freemem();
  return Math.max(0, Math.min(freemem(), limit - process.memoryUsage.rss()));
}
