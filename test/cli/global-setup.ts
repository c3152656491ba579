/** Builds `dist/` once, so that the tests start what users start; `PLANISH_BUILT=1` says that it is built. */

import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

export default function setup(): void {
  if (process.env.PLANISH_BUILT === "1") return;
  const root = fileURLToPath(new URL("../..", import.meta.url));
  execFileSync("npm", ["run", "--silent", "build"], { cwd: root, stdio: "inherit" });
}
