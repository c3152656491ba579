/**
 * Who owns which page of the KV cache. Pages are counted references: sequences that begin alike share the pages of
 * their beginning. A full page whose last owner is gone keeps its contents, as part of the prefix cache, until the page
 * is needed for something else; the one unused for longest goes first.
 */
import { createHash } from "node:crypto";
import { PlanishError } from "../common/errors.js";

/** Identity of a beginning: its pages' number, or the name of an empty one. */
export type PrefixNode = number | string;

/** The beginning of every sequence, before its first page. */
export const ROOT: PrefixNode = 0;

/** A beginning that only sequences of the same salt share. */
export function rootOf(salt: string | undefined): PrefixNode {
  return salt === undefined ? ROOT : `salt:${createHash("sha256").update(salt).digest("hex")}`;
}

export class PagePool {
  private readonly references: Int32Array;
  private readonly free: number[];
  /** Full pages by what precedes them and what they hold; the exact tokens, so that no two texts can be confused. */
  private readonly known = new Map<string, number>();
  private readonly keys: (string | undefined)[];
  /** Identity of the text up to the end of a known page. Never reissued: a page's successors outlive it unreachable. */
  private readonly nodes: PrefixNode[];
  private lastNode = 0;
  /** Known pages without owner, the one released first in front. */
  private readonly idle = new Set<number>();

  constructor(
    readonly count: number,
    readonly pageTokens: number,
  ) {
    this.references = new Int32Array(count);
    this.free = Array.from({ length: count }, (_, i) => count - 1 - i);
    this.keys = new Array<string | undefined>(count);
    this.nodes = new Array<PrefixNode>(count).fill(ROOT);
  }

  /** Pages that `allocate` can still give. */
  get available(): number {
    return this.free.length + this.idle.size;
  }

  /** Pages that some sequence holds. */
  get used(): number {
    return this.count - this.available;
  }

  /** Pages kept for sequences to come that begin alike. */
  get cached(): number {
    return this.idle.size;
  }

  /** A page with one reference, contents undefined; undefined when every page is held. */
  allocate(): number | undefined {
    let page = this.free.pop();
    if (page === undefined) {
      const [oldest] = this.idle;
      if (oldest === undefined) return undefined;
      this.forget(oldest);
      page = oldest;
    }
    this.references[page] = 1;
    return page;
  }

  retain(page: number): void {
    if (this.references[page] === 0 && !this.idle.delete(page))
      throw new PlanishError(`[engine] page ${page} is free and cannot be shared`);
    this.references[page] += 1;
  }

  release(page: number): void {
    if (this.references[page] === 0)
      throw new PlanishError(`[engine] page ${page} is released twice`);
    this.references[page] -= 1;
    if (this.references[page] > 0) return;
    if (this.keys[page] === undefined) this.free.push(page);
    else this.idle.add(page);
  }

  /** Whether others hold the page too, so that it must not be written. */
  isShared(page: number): boolean {
    return this.references[page] > 1;
  }

  /**
   * The longest known beginning of `tokens` in whole pages, at most `limit` tokens of it; its pages are retained.
   * `node` stands for that beginning in `register`. Only what began at the same `root` is found.
   */
  match(
    tokens: ArrayLike<number>,
    limit: number,
    root = ROOT,
  ): { pages: number[]; node: PrefixNode } {
    const pages: number[] = [];
    let node = root;
    while ((pages.length + 1) * this.pageTokens <= limit) {
      const page = this.known.get(this.key(node, tokens, pages.length * this.pageTokens));
      if (page === undefined) break;
      this.retain(page);
      pages.push(page);
      node = this.nodes[page];
    }
    return { pages, node };
  }

  /**
   * Makes a full page known: it holds the `pageTokens` tokens from `start` on, after the beginning `node`. Returns the
   * node of the longer beginning. Where another page holds the same already, this one stays private.
   */
  register(page: number, node: PrefixNode, tokens: ArrayLike<number>, start: number): PrefixNode {
    const key = this.key(node, tokens, start);
    const existing = this.known.get(key);
    if (existing !== undefined) return this.nodes[existing];
    if (this.keys[page] !== undefined)
      throw new PlanishError(`[engine] page ${page} is already known`);
    this.known.set(key, page);
    this.keys[page] = key;
    this.lastNode += 1;
    this.nodes[page] = this.lastNode;
    return this.lastNode;
  }

  private key(node: PrefixNode, tokens: ArrayLike<number>, start: number): string {
    let key = String(node);
    for (let i = start; i < start + this.pageTokens; i++) key += `,${tokens[i]}`;
    return key;
  }

  private forget(page: number): void {
    this.idle.delete(page);
    this.known.delete(this.keys[page] ?? "");
    this.keys[page] = undefined;
  }
}
