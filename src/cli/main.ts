#!/usr/bin/env node
/** Entry point of `planish`. */

import { commands } from "./commands/index.js";
import { run } from "./program.js";

// A reader that stops early (`planish … | head`) is no failure; work that only logs must survive a closed stderr.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(process.exitCode ?? 0);
  throw error;
});
process.stderr.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
});

// Node's own printer puts the process id before a warning, and a line about its flags after.
process.removeAllListeners("warning");
process.on("warning", ({ name, message }) => {
  const text = name === "PlanishWarning" ? message : `${name}: ${message}`;
  process.stderr.write(`planish: warning: ${text}\n`);
});

const exitCode = await run(process.argv.slice(2), commands);
// Native worker threads must not keep a finished process alive; what was printed has to be out first.
await new Promise<void>((resolve) => process.stdout.write("", () => resolve()));
process.exit(exitCode);
