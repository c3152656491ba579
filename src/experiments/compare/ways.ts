/**
 * What `--methods` may name: the model as it is (`fp16`), a quantization method, or `gptq`, which is plain grids with
 * GPTQ's rounding. `name:preset` picks a preset, and `name+gptq` rounds any method's weights by GPTQ.
 */
import { UsageError } from "../../common/errors.js";
import { findMethod, METHODS, type AnyMethod } from "../../quantize/methods/index.js";

/** One row of a comparison. */
export interface Way {
  /** As the user wrote it; names the row and its files. */
  readonly name: string;
  /** Absent: the model as it is. */
  readonly quantize?: {
    readonly method: AnyMethod;
    /** Absent: the method's default. */
    readonly preset?: string;
    readonly recipe: Readonly<Record<string, unknown>>;
  };
}

export const FULL_PRECISION = "fp16";

/** The methods that a comparison may name, for help texts and errors. */
export function wayNames(): string[] {
  return [FULL_PRECISION, "gptq", ...METHODS.map(({ name }) => name)];
}

/**
 * Reads a list of ways. A preset that is given for all goes to the methods that have one of that name.
 * @throws UsageError for unknown methods and presets, and for a name given twice.
 */
export function parseWays(names: readonly string[], preset?: string): Way[] {
  const repeated = names.find((name, i) => names.indexOf(name) !== i);
  if (repeated !== undefined)
    throw new UsageError(`method "${repeated}" is named twice; name it once`);
  if (names.length === 0)
    throw new UsageError(`no methods were named; accepted: ${wayNames().join(", ")}`);
  const ways = names.map((name) => parseWay(name, preset));
  const quantized = ways.flatMap(({ quantize }) => quantize ?? []);
  if (
    preset !== undefined &&
    !quantized.some(({ method }) => Object.hasOwn(method.presets, preset))
  )
    throw new UsageError(
      `none of the methods has a preset "${preset}"; accepted: ${presetsOf(quantized.map(({ method }) => method))}`,
    );
  return ways;
}

function parseWay(text: string, preset: string | undefined): Way {
  const match = /^([a-z0-9]+)(?::([a-z0-9]+))?(\+gptq)?$/.exec(text);
  if (!match)
    throw new UsageError(
      `"${text}" is no method; write name, name:preset or name+gptq, with a name of ${wayNames().join(", ")}`,
    );
  const [, base, own, plus] = match as unknown as [string, string, string?, string?];
  if (base === FULL_PRECISION) {
    if (own !== undefined || plus !== undefined)
      throw new UsageError(
        `${FULL_PRECISION} is the model as it is; write it without "${text.slice(4)}"`,
      );
    return { name: text };
  }
  if (base !== "gptq" && !METHODS.some(({ name }) => name === base))
    throw new UsageError(`method "${base}" is unknown; accepted: ${wayNames().join(", ")}`);
  const method = findMethod(base === "gptq" ? "rtn" : base);
  if (own !== undefined && !Object.hasOwn(method.presets, own))
    throw new UsageError(
      `method "${method.name}" has no preset "${own}"; accepted: ${presetsOf([method])}`,
    );
  const shared = preset !== undefined && Object.hasOwn(method.presets, preset) ? preset : undefined;
  const byGptq = base === "gptq" || plus !== undefined;
  return {
    name: text,
    quantize: { method, preset: own ?? shared, recipe: byGptq ? { rounding: "gptq" } : {} },
  };
}

function presetsOf(methods: readonly AnyMethod[]): string {
  return methods
    .map(({ name, presets }) => `${Object.keys(presets).join(", ")} for ${name}`)
    .join("; ");
}
