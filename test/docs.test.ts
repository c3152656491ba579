/** Links between pages of the documentation lead somewhere. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../src/common/package.js";

const pages = [
  ...["README.md", "CONTRIBUTING.md", "SECURITY.md"],
  ...readdirSync(join(packageRoot, "docs"), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".md"))
    .map((name) => join("docs", name)),
].map((name) => resolve(packageRoot, name));

/** GitHub's anchor of a heading. */
const anchor = (heading: string): string =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, "")
    .trim()
    .replaceAll(" ", "-");

const anchorsOf = (text: string): string[] =>
  [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading]) => anchor(heading));

describe.each(pages.map((path) => [relative(packageRoot, path), path] as const))(
  "%s",
  (_name, path) => {
    it("links to what is there", () => {
      const text = readFileSync(path, "utf8").replace(/^```[\s\S]*?^```/gm, "");
      const broken = [...text.matchAll(/\]\(([^)\s]+)\)/g)]
        .map(([, target]) => target)
        .filter((target) => !/^[a-z]+:/.test(target))
        .filter((target) => {
          const [file, heading] = target.split("#");
          const to = file === "" ? path : resolve(dirname(path), file);
          if (!existsSync(to)) return true;
          return heading !== undefined && !anchorsOf(readFileSync(to, "utf8")).includes(heading);
        });
      expect(broken).toEqual([]);
    });
  },
);
