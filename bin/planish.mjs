#!/usr/bin/env node
/**
 * What `planish` starts. It is in the repository as it stands, so that npm can link it before anything is compiled, and
 * it says what is missing where the program cannot run.
 */
import { existsSync } from "node:fs";

const program = new URL("../dist/cli/main.js", import.meta.url);
const major = Number(process.versions.node.split(".")[0]);

if (major < 20) {
  console.error(
    `planish: error: this is Node.js ${process.versions.node}; Planish needs 20 or newer`,
  );
  process.exitCode = 1;
} else if (existsSync(program)) {
  await import(program.href);
} else {
  const folder = new URL("..", import.meta.url).pathname;
  console.error(
    `planish: error: ${folder} is a source tree whose TypeScript is not compiled; run there: npm ci && npm run build`,
  );
  process.exitCode = 1;
}
