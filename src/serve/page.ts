/** The chat page: one file, put together from assets/chat/ and the libraries that make Markdown into safe HTML. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import type { FastifyInstance } from "fastify";
import { packageRoot } from "../common/package.js";

const require = createRequire(import.meta.url);

/** What stands in place of a comment in page.html. */
const PARTS: Readonly<Record<string, () => string>> = {
  "page.css": () => asset("page.css"),
  "page.js": () => asset("page.js"),
  marked: () => library("marked", "marked.umd.js"),
  purify: () => library("dompurify", "purify.min.js"),
};

function asset(name: string): string {
  return readFileSync(join(packageRoot, "assets/chat", name), "utf8");
}

/** A script beside a library's entry, without the place of its source map, which is not served. */
function library(name: string, file: string): string {
  return readFileSync(join(dirname(require.resolve(name)), file), "utf8").replace(
    /^\/\/# sourceMappingURL=.*$/gm,
    "",
  );
}

export function chatPage(): string {
  const shell = readFileSync(new URL("./page.html", import.meta.url), "utf8");
  return shell.replace(/\/\* ([\w.]+) \*\//g, (comment, name: string) => {
    const part = PARTS[name]?.() ?? comment;
    // Nothing in a script may end it.
    return part.replaceAll("</script", "<\\/script");
  });
}

/** The page talks to this server only, runs its own scripts only, and may not be framed. */
export function servePage(app: FastifyInstance): void {
  const page = chatPage();
  const hashes = (tag: string): string =>
    [...page.matchAll(new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`, "g"))]
      .map(([, text]) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`)
      .join(" ");
  const policy = [
    "default-src 'none'",
    "connect-src 'self'",
    `script-src ${hashes("script")}`,
    `style-src ${hashes("style")}`,
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; ");
  app.get("/", (_request, reply) =>
    reply
      .headers({ "content-security-policy": policy, "referrer-policy": "no-referrer" })
      .type("text/html; charset=utf-8")
      .send(page),
  );
}
