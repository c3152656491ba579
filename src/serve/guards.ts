/** Who may ask: API keys, rates, and names under which a server on this machine may be reached. */
import { createHash, timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import { normalizeIP } from "@fastify/rate-limit";
import type { FastifyRequest } from "fastify";
import { PlanishError } from "../common/errors.js";
import { MAX_SETTINGS_BYTES, readUserText } from "../common/read-file.js";
import { ApiError } from "./errors.js";

/** Shorter keys are guessed too easily. */
const SHORTEST_KEY = 16;

/**
 * API keys of a file: one on each line; empty lines and lines that begin with `#` are skipped.
 * @throws PlanishError when the file cannot be read or holds no key, or one that is too short or has blanks.
 */
export function readApiKeys(file: string): string[] {
  const text = readUserText(file, {
    what: "API key file",
    most: MAX_SETTINGS_BYTES,
    hint: "give a file with one key on each line",
  });
  const keys = text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"));
  if (keys.length === 0)
    throw new PlanishError(`API key file ${file} holds no key; write one on each line`);
  keys.forEach((key, i) => {
    if (key.length < SHORTEST_KEY || /\s/.test(key))
      throw new PlanishError(
        `API key ${i + 1} of ${file} is not fit; a key has at least ${SHORTEST_KEY} characters and no blanks`,
      );
  });
  return keys;
}

/** Finds the key that a request carries; the time it takes does not tell how much of a key is right. */
export class Keys {
  private readonly digests: readonly Buffer[];

  constructor(keys: readonly string[]) {
    this.digests = keys.map(digest);
  }

  get areSet(): boolean {
    return this.digests.length > 0;
  }

  has(key: string): boolean {
    const given = digest(key);
    // Every key is compared, whichever fits.
    return this.digests.reduce((found, each) => timingSafeEqual(each, given) || found, false);
  }

  /** Whose requests count together: those of one key, or of one address (of IPv6, one network of 64 bits). */
  clientOf(request: FastifyRequest): string {
    const key = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1]?.trim();
    if (key !== undefined && this.areSet && this.has(key)) return digest(key).toString("hex");
    // A socket that is gone already has no address any more.
    const { ip }: { ip?: string } = request;
    return normalizeIP(ip ?? "");
  }
}

function digest(key: string): Buffer {
  return createHash("sha256").update(key).digest();
}

export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

/**
 * A page on the web can have its own name resolve to 127.0.0.1 and then talk to servers on this machine as its own; it
 * cannot make the browser send another name.
 * @throws ApiError (403) when a server for this machine is addressed by a name that is not this machine's.
 */
export function checkHost(request: FastifyRequest): void {
  const name = request.hostname.replace(/^\[(.*)\]$/, "$1");
  if (!isLoopback(name))
    throw new ApiError(
      403,
      `this server answers on this machine only, not as "${name.slice(0, 100)}"`,
    );
}
