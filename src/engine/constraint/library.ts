/**
 * XGrammar's WebAssembly build, loaded as what it is made for: a script of a browser's worker. It is to be loaded in a
 * thread of its own, whose globals it and this file use freely.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath, pathToFileURL } from "node:url";
import { PlanishError } from "../../common/errors.js";

/** What is used of the library (its declarations cannot be imported under its module's type). */
export interface XGrammar {
  readonly TokenizerInfo: {
    createTokenizerInfo(
      vocabulary: readonly string[],
      type: "byte_level",
      prependSpace: boolean,
      size: number,
      stops: readonly number[],
    ): Promise<object>;
  };
  readonly GrammarCompiler: {
    createGrammarCompiler(info: object, cache: boolean): Promise<XCompiler>;
  };
  readonly GrammarMatcher: {
    createGrammarMatcher(form: XForm): Promise<XMatcher>;
  };
}

export interface XCompiler {
  compileGrammar(grammar: string): Promise<XForm>;
}
export interface XForm {
  dispose(): void;
}
export interface XMatcher {
  acceptToken(token: number): boolean;
  getNextTokenBitmask(): Promise<Int32Array>;
  isTerminated(): boolean;
  dispose(): void;
}

/** What the library has written about its last failure. */
export interface Complaints {
  take(): string;
}

/**
 * @param memory bytes that the library may take; beyond them its work fails, and with it the thread
 */
export function loadXGrammar(memory: number): {
  library: XGrammar;
  complaints: Complaints;
} {
  const name = "@mlc-ai/web-xgrammar";
  limitMemory(memory);
  const complaints: string[] = [];
  // It prints what is wrong with a grammar, and only says that it has aborted.
  // eslint-disable-next-line no-console
  console.error = console.log = (...parts: unknown[]) => complaints.push(parts.join(" "));
  // It is a script of the older kind that its package calls a module, so that loaders disagree about it.
  const file = fileURLToPath(import.meta.resolve(name));
  const exports: Partial<XGrammar> = {};
  const script = readFileSync(file, "utf8");
  // eslint-disable-next-line @typescript-eslint/no-implied-eval
  const run = new Function("exports", "module", "location", script) as (
    exports: object,
    module: object,
    location: { href: string },
  ) => void;
  run(exports, { exports }, { href: pathToFileURL(file).href });
  const library = exports.GrammarCompiler && (exports as XGrammar);
  if (!library) throw new PlanishError(`${name} cannot be loaded; install Planish again`);
  const take = (): string => {
    const [first = ""] = complaints.splice(0);
    return first.replace(/^.*?\.(?:cc|h):\d+: ?/s, "");
  };
  return { library, complaints: { take } };
}

/** A WebAssembly memory (the types are among those of browsers). */
interface Memory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}

/** Refuses growth of this thread's WebAssembly memories beyond a limit. */
function limitMemory(most: number): void {
  const { Memory } = (globalThis as unknown as { WebAssembly: { Memory: { prototype: Memory } } })
    .WebAssembly;
  const { prototype } = Memory;
  // eslint-disable-next-line @typescript-eslint/unbound-method
  const grow = prototype.grow;
  prototype.grow = function (this: Memory, pages: number): number {
    if (this.buffer.byteLength + pages * 65536 > most)
      throw new RangeError(`more than ${most} bytes of memory`);
    return grow.call(this, pages);
  };
}
