/**
 * Lint rules: typescript-eslint's strict, type-checked set; every exception gives its reason. Layout belongs to
 * prettier, and no rule here concerns it.
 */

import js from "@eslint/js";
import { defineConfig, globalIgnores } from "eslint/config";
import tseslint from "typescript-eslint";

/** Rooms from the ground up; a file may import from its own room and from those before it. */
const ROOMS = [
  ["common"],
  ["backend"],
  ["tensor", "checkpoint"],
  ["models"],
  ["quantize"],
  ["formats"],
  ["engine"],
  ["evaluate"],
  ["measure", "experiments"],
  ["serve"],
  ["cli"],
];

/** For each room, a rule that refuses imports from the rooms above it. */
const downwardOnly = ROOMS.flatMap((rooms, level) => {
  const above = ROOMS.slice(level + 1).flat();
  if (above.length === 0) return [];
  return rooms.map((room) => ({
    files: [`src/${room}/**/*.ts`],
    rules: {
      "no-restricted-imports": [
        "error",
        {
          patterns: [
            {
              regex: `^(\\.\\./)+(${above.join("|")})/`,
              message: `src/${room} knows only the rooms below it.`,
            },
          ],
        },
      ],
    },
  }));
});

export default defineConfig(
  globalIgnores(["dist/", "native/build/", "coverage/", "models/", "data/", "out/", ".carry/"]),
  js.configs.recommended,
  {
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      // Numbers in messages are what this project prints.
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      // Without noUncheckedIndexedAccess (a "!" on every element of every numeric loop) an element, a regular
      // expression's group or a record's entry counts as present: the rule would forbid checking that it is.
      "@typescript-eslint/no-unnecessary-condition": "off",
      // `x!` marks what the surrounding loop bounds already guarantee.
      "@typescript-eslint/no-non-null-assertion": "off",
      // One-line arrow functions around void calls read well as callbacks.
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      "@typescript-eslint/no-unused-vars": [
        "error",
        { argsIgnorePattern: "^_", varsIgnorePattern: "^_" },
      ],
      "@typescript-eslint/consistent-type-imports": "error",
      "no-console": "error",
      eqeqeq: "error",
    },
  },
  {
    files: ["test/**/*.ts"],
    rules: {
      // Matchers such as expect.any return any by design.
      "@typescript-eslint/no-unsafe-assignment": "off",
    },
  },
  {
    files: ["**/*.{js,mjs,cjs}"],
    languageOptions: {
      globals: {
        process: "readonly",
        console: "readonly",
        URL: "readonly",
        fetch: "readonly",
        setTimeout: "readonly",
      },
    },
  },
  {
    // Programs whose output is the point.
    files: ["examples/**/*.ts"],
    rules: { "no-console": "off" },
  },
  {
    // Scripts of pages; types are checked by assets/tsconfig.json.
    files: ["assets/**/*.js"],
    languageOptions: {
      globals: {
        ...Object.fromEntries(
          "document addEventListener localStorage navigator fetch performance setTimeout requestAnimationFrame AbortController TextDecoderStream Plot marked DOMPurify"
            .split(" ")
            .map((name) => [name, "readonly"]),
        ),
      },
    },
  },
  ...downwardOnly,
);
