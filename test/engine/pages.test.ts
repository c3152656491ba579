import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { PagePool, ROOT } from "../../src/engine/pages.js";

/** Fills pages with a text and makes them known, as a sequence does that runs alone. */
function remember(pool: PagePool, tokens: readonly number[]): number[] {
  const { pages, node: start } = pool.match(tokens, tokens.length);
  let node = start;
  while ((pages.length + 1) * pool.pageTokens <= tokens.length) {
    const page = pool.allocate();
    if (page === undefined) throw new Error("no page left");
    node = pool.register(page, node, tokens, pages.length * pool.pageTokens);
    pages.push(page);
  }
  return pages;
}

const releaseAll = (pool: PagePool, pages: readonly number[]): void =>
  [...pages].reverse().forEach((page) => pool.release(page));

describe("PagePool", () => {
  it("gives every page once, then none", () => {
    const pool = new PagePool(3, 2);
    const pages = [pool.allocate(), pool.allocate(), pool.allocate()];
    expect(new Set(pages)).toEqual(new Set([0, 1, 2]));
    expect(pool.allocate()).toBeUndefined();
    expect(pool.used).toBe(3);
  });

  it("finds the longest beginning in whole pages, and shares it", () => {
    const pool = new PagePool(8, 2);
    const pages = remember(pool, [1, 2, 3, 4, 5, 6]);
    expect(pool.match([1, 2, 3, 4, 9, 9], 6).pages).toEqual(pages.slice(0, 2));
    expect(pool.isShared(pages[0])).toBe(true);
    expect(pool.isShared(pages[2])).toBe(false);
    // The same tokens after another beginning are another text.
    expect(pool.match([3, 4], 2).pages).toEqual([]);
    // A limit inside a page ends before it.
    expect(pool.match([1, 2, 3, 4, 5, 6], 5).pages).toEqual(pages.slice(0, 2));
  });

  it("keeps released text until its page is needed, the oldest going first", () => {
    const pool = new PagePool(4, 1);
    releaseAll(pool, remember(pool, [1, 2]));
    releaseAll(pool, remember(pool, [7, 8]));
    expect({ cached: pool.cached, used: pool.used }).toEqual({ cached: 4, used: 0 });
    // The end of the first text was released first.
    pool.allocate();
    const again = pool.match([1, 2], 2);
    expect(again.pages).toHaveLength(1);
    releaseAll(pool, again.pages);
    expect(pool.match([7, 8], 2).pages).toHaveLength(2);
  });

  it("does not confuse a text with one whose page was evicted", () => {
    const pool = new PagePool(2, 1);
    releaseAll(pool, remember(pool, [1, 2]));
    pool.allocate();
    pool.allocate();
    expect(pool.match([1, 2], 2).pages).toEqual([]);
  });

  it("keeps one page of two that hold the same text", () => {
    const pool = new PagePool(4, 2);
    const [first, second] = [pool.allocate() ?? -1, pool.allocate() ?? -1];
    const node = pool.register(first, ROOT, [5, 6], 0);
    expect(pool.register(second, ROOT, [5, 6], 0)).toBe(node);
    pool.release(second);
    expect(pool.cached).toBe(0);
    pool.release(first);
    expect(pool.cached).toBe(1);
    expect(pool.match([5, 6], 2).pages).toEqual([first]);
  });

  it("refuses to release a page twice, or to share a free one", () => {
    const pool = new PagePool(1, 2);
    const page = pool.allocate() ?? -1;
    pool.release(page);
    expect(() => pool.release(page)).toThrow("released twice");
    expect(() => pool.retain(page)).toThrow("cannot be shared");
  });

  it("loses no page, whatever texts come and go", () => {
    const text = fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(
        fc.array(text, { maxLength: 30 }),
        fc.integer({ min: 6, max: 10 }),
        (texts, count) => {
          const pool = new PagePool(count, 2);
          let held: number[] = [];
          for (const tokens of texts) {
            const needed = Math.ceil(tokens.length / 2);
            if (pool.available < needed) releaseAll(pool, held.splice(0));
            const pages = remember(pool, tokens);
            // Holding a text twice and giving it back once leaves it held.
            for (const page of pages) pool.retain(page);
            releaseAll(pool, pages);
            held = [...held, ...pages];
            expect(pool.used).toBe(new Set(held).size);
            expect(pool.used + pool.available).toBe(count);
          }
          releaseAll(pool, held);
          expect(pool.used).toBe(0);
          for (let i = 0; i < count; i++) expect(pool.allocate()).toBeDefined();
        },
      ),
    );
  });
});
