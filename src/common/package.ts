/** Where the installed package lies, and its version: for its sources and pages, and for provenance records. */

import { fileURLToPath } from "node:url";
import { VERSION } from "./version.js";

/**
 * Absolute path of the package's root: two levels above both `src/common` and `dist/common`. `assets/` and `native/` lie in
 * it, in a clone `models/` and `data/` too. In a bundle it is none of these: what is needed there can be named
 * (common/paths.ts).
 */
export const packageRoot: string = fileURLToPath(new URL("../..", import.meta.url));

/** `version` of package.json. */
export function packageVersion(): string {
  return VERSION;
}
