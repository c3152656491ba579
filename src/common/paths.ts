/**
 * Files that a bundler does not see, since they are loaded by name at run time: the engine's thread, the process that writes
 * prompts down, the native library. Beside the installed package they are found; in a bundle, or in Electron's archive, the
 * application says where it put them. Kept in the environment, which threads and child processes inherit.
 */
import { existsSync } from "node:fs";
import { extname } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { PlanishError } from "./errors.js";

/** Paths or file URLs; what is left out stays as it was. */
export interface Paths {
  /** The bundled `planish/engine-thread`. */
  readonly engineThread?: string | URL;
  /** The bundled `planish/prompt-process`. */
  readonly promptProcess?: string | URL;
  /** planish_native.so, .dylib or .dll, of the package @planish/native-<platform>. */
  readonly nativeLibrary?: string | URL;
}

const VARIABLES: Readonly<Record<keyof Paths, string>> = {
  engineThread: "PLANISH_ENGINE_THREAD",
  promptProcess: "PLANISH_PROMPT_PROCESS",
  nativeLibrary: "PLANISH_NATIVE_LIBRARY",
};

/**
 * Says where files lie that cannot be found beside this one. Call it before anything is loaded.
 * @throws PlanishError when there is no such file.
 */
export function setPaths(paths: Paths): void {
  for (const name of Object.keys(VARIABLES) as (keyof Paths)[]) {
    const given = paths[name];
    if (given === undefined) continue;
    const path = given instanceof URL || given.startsWith("file:") ? fileURLToPath(given) : given;
    if (!existsSync(path)) throw new PlanishError(`setPaths: ${name}: there is no file ${path}`);
    process.env[VARIABLES[name]] = path;
  }
}

/**
 * A file that is started by name: the one that was set, else `beside` with the extension of the file that asks (this code
 * runs from src/ and from dist/).
 * @throws PlanishError when it is not there, as in a bundle.
 */
export function startedFile(
  name: Exclude<keyof Paths, "nativeLibrary">,
  beside: string,
  asker: string,
): URL {
  const set = process.env[VARIABLES[name]];
  const file = set ? pathToFileURL(set) : new URL(`${beside}${extname(asker)}`, asker);
  if (existsSync(file)) return unpacked(file);
  throw new PlanishError(
    `${fileURLToPath(file)} is missing; in a bundle, build planish/${name === "engineThread" ? "engine-thread" : "prompt-process"} as an entry of its own and name it with setPaths({ ${name} })`,
  );
}

/** Electron reads files inside its archive, but threads, processes and libraries start from beside it. */
export function unpacked(file: URL): URL {
  const outside = new URL(file.href.replace(/\.asar(?=\/)/, ".asar.unpacked"));
  return outside.href !== file.href && existsSync(outside) ? outside : file;
}
