import { defineConfig } from "vite";

export default defineConfig({
  build: {
    // For Node.js, not for the browser.
    ssr: true,
    target: "node20",
    rollupOptions: {
      input: {
        app: "app.mjs",
        "engine-thread": "planish/engine-thread",
        "prompt-process": "planish/prompt-process",
      },
      output: { entryFileNames: "[name].js" },
    },
  },
  ssr: {
    noExternal: true,
    // A native module: it stays in node_modules, as the kernels do (@planish/native-…).
    external: ["koffi"],
  },
});
