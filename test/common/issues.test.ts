/** What a document lacks, in one line that says where. */
import { expect, test } from "vitest";
import { z } from "zod";
import { firstIssue } from "../../src/common/issues.js";
import { translateChat, translateCompletion } from "../../src/serve/requests.js";

const issueOf = (schema: z.ZodType, document: unknown) => {
  const { error } = schema.safeParse(document);
  return error && firstIssue(error);
};

test("of alternatives, the one that fits furthest is told; where none does, all are", () => {
  const schema = z.object({ a: z.union([z.string(), z.array(z.number())]) });
  expect(issueOf(schema, { a: [1, "x"] })).toMatchObject({ field: "a.1" });
  const { field, reason } = issueOf(schema, { a: true }) ?? {};
  expect(field).toBe("a");
  expect(reason).toMatch(/expected string.*; or: .*expected array/);
  const own = z.union([z.string(), z.number()], { error: "give a name or a number" });
  expect(issueOf(own, true)).toEqual({ field: "", reason: "give a name or a number" });
});

test.each([[[]], [5], [[1, "a"]], [[{}]], [null]])("a request's prompt %j", (prompt) => {
  expect(() => translateCompletion({ prompt })).toThrow(
    /^prompt: give a text, token ids, or a list/,
  );
});

test("a message's part that is no text is named", () => {
  const content = [{ type: "text", text: "a" }, { type: "image_url" }];
  expect(() => translateChat({ messages: [{ role: "user", content }] })).toThrow(
    /^messages\.0\.content\.1\.type: .*"text"/,
  );
});
