/** What a schema has against a document, as one line for people. */
import type { z } from "zod";
import { oneLine } from "./bounds.js";

export interface Issue {
  /** Path of the field, such as `layers.0.scheme`; empty for the document itself. Cut where it is long. */
  readonly field: string;
  /** What is wrong with it. */
  readonly reason: string;
}

/** The first issue. Both parts repeat what a stranger wrote, so they are cut and freed of control characters. */
export function firstIssue({ issues: [issue] }: z.ZodError): Issue {
  return { field: oneLine(issue.path.join("."), 100), reason: oneLine(issue.message, 200) };
}
