/**
 * What the native library is compiled for: instruction-set levels with their compiler flags, and the platforms that have a
 * package of their own. Plain JavaScript, since the library is also built where nothing else is compiled yet.
 */

const AVX2 = ["-mavx2", "-mfma", "-mf16c"];
const AVX512 = [
  ...AVX2,
  "-mavx512f",
  "-mavx512bw",
  "-mavx512dq",
  "-mavx512vl",
  "-mavx512vnni",
  "-mavx512bf16",
];

/** Levels of a processor architecture, best last, with the flags of their translation units. */
export const LEVELS = {
  x64: {
    portable: [],
    avx2: AVX2,
    avx512: AVX512,
    amx: [...AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
  },
  arm64: { portable: [], neon: [], dotprod: ["-march=armv8.2-a+dotprod"] },
};

/** Levels of architectures that have no list of their own. */
export const OTHER_LEVELS = { portable: [] };

/**
 * Platforms with a package, by the package's suffix: what npm is told (`os`, `cpu`, `libc`) and the name that clang has for
 * them. glibc 2.28 is that of Debian 10 and RHEL 8, macOS 11 the first on Apple's own processors.
 */
export const PLATFORMS = {
  "linux-x64": {
    os: "linux",
    cpu: "x64",
    libc: "glibc",
    triple: "x86_64-linux-gnu.2.28",
  },
  "linux-x64-musl": { os: "linux", cpu: "x64", libc: "musl", triple: "x86_64-linux-musl" },
  "linux-arm64": {
    os: "linux",
    cpu: "arm64",
    libc: "glibc",
    triple: "aarch64-linux-gnu.2.28",
  },
  "linux-arm64-musl": { os: "linux", cpu: "arm64", libc: "musl", triple: "aarch64-linux-musl" },
  "darwin-x64": { os: "darwin", cpu: "x64", triple: "x86_64-macos.11.0" },
  "darwin-arm64": { os: "darwin", cpu: "arm64", triple: "aarch64-macos.11.0" },
  "win32-x64": { os: "win32", cpu: "x64", triple: "x86_64-windows-gnu" },
  "win32-arm64": { os: "win32", cpu: "arm64", triple: "aarch64-windows-gnu" },
};

/** File name of the library on a platform of Node.js (`process.platform`), without directory. */
export function libraryName(os, stem = "planish_native") {
  return `${stem}.${os === "win32" ? "dll" : os === "darwin" ? "dylib" : "so"}`;
}
