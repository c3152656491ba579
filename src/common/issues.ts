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
  const { path, message } = innermost(issue);
  return { field: oneLine(path.join("."), 100), reason: oneLine(message, 200) };
}

/** Of alternatives, what the one lacks that got furthest into the document; where none did, what each wants. */
function innermost(issue: z.core.$ZodIssue): { path: PropertyKey[]; message: string } {
  if (issue.code !== "invalid_union" || issue.errors.length === 0 || issue.message !== VAGUE)
    return issue;
  const branches = issue.errors.flatMap(([first]) => (first ? [innermost(first)] : []));
  const furthest = branches.reduce((a, b) => (b.path.length > a.path.length ? b : a), branches[0]);
  if (furthest.path.length > 0)
    return { path: [...issue.path, ...furthest.path], message: furthest.message };
  const wanted = [...new Set(branches.map(({ message }) => message))];
  return { path: issue.path, message: wanted.join("; or: ") };
}

/** What the library says of a union by default. */
const VAGUE = "Invalid input";
