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

    /** What the next question gets, in place of the model's answer. */
    async function answerWith(page: Page, content: string): Promise<void> {
      const top_logprobs = [
        { token: "a", logprob: -0.1 },
        { token: "b", logprob: -3 },
      ];
      const chunks = Array.from(content.match(/[^]{1,7}/g) ?? [], (piece) => ({
        choices: [
          {
            delta: { content: piece },
            logprobs: { content: [{ token: piece, logprob: -2, top_logprobs }] },
          },
        ],
      }));
      const usage = { choices: [], usage: { completion_tokens: chunks.length } };
      const body = [...chunks, usage].map((each) => `data: ${JSON.stringify(each)}\n\n`);
      await page.route("**/v1/chat/completions", (route) =>
        route.fulfill({
          contentType: "text/event-stream",
          body: `${body.join("")}data: [DONE]\n\n`,
        }),
      );
    }

    async function send(page: Page, text: string): Promise<void> {
      await page.getByLabel("Message", { exact: true }).fill(text);
      await page.keyboard.press("Enter");
      await page
        .getByRole("status")
        .filter({ hasText: /^\d+ tokens/ })
        .waitFor();
    }

    const MARKDOWN = `# Ships

A **bold** one, <img src="x" onerror="window.hacked = 1"><script>window.hacked = 1</script>
and [a link](javascript:window.hacked=1) and [another](https://example.org/).

\`\`\`js
let masts = 3;
const long = "${"x".repeat(300)}";
\`\`\`

| port | days |
| ---- | ---- |
| Oslo | 2    |
`;

    it("shows Markdown, of which nothing runs and nothing is fetched", async () => {
      const page = await open();
      await enterKey(page);
      await answerWith(page, MARKDOWN);
      await send(page, "<b>Ships?</b>");
      const log = page.getByRole("log");
      await log.getByRole("heading", { name: "Ships", exact: true }).waitFor();
      await log.getByRole("cell", { name: "Oslo" }).waitFor();
      // A question is text, whatever it looks like.
      await log.getByText("<b>Ships?</b>").waitFor();
      expect(await log.locator("pre").textContent()).toContain("let masts = 3;");
      await log.getByRole("button", { name: "Copy" }).waitFor();
      expect(await log.locator("img, script, iframe, form").count()).toBe(0);
      expect(await log.locator("[onerror], [style]").count()).toBe(0);
      expect(await log.locator('a[href^="javascript"]').count()).toBe(0);
      expect(await log.getByRole("link", { name: "another" }).getAttribute("rel")).toContain(
        "noopener",
      );
      expect(await page.evaluate("window.hacked")).toBeUndefined();
      // Wide code scrolls by itself.
      const over = await log.evaluate(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth);
      expect(over).toBeLessThanOrEqual(0);
      await page.getByText("Conversations").click();
      await page.evaluate(axe.source);
      const { violations } = await page.evaluate<AxeResults>("axe.run()");
      expect(violations.map(({ id, nodes }) => [id, nodes[0].html])).toEqual([]);
      await page.close();
    });

    it("tells what else was likely, regenerates, edits, and keeps conversations in the browser", async () => {
      const page = await open();
      await enterKey(page);
      await page.getByLabel("Keep the probabilities of tokens").check();
      await answerWith(page, "first answer");
      await send(page, "one?");
      await page.getByRole("button", { name: "Probabilities" }).click();
      await page.getByRole("group", { name: "Tokens of the answer" }).press("Home");
      await page.getByText('"first a" 13.5 %; likeliest: "a" 90.5 %, "b" 5.0 %').waitFor();
      await page.unroute("**/v1/chat/completions");
      await answerWith(page, "second answer");
      await page.getByRole("button", { name: "Regenerate this answer" }).click();
      await page.getByText("second answer").waitFor();
      expect(await page.getByRole("log").locator(".turn").count()).toBe(2);
      await page.getByRole("button", { name: "Edit this message" }).click();
      expect(await page.getByLabel("Message", { exact: true }).inputValue()).toBe("one?");
      expect(await page.getByRole("log").locator(".turn").count()).toBe(0);
      await send(page, "two?");
      await page.reload();
      await page.getByText("Conversations").click();
      await page.getByRole("button", { name: "Open: two?" }).click();
      await page.getByText("second answer").waitFor();
      await page.getByRole("button", { name: "Delete: two?" }).click();
      expect(await page.getByRole("log").locator(".turn").count()).toBe(0);
      await page.reload();
      expect(await page.getByRole("button", { name: "Open: two?" }).count()).toBe(0);
      await page.close();
    });

    it("asks with the settings that were given, and remembers them but the key", async () => {
      const page = await open();
      await enterKey(page);
      const asked = page.waitForRequest("**/v1/chat/completions");
      await page.getByLabel("Answer as a JSON object").check();
      await page.getByLabel("Seed").fill("7");
      await page.getByLabel("Top k").fill("5");
      await page.getByLabel("System message").fill("Be brief.");
      await page.getByLabel("New tokens at most").fill("4");
      await answerWith(page, "{}");
      await send(page, "a");
      expect((await asked).postDataJSON()).toMatchObject({
        response_format: { type: "json_object" },
        seed: 7,
        top_k: 5,
        max_tokens: 4,
        messages: [
          { role: "system", content: "Be brief." },
          { role: "user", content: "a" },
        ],
      });
      await page.reload();
      await page.getByText("Settings").click();
      expect(await page.getByLabel("Seed").inputValue()).toBe("7");
      expect(await page.getByLabel("API key").inputValue()).toBe("");
      expect(JSON.stringify(await page.evaluate("({ ...localStorage })"))).not.toContain(KEY);
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
