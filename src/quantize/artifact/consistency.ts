/** Whether an artifact's files belong together: each was written with the others, and they say the same of the whole. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { parseJson, shown } from "../../common/bounds.js";
import { fileProblems } from "../../checkpoint/file-record.js";
import { isJsonObject } from "../../checkpoint/file-reader.js";
import { QUANTIZATION_FILE, type QuantizationInfo } from "./quantization-info.js";

/** What readers of a model's directory look for. Other files beside an artifact are nobody's business. */
const READ = [
  "config.json",
  "generation_config.json",
  "model.safetensors",
  "parameters.safetensors",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
  "chat_template.json",
];

/**
 * What is wrong with the files of a directory by the records of an artifact, each in words; nothing where there are no
 * records. Files above `hashedBytes` are held against their sizes only.
 */
export function artifactProblems(
  path: string,
  { files }: QuantizationInfo,
  hashedBytes = Infinity,
): string[] {
  if (files === undefined) return [];
  const strangers = READ.filter((name) => !Object.hasOwn(files, name)).filter((name) =>
    existsSync(join(path, name)),
  );
  return [
    ...fileProblems(path, files, hashedBytes),
    ...strangers.map((name) => `${name} would be read, and was not written with it`),
  ];
}

/** Which part of `quantization.json` the weights contradict; undefined: none. What saved them again may have dropped it. */
export function weightsProblem(
  { method, scheme }: QuantizationInfo,
  metadata: Readonly<Record<string, string>> = {},
): string | undefined {
  if (metadata.quantization === undefined) return undefined;
  const stored = parseJson(metadata.quantization, "model.safetensors: quantization");
  if (!isJsonObject(stored)) return "model.safetensors does not say how it was quantized";
  for (const [field, value] of Object.entries({ method, scheme }))
    if (stored[field] !== value)
      return `${field} is ${shown(value)} in ${QUANTIZATION_FILE}, and ${shown(stored[field])} in model.safetensors`;
  return undefined;
}
