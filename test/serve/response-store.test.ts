/** Responses that are kept to be continued: each its asker's own, within a limit, the one unused for longest going first. */
import { describe, expect, it } from "vitest";
import type { KnownItem } from "../../src/serve/responses/items.js";
import { ResponseStore } from "../../src/serve/responses/store.js";

const item = (id: string, content: string): KnownItem => ({
  id,
  type: "message",
  role: "assistant",
  content,
});
const response = (id: string, content = "x".repeat(100)) => ({
  body: { id },
  items: [item(`msg_${id}`, content)],
});

describe("kept responses", () => {
  it("belong to who asked", () => {
    const store = new ResponseStore(10_000);
    store.add("ann", "a", response("a"));
    expect(store.get("ann", "a")?.body).toEqual({ id: "a" });
    expect(store.item("ann", "msg_a")).toMatchObject({ id: "msg_a" });
    expect(store.get("bob", "a")).toBeUndefined();
    expect(store.item("bob", "msg_a")).toBeUndefined();
    expect(store.delete("bob", "a")).toBe(false);
    expect(store.delete("ann", "a")).toBe(true);
    expect(store.item("ann", "msg_a")).toBeUndefined();
  });

  it("go when there are too many, the one unused for longest first", () => {
    const store = new ResponseStore(1200);
    for (const id of ["a", "b", "c"]) store.add("ann", id, response(id));
    expect(store.size).toBe(3);
    store.get("ann", "a");
    store.add("ann", "d", response("d"));
    expect(store.get("ann", "b")).toBeUndefined();
    expect(store.item("ann", "msg_b")).toBeUndefined();
    expect(["a", "c", "d"].map((id) => store.get("ann", id) !== undefined)).toEqual([
      true,
      true,
      true,
    ]);
    store.add("ann", "huge", response("huge", "x".repeat(2000)));
    expect(store.get("ann", "huge")).toBeUndefined();
    expect(store.size).toBe(3);
  });
});
