export default {
  mode: "production",
  target: "node20",
  entry: {
    app: "./app.mjs",
    "engine-thread": "planish/engine-thread",
    "prompt-process": "planish/prompt-process",
  },
  experiments: { outputModule: true },
  output: { module: true, filename: "[name].js", chunkFormat: "module" },
  // Files are found beside the bundle at run time, not where the sources lay when it was built.
  module: {
    parser: { javascript: { createRequire: false, importMeta: false, url: false, worker: false } },
  },
  // A native module: it stays in node_modules, as the kernels do (@planish/native-…).
  externals: { koffi: "node-commonjs koffi" },
  performance: { hints: false },
};
