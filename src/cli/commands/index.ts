/**
 * Every command, in the order of the help page. Adding one: a file beside this one, and a line here. A command's file, and
 * all that it imports, is loaded when the command line names it: loading them all takes most of a second.
 */

import type { CommandSource } from "../program.js";

export const commands: readonly CommandSource[] = [
  { name: "pull", load: async () => (await import("./pull.js")).register },
  { name: "quantize", load: async () => (await import("./quantize.js")).register },
  { name: "worker", load: async () => (await import("./worker.js")).register },
  { name: "jobs", load: async () => (await import("./jobs.js")).register },
  { name: "export", load: async () => (await import("./export.js")).register },
  { name: "import", load: async () => (await import("./import.js")).register },
  { name: "eval", load: async () => (await import("./eval.js")).register },
  { name: "compare", load: async () => (await import("./compare.js")).register },
  { name: "sweep", load: async () => (await import("./sweep.js")).register },
  { name: "report", load: async () => (await import("./report.js")).register },
  { name: "generate", load: async () => (await import("./generate.js")).register },
  { name: "chat", load: async () => (await import("./chat.js")).register },
  { name: "serve", load: async () => (await import("./serve.js")).register },
  { name: "inspect", load: async () => (await import("./inspect.js")).register },
  { name: "bench", load: async () => (await import("./bench.js")).register },
  { name: "doctor", load: async () => (await import("./doctor.js")).register },
  { name: "build", load: async () => (await import("./build.js")).register },
  { name: "demo", load: async () => (await import("./demo.js")).register },
];
