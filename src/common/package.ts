/** Where the installed package lies, and its version: for embedded models, data, and provenance records. */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/**
 * Absolute path of the package's root: two levels above both `src/common` and `dist/common`. `models/`, `data/`
 * and `native/` lie in it.
 */
export const packageRoot: string = fileURLToPath(new URL("../..", import.meta.url));

/** `version` of package.json. */
export function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  const { version } = JSON.parse(text) as { version: string };
  return version;
}
