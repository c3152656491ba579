/** What a report measures, and the page itself in headless Chromium. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import fc from "fast-check";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openBackend } from "../../src/backend/open.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { readDocuments } from "../../src/quantize/calibration/text.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { compare } from "../../src/experiments/compare/compare.js";
import { capture } from "../../src/experiments/page/capture.js";
import { CURVE_POINTS, curvePlace } from "../../src/experiments/page/data.js";
import { escape } from "../../src/experiments/page/html.js";
import { flatnessOf, GridCounter, magnitudes } from "../../src/experiments/page/measure.js";
import { report } from "../../src/experiments/page/report.js";
import { temporaryDirectory } from "../checkpoint/files.js";
import { BROWSER_PATIENCE, launchChromium, noChromium } from "./chromium.js";

const directory = temporaryDirectory();
const model = join(packageRoot, "models", "tiny-llama");
const backend = openBackend({ device: "cpu" });
const calibration = join(directory, "calibration.txt");
const text = join(directory, "text.txt");
writeFileSync(calibration, readDocuments("wikipedia").join("\n").slice(0, 40_000));
writeFileSync(text, readDocuments("wikitext2").join("\n").slice(0, 4000));
const comparison = join(directory, "comparison");

beforeAll(async () => {
  const methods = ["fp16", "rtn", "quarot", "spinquant", "awq"];
  const few = { samples: 2, seqLen: 48, epochs: 2, windows: 2, windowTokens: 64 };
  await compare({ backend, model, methods, out: comparison, calibration, text, ...few });
}, 120_000);

afterAll(() => backend[Symbol.dispose]());

describe("flatness", () => {
  it("is the root mean square distance from the mean, over the mean", () => {
    expect(flatnessOf([2, 2, 2])).toBe(0);
    // Mean 2, distances 1 and −1.
    expect(flatnessOf([3, 1])).toBeCloseTo(0.5, 12);
    expect(flatnessOf([0, 0])).toBe(0);
  });

  it("does not change with the tensor's scale, and its curve falls from largest to smallest", () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: 0.01, max: 100, noNaN: true }), { minLength: 2, maxLength: 300 }),
        fc.double({ min: 0.1, max: 10, noNaN: true }),
        (values, factor) => {
          const one = magnitudes(Float64Array.from(values));
          const other = magnitudes(Float64Array.from(values, (x) => x * factor));
          // Three significant digits are kept of either.
          expect(other.flatness).toBeCloseTo(one.flatness, 1);
          expect(one.curve).toHaveLength(CURVE_POINTS);
          for (let i = 1; i < CURVE_POINTS; i++)
            expect(one.curve[i]).toBeLessThanOrEqual(one.curve[i - 1]);
          expect(curvePlace(0, values.length)).toBe(0);
          expect(curvePlace(CURVE_POINTS - 1, values.length)).toBe(values.length - 1);
        },
      ),
    );
  });
});

describe("a grid's counter", () => {
  it("puts integers on levels, and everything somewhere", () => {
    const counter = new GridCounter(3, true);
    for (const code of [-4, -1, 0, 0, 3, 99]) counter.add(code);
    // −4 … 3, with 99 at the last level.
    expect(counter.distribution()).toEqual({
      bits: 3,
      range: [-4.5, 3.5],
      shares: [0.167, 0, 0, 0.167, 0.333, 0, 0, 0.333],
    });
  });

  it("has a quarter of a step to each bin before rounding", () => {
    const counter = new GridCounter(2);
    counter.add(0.1);
    const { shares, range } = counter.distribution();
    expect(shares).toHaveLength(16);
    // 0.1 lies in [0, 0.25), ten bins above −2.5.
    expect(range[0]).toBe(-2.5);
    expect(shares.indexOf(1)).toBe(10);
  });
});

describe("looking into artifacts", () => {
  const artifact = (name: string) => ({ name, path: join(comparison, "artifacts", name) });

  it("finds no error, and nothing changed, where nothing is rounded", async () => {
    const out = join(directory, "sixteen");
    using source = openCheckpoint(model);
    await quantize({ backend, source, out, method: "rtn", scheme: "w16a16kv16" });
    const { before, after } = await capture({
      backend,
      source: model,
      artifacts: [{ name: "same", path: out }],
    });
    const same = after.get("same");
    expect(before).toHaveLength(8);
    expect(same?.sites).toEqual(before);
    expect(before[0][0].activationGrid).toBeUndefined();
    // The model's bfloat16 weights lose their smallest values to float16's narrower exponent, if anything.
    for (const error of same?.siteErrors.flat() ?? [1]) expect(error).toBeLessThan(1e-3);
  });

  it("sees what rotations do: flatter activations, smaller errors than plain rounding's", async () => {
    const { siteNames, before, after } = await capture({
      backend,
      source: model,
      artifacts: [artifact("rtn"), artifact("quarot")],
    });
    const [rtn, quarot] = ["rtn", "quarot"].map((name) => after.get(name));
    if (!rtn || !quarot) throw new Error("capture left a method out");
    const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
    for (const [s, site] of siteNames.entries()) {
      const errors = [rtn, quarot].map(({ siteErrors }) => mean(siteErrors.map((row) => row[s])));
      expect(errors[1], site).toBeLessThan(errors[0]);
      // No transform: the same channels, on the same grid, up to what other sites' rounding did.
      expect(rtn.sites[0][s].activations.channels).toBe(before[0][s].activations.channels);
    }
    const down = siteNames.indexOf("mlp_down");
    for (const [layer, sites] of quarot.sites.entries())
      expect(sites[down].activations.flatness).toBeLessThan(
        before[layer][down].activations.flatness,
      );
    // What the first site of the first block reads is what the model reads, whatever is rounded after it.
    expect(rtn.sites[0][0].activations).toEqual(before[0][0].activations);
    expect(rtn.sites[0][0].activationGrid).toEqual(before[0][0].activationGrid);
  });

  it("refuses a source that the artifact was not made from", async () => {
    const source = join(packageRoot, "models", "tiny-opt");
    await expect(capture({ backend, source, artifacts: [artifact("rtn")] })).rejects.toThrow(
      /was made from tiny-llama .* not from .*tiny-opt/,
    );
  });
});

describe("the HTML file", () => {
  it("escapes what comes from outside", () => {
    expect(escape(`<b a="1">&`)).toBe("&lt;b a=&quot;1&quot;&gt;&amp;");
  });

  it("says what is missing without the source", async () => {
    const html = await report({ backend, directory: join(comparison, "artifacts", "quarot") });
    expect(html).toContain("--source MODEL");
  });

  it("is refused for other directories", async () => {
    mkdirSync(join(directory, "empty"));
    await expect(report({ backend, directory: join(directory, "empty") })).rejects.toThrow(
      /neither an artifact .* nor a comparison/,
    );
  });
});

describe.skipIf(noChromium)(
  `the page in Chromium${noChromium ? ` (skipped: ${noChromium})` : ""}`,
  () => {
    const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    const file = join(directory, "report.html");
    let browser: Awaited<ReturnType<typeof launchChromium>>;

    beforeAll(async () => {
      const html = await report({ backend, directory: comparison });
      expect(Buffer.byteLength(html)).toBeLessThan(5e6);
      writeFileSync(file, html);
      browser = await launchChromium();
    }, BROWSER_PATIENCE);

    afterAll(() => browser.close());

    /** Opens the page; every message on its console and every request beyond the file itself is kept. */
    async function open(
      colorScheme: "light" | "dark",
      width = 1000,
    ): Promise<{ page: Page; faults: string[] }> {
      const page = await browser.newPage({ colorScheme, viewport: { width, height: 900 } });
      page.setDefaultTimeout(BROWSER_PATIENCE);
      const faults: string[] = [];
      const own = pathToFileURL(file).href;
      page.on("console", (message) => faults.push(`${message.type()}: ${message.text()}`));
      page.on("pageerror", (error) => faults.push(error.message));
      page.on("request", (request) => {
        if (request.url() !== own && !request.url().startsWith("data:")) faults.push(request.url());
      });
      await page.goto(own);
      return { page, faults };
    }

    interface AxeResult {
      readonly violations: readonly {
        readonly id: string;
        readonly impact: string;
        readonly nodes: readonly { html: string }[];
      }[];
    }

    it.each(["light", "dark"] as const)(
      "draws without errors or requests, and axe finds nothing serious: %s",
      async (scheme) => {
        const { page, faults } = await open(scheme);
        expect(await page.locator("figure svg").count()).toBeGreaterThanOrEqual(8);
        // Playwright evaluates outside of the page's own policy.
        await page.evaluate(axe);
        const { violations } = await page.evaluate<AxeResult>("axe.run()");
        const serious = violations.filter(
          ({ impact }) => impact === "serious" || impact === "critical",
        );
        expect(serious.map(({ id, nodes }) => `${id}: ${nodes[0].html}`)).toEqual([]);
        expect(faults).toEqual([]);
        await page.close();
      },
    );

    it("follows the mouse and the keyboard", async () => {
      const { page, faults } = await open("light");
      const heading = page.locator("section p strong").first();
      await expect.poll(() => heading.textContent()).toBe("spinquant, block 7, mlp_down");
      await page.getByRole("button", { name: /^block 2, attn_out/ }).click();
      await expect.poll(() => heading.textContent()).toBe("spinquant, block 2, attn_out");
      await page.keyboard.press("ArrowDown");
      await page.keyboard.press("ArrowRight");
      await expect.poll(() => heading.textContent()).toBe("spinquant, block 3, mlp_in");
      await page.getByLabel("Method", { exact: true }).selectOption({ label: "rtn" });
      await page.getByRole("slider", { name: "Block" }).fill("5");
      await page.getByRole("radio", { name: "attn_in" }).check();
      await expect.poll(() => heading.textContent()).toBe("rtn, block 5, attn_in");
      expect(faults).toEqual([]);
      await page.close();
    });

    it("tells what to choose, in words, in a plane and by answers", async () => {
      const { page, faults } = await open("light");
      await expect
        .poll(() => page.locator(".verdict").textContent())
        .toMatch(/nearest to the original/);
      const plane = page.getByRole("img", { name: /^Divergence against size/ });
      await expect.poll(() => plane.getAttribute("aria-label")).toMatch(/quarot: KL \d/);
      // No speed was measured, so there is no plane of it.
      expect(await page.getByRole("img", { name: /^Divergence against decoding/ }).count()).toBe(0);
      await expect.poll(() => page.locator(".prose tbody tr").count()).toBe(4);
      expect(await page.locator(".prose td").first().textContent()).toMatch(/^The capital of/);
      expect(faults).toEqual([]);
      await page.close();
    });

    it("keeps the names of rows in sight while a table is scrolled on a phone", async () => {
      const { page } = await open("light", 360);
      const [left, scrolled] = await page.evaluate<[number, number]>(
        `(() => {
          const box = document.querySelector(".scroll");
          box.scrollLeft = 200;
          const name = box.querySelector("tbody th").getBoundingClientRect();
          return [name.left - box.getBoundingClientRect().left, box.scrollLeft];
        })()`,
      );
      expect(scrolled).toBeGreaterThan(100);
      expect(Math.abs(left)).toBeLessThan(1);
      await page.close();
    });

    it("fits a phone: nothing but tables is wider than the screen", async () => {
      const { page } = await open("light", 360);
      const widths = await page.evaluate<[number, number]>(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]",
      );
      expect(widths[0]).toBe(widths[1]);
      await page.close();
    });
  },
);
