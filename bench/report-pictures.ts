/**
 * Takes pictures of a report in headless Chromium: light, dark, a phone, and printed.
 *
 *   npx tsx bench/report-pictures.ts REPORT.html OUTPUT-DIRECTORY [chromium]
 */
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [file, out, executablePath = "/usr/bin/chromium"] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const shots = [
  { name: "report", width: 1100, height: 1500, colorScheme: "light" },
  { name: "report-dark", width: 1100, height: 1500, colorScheme: "dark" },
  { name: "report-phone", width: 390, height: 1500, colorScheme: "light" },
] as const;
for (const { name, width, height, colorScheme } of shots) {
  const page = await browser.newPage({ viewport: { width, height }, colorScheme });
  page.on("console", (message) => process.stderr.write(`${message.type()}: ${message.text()}\n`));
  page.on("pageerror", (error) => process.stderr.write(`${error.stack ?? error.message}\n`));
  await page.goto(pathToFileURL(resolve(file)).href);
  await page.screenshot({ path: join(out, `${name}.png`), fullPage: true });
  if (name === "report")
    await page.pdf({ path: join(out, `${name}.pdf`), format: "A4", printBackground: false });
  await page.close();
}
await browser.close();
