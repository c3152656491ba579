/** Builds `dist/` once, so that the tests start what users start. */

import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

export default function setup(): void {
  // `npm test` and `.ci/run` have just built it.
  if (process.env.PLANISH_BUILT === "1") return;
  const root = fileURLToPath(new URL("../..", import.meta.url));
  execFileSync("npm", ["run", "--silent", "build"], { cwd: root, stdio: "inherit" });
}
