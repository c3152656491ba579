/**
 * A block's full-precision weights in a file of its own: safetensors by the names that its program has for them, each in
 * the narrowest type that holds it exactly. A worker needs no model then, whatever format the source has.
 */
import type { HostTensor } from "../../backend/contract/packed.js";
import type { BlockProgram, LinearPlace, NormPlace } from "../../backend/contract/program.js";
import { halfFloats } from "../../checkpoint/element-types.js";
import {
  openSafetensors,
  writeSafetensors,
  type TensorEntry,
} from "../../checkpoint/safetensors.js";
import type { TensorStore } from "../../checkpoint/tensor-store.js";
import { quoted } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { floatToHalfBits } from "../../common/half.js";
import { mapValues } from "../../common/records.js";
import { firstNonFinite, type HostBlock } from "../../models/weights.js";

/** Writes a block to `path`, whole or not at all. */
export async function writeBlock(path: string, block: HostBlock): Promise<void> {
  const entries: TensorEntry[] = [];
  const add = (name: string, tensor: HostTensor | undefined): void => {
    if (tensor) entries.push(entryOf(name, tensor));
  };
  for (const [name, { gain, bias }] of Object.entries(block.norms)) {
    add(`norms/${name}/gain`, gain);
    add(`norms/${name}/bias`, bias);
  }
  for (const [name, { weight, bias }] of Object.entries(block.linears)) {
    add(`linears/${name}/weight`, weight);
    add(`linears/${name}/bias`, bias);
  }
  for (const [name, tensor] of Object.entries(block.kept)) add(`kept/${name}`, tensor);
  await writeSafetensors(path, entries, {}, { maxShardBytes: Infinity });
}

function entryOf(name: string, { shape, data }: HostTensor): TensorEntry {
  const floats = data instanceof Float32Array ? data : Float32Array.from(data);
  const bits = new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
  if (bits.every((value) => (value & 0xffff) === 0))
    return { name, type: "BF16", shape, data: () => Uint16Array.from(bits, (v) => v >>> 16) };
  if (floats.every((value) => halfFloats()[floatToHalfBits(value)] === value))
    return { name, type: "F16", shape, data: () => Uint16Array.from(floats, floatToHalfBits) };
  return { name, type: "F32", shape, data: () => floats };
}

/** @throws PlanishError when a tensor is missing, of another shape than the program's, or not finite. */
export function readBlockFile(path: string, program: BlockProgram): HostBlock {
  using store = openSafetensors(path).store;
  const find = (name: string, shape: readonly number[]): HostTensor => {
    const found = readOptional(store, name, shape, path);
    if (found) return found;
    throw new PlanishError(`${path}: tensor ${quoted(name)} is missing`);
  };
  const norm = (place: NormPlace, name: string) => ({
    path: place.path,
    gain: find(`norms/${name}/gain`, [place.width]),
    bias: readOptional(store, `norms/${name}/bias`, [place.width], path),
  });
  const linear = (place: LinearPlace, name: string) => ({
    path: place.path,
    weight: find(`linears/${name}/weight`, place.shape),
    bias: readOptional(store, `linears/${name}/bias`, [place.shape[0]], path),
  });
  return {
    norms: mapValues(program.norms, norm),
    linears: mapValues(program.linears, linear),
    kept: mapValues(program.kept, ({ shape }, name) => find(`kept/${name}`, shape)),
  };
}

function readOptional(
  store: TensorStore,
  name: string,
  shape: readonly number[],
  path: string,
): HostTensor | undefined {
  const stored = store.tensors.get(name);
  if (!stored) return undefined;
  if (stored.shape.length !== shape.length || stored.shape.some((n, i) => n !== shape[i]))
    throw new PlanishError(
      `${path}: tensor ${quoted(name)} is [${stored.shape.join(", ")}], the model's configuration implies [${shape.join(", ")}]`,
    );
  const data = store.read(name);
  const at = firstNonFinite(data);
  if (at >= 0) throw new PlanishError(`${path}: tensor ${quoted(name)} holds ${data[at]} at ${at}`);
  return { shape, data };
}
