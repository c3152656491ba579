/** Waiting for something that will come, on a machine that may be busy. */
import { setTimeout as delay } from "node:timers/promises";

const PATIENCE_SECONDS = 60;
const PAUSE_MILLISECONDS = 10;

/** Waits until something holds. @throws Error after a minute: then it never will. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 1000 * PATIENCE_SECONDS;
  while (!(await holds())) {
    if (performance.now() > end) throw new Error("it never came to hold");
    await delay(PAUSE_MILLISECONDS);
  }
}
