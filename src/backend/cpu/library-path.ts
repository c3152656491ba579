/**
 * Where the compiled kernels are: named by PLANISH_NATIVE_LIBRARY, built in this clone, built by `planish build` into the
 * user's cache, or in the package of this platform; the first that exists is taken.
 */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { planishCacheDir } from "../../common/cache.js";
import { packageRoot } from "../../common/package.js";
import { unpacked } from "../../common/paths.js";
import { VERSION } from "../../common/version.js";
import { abiNumber } from "../contract/abi-types.js";

export interface NativeCandidate {
  /** Whose word it is. */
  readonly origin: "environment" | "clone" | "built" | "package";
  readonly title: string;
  readonly path: string;
  readonly exists: boolean;
}

/** Platforms that have a package, as native/targets.mjs lists them. */
export const PACKAGED_PLATFORMS: readonly string[] = [
  "linux-x64",
  "linux-x64-musl",
  "linux-arm64",
  "linux-arm64-musl",
  "darwin-x64",
  "darwin-arm64",
  "win32-x64",
  "win32-arm64",
];

/** The suffix of this platform's package: operating system, processor, and the C library where it is musl. */
export function platformName(): string {
  return `${process.platform}-${process.arch}${usesMusl() ? "-musl" : ""}`;
}

let musl: boolean | undefined;

/** Node.js reports the version of glibc that it runs on; with musl there is none. */
function usesMusl(): boolean {
  if (process.platform !== "linux") return false;
  if (musl === undefined) {
    const report = process.report.getReport() as unknown as {
      readonly header?: { readonly glibcVersionRuntime?: string };
    };
    musl = report.header?.glibcVersionRuntime === undefined;
  }
  return musl;
}

/** The library's file name on this platform. */
export function libraryFileName(): string {
  const extension = { win32: "dll", darwin: "dylib" }[process.platform as string] ?? "so";
  return `planish_native.${extension}`;
}

/** Where `planish build` puts the library: a folder per version and ABI, so that an older one is never taken. */
export function builtLibraryFolder(): string {
  return join(planishCacheDir(), "native", `${VERSION}-${abiNumber()}-${platformName()}`);
}

const require = createRequire(import.meta.url);

function packagedLibrary(platform: string): string {
  const file = `@planish/native-${platform}/${libraryFileName()}`;
  try {
    return fileURLToPath(unpacked(pathToFileURL(require.resolve(file))));
  } catch {
    return join(packageRoot, "node_modules", file);
  }
}

/** This file's package: above src/ and dist/, and for a test lane's bundle the repository that it lies in. */
function sourceTree(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(directory, "package.json")) && dirname(directory) !== directory)
    directory = dirname(directory);
  return directory;
}

/** Whether this runs in a clone of the repository, where npm's scripts build what is missing. */
export function isClone(): boolean {
  return existsSync(join(sourceTree(), "scripts", "build-native.mjs"));
}

/** Every place in the order in which they are looked at. */
export function nativeCandidates(): NativeCandidate[] {
  const named = process.env.PLANISH_NATIVE_LIBRARY;
  const platform = platformName();
  const candidates: Omit<NativeCandidate, "exists">[] = [
    ...(named
      ? [{ origin: "environment", title: "PLANISH_NATIVE_LIBRARY", path: named } as const]
      : []),
    {
      origin: "clone",
      title: "this source tree's build",
      path: join(sourceTree(), "native", "build", libraryFileName()),
    },
    {
      origin: "built",
      title: "`planish build`",
      path: join(builtLibraryFolder(), libraryFileName()),
    },
    {
      origin: "package",
      title: `@planish/native-${platform}`,
      path: packagedLibrary(platform),
    },
  ];
  return candidates.map((candidate) => ({ ...candidate, exists: existsSync(candidate.path) }));
}

let found: NativeCandidate | undefined;

/** The place that is taken, whether or not a file is there: what the environment names is never passed over. */
export function nativeLibrary(): NativeCandidate | undefined {
  if (found && process.env.PLANISH_NATIVE_LIBRARY === undefined) return found;
  const candidates = nativeCandidates();
  const taken = candidates.find(({ origin, exists }) => exists || origin === "environment");
  if (taken?.exists && taken.origin !== "environment") found = taken;
  return taken;
}

/** What to do where no library is, or where it does not fit. */
export function nativeAdvice(): string {
  if (isClone()) return "run `npm run build:native` (needs a C++17 compiler)";
  const platform = platformName();
  return PACKAGED_PLATFORMS.includes(platform)
    ? `install @planish/native-${platform}@${VERSION} (package managers leave it out with --omit=optional), or compile it: \`npx planish build\``
    : "compile them: `npx planish build` (needs a C++17 compiler)";
}
