/**
 * Checkpoints whose weights are quantized already, as sources: a reader for each format turns codes and scales into the
 * dense tensors that they stand for, and everything above this room sees a model of 16- or 32-bit weights.
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { Checkpoint, QuantizedForm, StoredTensor } from "../checkpoint.js";
import { ELEMENT_BYTES } from "../element-types.js";
import { isJsonObject, readJsonObject } from "../file-reader.js";
import { floatsToHalfBytes } from "../../common/half.js";
import { CONFIG_KEYS, refuseQuantizedConfig } from "../quantized-source.js";
import { elementCount, type TensorStore } from "../tensor-store.js";
import { readAwq } from "./awq.js";
import { readBitsAndBytes } from "./bitsandbytes.js";
import { readCompressedTensors } from "./compressed-tensors.js";
import { readFp8 } from "./fp8.js";
import { readGptq } from "./gptq.js";
import { readMxfp4 } from "./mxfp4.js";
import {
  StoredSource,
  type DenseType,
  type QuantizedReader,
  type QuantizedTensor,
  type Settings,
} from "./reading.js";

/** By `quant_method`. */
const READERS: Readonly<Record<string, QuantizedReader>> = {
  awq: readAwq,
  bitsandbytes: readBitsAndBytes,
  "compressed-tensors": readCompressedTensors,
  fp8: readFp8,
  gptq: readGptq,
  mxfp4: readMxfp4,
};

/** Files in which older tools left the settings of a method, beside or instead of `config.json`. */
const SETTINGS_FILES = { "quantize_config.json": "gptq", "quant_config.json": "awq" } as const;

/** What a quantized checkpoint looks like from above; the rest of a Checkpoint is as in any directory. */
export type QuantizedParts = Pick<
  Checkpoint,
  "config" | "tensors" | "read" | "readBytes" | "hash" | "quantized"
>;

/** The settings of a directory whose weights are quantized, and the method that reads them. */
export interface QuantizedSettings extends Settings {
  readonly method: string;
}

/**
 * Finds out whether a directory's weights are quantized, and by what.
 * @throws PlanishError when it is by something that is not read, or its files disagree.
 */
export function findQuantization(
  directory: string,
  config: Readonly<Record<string, unknown>>,
): QuantizedSettings | undefined {
  const files = Object.entries(SETTINGS_FILES).flatMap(([name, method]) => {
    const path = join(directory, name);
    return existsSync(path) ? [{ where: path, value: readJsonObject(path), method }] : [];
  });
  const key = CONFIG_KEYS.find((name) => config[name] !== undefined && config[name] !== null);
  if (key === undefined) {
    if (files.length > 1)
      throw new PlanishError(
        `${directory} holds both ${files.map(({ where }) => where).join(" and ")}; remove the one that its weights do not follow`,
      );
    return files[0];
  }
  const where = `${key} of config.json`;
  const value = config[key];
  const method = isJsonObject(value) ? methodOf(key, value) : undefined;
  if (method === undefined || !isJsonObject(value) || !Object.hasOwn(READERS, method)) {
    refuseQuantizedConfig(config, join(directory, "config.json"));
    return undefined;
  }
  for (const file of files)
    if (file.method === method) refuseDisagreement(directory, where, value, file);
  return { where, value, method };
}

function methodOf(key: string, value: Record<string, unknown>): string | undefined {
  if (typeof value.quant_method === "string") return value.quant_method;
  // Written before transformers knew the method.
  return key === "compression_config" && isJsonObject(value.config_groups)
    ? "compressed-tensors"
    : undefined;
}

/** Settings that change what codes mean, and have one name in both places. */
const DECISIVE = [
  "bits",
  "group_size",
  "desc_act",
  "sym",
  "checkpoint_format",
  "w_bit",
  "q_group_size",
];

