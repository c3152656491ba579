import { build } from "esbuild";

await build({
  entryPoints: {
    app: "app.mjs",
    "engine-thread": "planish/engine-thread",
    "prompt-process": "planish/prompt-process",
  },
  outdir: "dist",
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  // A native module: it stays in node_modules, as the kernels do (@planish/native-…).
  external: ["koffi"],
  // For dependencies that are CommonJS.
  banner: {
    js: 'import { createRequire as createRequireOfBundle } from "node:module"; const require = createRequireOfBundle(import.meta.url);',
  },
});
