/**
 * Responses that can be continued by `previous_response_id`: in memory, within limits, the one unused for longest going
 * first; each is its asker's own.
 */
import type { KnownItem } from "./items.js";

export interface StoredResponse {
  /** As it was answered. */
  readonly body: unknown;
  /** The whole conversation: all that went in, and what came out. */
  readonly items: readonly KnownItem[];
}

interface Entry extends StoredResponse {
  readonly client: string;
  readonly bytes: number;
}

export class ResponseStore {
  private readonly entries = new Map<string, Entry>();
  private readonly itemOwners = new Map<string, string>();
  private bytes = 0;

  constructor(
    /** Bytes of JSON that are kept. */
    private readonly most: number,
  ) {}

  get size(): number {
    return this.entries.size;
  }

  add(client: string, id: string, response: StoredResponse): void {
    const bytes = 2 * JSON.stringify([response.body, response.items]).length;
    if (bytes > this.most) return;
    this.entries.set(id, { ...response, client, bytes });
    for (const item of response.items) if (isNamed(item)) this.itemOwners.set(item.id, id);
    this.bytes += bytes;
    for (const [oldest] of this.entries) {
      if (this.bytes <= this.most) break;
      this.forget(oldest);
    }
  }

  get(client: string, id: string): StoredResponse | undefined {
    const entry = this.entries.get(id);
    if (entry?.client !== client) return undefined;
    // Used last, forgotten last.
    this.entries.delete(id);
    this.entries.set(id, entry);
    return entry;
  }

  /** An item of a response by its own id. */
  item(client: string, id: string): KnownItem | undefined {
    const owner = this.itemOwners.get(id);
    const response = owner === undefined ? undefined : this.get(client, owner);
    return response?.items.find((item) => isNamed(item) && item.id === id);
  }

  /** Whether there was one. */
  delete(client: string, id: string): boolean {
    if (this.entries.get(id)?.client !== client) return false;
    this.forget(id);
    return true;
  }

  private forget(id: string): void {
    const entry = this.entries.get(id);
    if (!entry) return;
    this.entries.delete(id);
    this.bytes -= entry.bytes;
    for (const item of entry.items)
      if (isNamed(item) && this.itemOwners.get(item.id) === id) this.itemOwners.delete(item.id);
  }
}

function isNamed(item: KnownItem): item is KnownItem & { readonly id: string } {
  return typeof item["id"] === "string";
}