function refuseDisagreement(
  directory: string,
  where: string,
  value: Readonly<Record<string, unknown>>,
  file: Settings,
): void {
  const key = DECISIVE.find(
    (name) =>
      (value[name] ?? undefined) !== undefined &&
      (file.value[name] ?? undefined) !== undefined &&
      value[name] !== file.value[name],
  );
  if (key !== undefined)
    throw new PlanishError(
      `${directory}: ${key} is ${shown(value[key])} in ${where} and ${shown(file.value[key])} in ${file.where}; fetch the model again, or remove the one that its weights do not follow`,
    );
}

/** Element types of models by their names in `config.json`. */
const MODEL_TYPES = new Map<unknown, DenseType>([
  ["bfloat16", "BF16"],
  ["float16", "F16"],
  ["float32", "F32"],
]);

/**
 * Opens the quantized weights of a directory.
 * @throws PlanishError naming what of its settings or tensors is missing, foreign or contradictory.
 */
export function openQuantized(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  settings: QuantizedSettings,
  store: TensorStore,
): QuantizedParts {
  const modelType = MODEL_TYPES.get(config.dtype ?? config.torch_dtype);
  const source = new StoredSource(directory, settings, modelType, store);
  const reading = READERS[settings.method](source);
  if (reading.tensors.length === 0)
    throw new PlanishError(
      `${directory}: ${settings.where} says that the model is quantized (${settings.method}), and none of its tensors is; correct config.json, or fetch the model again`,
    );
  const parts = new Set([...reading.dropped, ...reading.tensors.flatMap((tensor) => tensor.parts)]);
  const dense = new Map(reading.tensors.map((tensor) => [tensor.name, tensor]));
  const tensors = new Map<string, StoredTensor>();
  for (const [name, tensor] of store.tensors) {
    if (parts.has(name)) continue;
    if (dense.has(name)) source.refuse(`tensor ${quoted(name, 120)} is stored beside its codes`);
    tensors.set(name, tensor);
  }
  for (const tensor of reading.tensors) {
    const { name, shape, type } = tensor;
    const { file } = store.tensors.get(tensor.parts[0]) as StoredTensor;
    tensors.set(name, {
      name,
      shape,
      type,
      file,
      bytes: elementCount(shape) * ELEMENT_BYTES[type],
    });
  }
  const quantized: QuantizedForm = {
    method: settings.method,
    grid: reading.grid,
    tensors: reading.tensors.map(({ name }) => name),
    bytes: [...parts].reduce((sum, name) => sum + (store.tensors.get(name)?.bytes ?? 0), 0),
    notes: reading.notes,
  };
  return {
    config: Object.fromEntries(
      Object.entries(config).filter(([key]) => !(CONFIG_KEYS as readonly string[]).includes(key)),
    ),
    tensors,
    quantized,
    read: (name) => dense.get(name)?.read() ?? store.read(present(tensors, name)),
    readBytes: (name) => {
      const tensor = dense.get(name);
      return tensor ? denseBytes(tensor) : store.readBytes(present(tensors, name));
    },
    hash: async () =>
      createHash("sha256")
        .update(`${await store.hash()}\n${JSON.stringify(settings.value)}`)
        .digest("hex"),
  };

  /** Codes and scales are not to be had by their own names: nobody who asks for them knows what they are. */
  function present(known: ReadonlyMap<string, StoredTensor>, name: string): string {
    if (!known.has(name) && parts.has(name))
      throw new PlanishError(
        `${directory}: tensor ${quoted(name, 120)} is part of a quantized weight; read the weight itself`,
      );
    return name;
  }
}

/** A dense tensor as its type stores it; exact, since its values are of that type. */
function denseBytes(tensor: QuantizedTensor): Uint8Array {
  const values = tensor.read();
  if (tensor.type === "F16") return floatsToHalfBytes(values, tensor.name);
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  if (tensor.type === "F32") return bytes;
  const halves = new Uint16Array(values.length);
  const words = new Uint16Array(bytes.buffer, bytes.byteOffset, 2 * values.length);
  for (let i = 0; i < halves.length; i++) halves[i] = words[2 * i + 1];
  return new Uint8Array(halves.buffer);
}
