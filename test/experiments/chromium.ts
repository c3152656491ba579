/** Headless Chromium for tests of pages: Debian's, or the one that PLANISH_CHROMIUM names. */
import { existsSync } from "node:fs";
import { chromium, type Browser } from "playwright-core";

const CANDIDATES = [
  process.env.PLANISH_CHROMIUM,
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
];

export const chromiumPath = CANDIDATES.find((path) => path !== undefined && existsSync(path));

/** Why tests of pages do not run here; undefined where they do. */
export const noChromium =
  chromiumPath === undefined
    ? "no Chromium here (apt-get install chromium, or set PLANISH_CHROMIUM)"
    : undefined;

/** Milliseconds for what a page does; a busy machine takes many times as long as a quiet one. */
export const BROWSER_PATIENCE = 120_000;

export function launchChromium(): Promise<Browser> {
  return chromium.launch({ executablePath: chromiumPath, args: ["--no-sandbox"] });
}
