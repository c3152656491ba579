/** The chat page in a real browser, over an engine that computes nothing. */
import axe, { type AxeResults } from "axe-core";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fakeEngine, fakeExecutor, fakeTokenizer } from "../engine/fake-executor.js";
import { listen, TEMPLATE } from "./listen.js";
import { BROWSER_PATIENCE, launchChromium, noChromium } from "../experiments/chromium.js";

const KEY = "page-key-0123456789";
let url = "";
let browser: Browser | undefined;
const cleanup: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  if (noChromium) return;
  // Slow enough, with answers of thousands of tokens, that one can be stopped on a busy machine too.
  const onStep = (): void => {
    const end = performance.now() + 2;
    while (performance.now() < end);
  };
  const executor = fakeExecutor({ onStep, maxPositions: 4000 });
  // No token ends a text: answers are as long as was asked.
  const tokenizer = { ...fakeTokenizer(TEMPLATE), eosTokenIds: [] };
  const { engine } = await fakeEngine(executor, { pages: 1000 }, tokenizer);
  const listening = await listen(engine, { model: "fake-model", apiKeys: [KEY] });
  url = listening.url;
  browser = await launchChromium();
  cleanup.push(listening.close, () => browser?.close() ?? Promise.resolve());
}, BROWSER_PATIENCE);
afterAll(async () => {
  for (const each of cleanup.reverse()) await each();
}, BROWSER_PATIENCE);

async function open(options: Parameters<Browser["newPage"]>[0] = {}): Promise<Page> {
  if (!browser) throw new Error("no browser");
  const page = await browser.newPage(options);
  page.setDefaultTimeout(BROWSER_PATIENCE);
  page.on("pageerror", (error) => {
    throw error;
  });
  // Nothing but this server may be asked.
  page.on("request", (request) => {
    if (!request.url().startsWith(url)) throw new Error(`the page asked ${request.url()}`);
  });
  await page.goto(url);
  return page;
}

async function enterKey(page: Page): Promise<void> {
  await page.getByText("Settings").click();
  await page.getByLabel("API key").fill(KEY);
  await page.getByLabel("API key").blur();
  await page.getByText("fake-model").waitFor();
}

describe.skipIf(noChromium !== undefined)(
  `the chat page${noChromium ? ` (${noChromium})` : ""}`,
  () => {
    it("says that a key is needed, then talks, keeps the conversation, and starts anew", async () => {
      const page = await open();
      await page.getByText("Failed: a valid API key is needed").waitFor();
      await enterKey(page);
      await page.getByLabel("New tokens at most").fill("5");
      for (const text of ["abc", "bcd"]) {
        await page.getByLabel("Message", { exact: true }).fill(text);
        await page.getByRole("button", { name: "Send" }).click();
        await page
          .getByRole("status")
          .filter({ hasText: /^\d+ tokens/ })
          .waitFor();
        await page.getByRole("button", { name: "Send" }).waitFor();
      }
      const turns = page.getByRole("log").locator("p");
      const texts = await turns.allTextContents();
      expect(texts).toHaveLength(4);
      expect([texts[0], texts[2]]).toEqual(["abc", "bcd"]);
      expect(texts[1].length).toBeGreaterThan(0);
      await page.getByRole("button", { name: "New chat" }).click();
      expect(await turns.count()).toBe(0);
      await page.close();
    });

    it("stops an answer, keeping what there is of it", async () => {
      const page = await open();
      await enterKey(page);
      await page.getByLabel("Temperature").fill("0");
      await page.getByLabel("New tokens at most").fill("3900");
      await page.getByLabel("Message", { exact: true }).fill("cab");
      await page.keyboard.press("Enter");
      const answer = page.getByRole("log").locator(".assistant p");
      await answer.filter({ hasText: /.{3}/ }).waitFor();
      await page.getByRole("button", { name: "Stop" }).click();
      await page.getByText("Stopped").waitFor();
      expect((await answer.textContent())?.length).toBeLessThan(3900);
      await page.close();
    });

    it.each([
      ["light, wide", { colorScheme: "light", viewport: { width: 1200, height: 800 } }],
      ["dark, on a phone", { colorScheme: "dark", viewport: { width: 360, height: 640 } }],
    ] as const)("is accessible and fits (%s)", async (_name, options) => {
      const page = await open(options);
      await enterKey(page);
      await page.getByLabel("New tokens at most").fill("5");
      await page.getByLabel("Message", { exact: true }).fill("abc");
      await page.keyboard.press("Enter");
      await page
        .getByRole("status")
        .filter({ hasText: /^\d+ tokens/ })
        .waitFor();
      const wide = await page.evaluate<number>("document.documentElement.scrollWidth - innerWidth");
      expect(wide).toBeLessThanOrEqual(0);
      // The page's policy keeps foreign scripts out of it; evaluate is the debugger's own.
      await page.evaluate(axe.source);
      const { violations } = await page.evaluate<AxeResults>("axe.run()");
      expect(violations.map(({ id, nodes }) => [id, nodes[0].html])).toEqual([]);
      await page.close();
    });
  },
);
