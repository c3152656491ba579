/** Recipe files, for every method. */
import { LIMITS } from "../../../src/common/bounds.js";
import { readRecipe } from "../../../src/cli/commands/recipe-file.js";
import { resolveRecipe } from "../../../src/quantize/run/pipeline.js";
import { METHODS } from "../../../src/quantize/methods/index.js";
import { ensure, ensureFinite, type Target } from "../target.js";
import { decode, encode, JsonBase, pick } from "../mutate.js";
import { scratchFile } from "../scratch.js";

const BASES = METHODS.flatMap(({ name, presets }) =>
  Object.values(presets).map((preset) => ({
    name,
    base: new JsonBase(preset, ["samples", "seqLen", "epochs", "batch"]),
  })),
);

export const recipeTarget: Target = {
  name: "recipe",
  generate(random) {
    const { name, base } = pick(random, BASES);
    return encode(`${name}\n${base.mutated(random)}`);
  },
  run(input) {
    const text = decode(input);
    const end = text.indexOf("\n");
    const method = METHODS.find(({ name }) => name === text.slice(0, end)) ?? METHODS[0];
    const { recipe } = resolveRecipe(
      method,
      undefined,
      readRecipe(scratchFile("recipe.json", text.slice(end + 1))),
    );
    ensureFinite(recipe);
    const need = method.calibration(recipe);
    if (need === undefined) return;
    for (const [name, value] of Object.entries(need))
      if (typeof value === "number")
        ensure(
          Number.isSafeInteger(value) && value >= 0 && value <= LIMITS.samples ** 2,
          `${name} is ${value}`,
        );
    ensure(
      need.samples <= LIMITS.samples && need.seqLen <= LIMITS.tokens,
      `${need.samples} windows of ${need.seqLen}`,
    );
  },
};
