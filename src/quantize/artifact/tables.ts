/** Embedding and head on symmetric grids of groups: rounded, stored and read. */
import type { QuantizedMatrix } from "../../backend/contract/packed.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import type { HostTensor } from "../../backend/contract/packed.js";
import { readTensor } from "../../models/weights.js";
import { dequantized, roundInSingle, storedSteps, type Grid } from "../grids/groups.js";
import { readCodes } from "./block-tensors.js";
import {
  endLayerTensors,
  gridOfTable,
  readDescribed,
  requireHeader,
  tableOffsetName,
  tableScaleName,
} from "./tensors.js";

/** A table rounded to nearest, with steps as they are stored. */
export function roundTable(
  data: HostTensor["data"],
  columns: number,
  grid: Grid,
): QuantizedMatrix & { readonly bits: number } {
  return storedSteps(roundInSingle(data, columns, grid));
}

/** Reads a table of an artifact. @throws PlanishError when it is missing or holds what cannot be. */
export function readQuantizedTable(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
  name: string,
): QuantizedMatrix {
  const described = endLayerTensors(architecture, config, scheme);
  const tensorOf = (wanted: string) => described.find((each) => each.name === wanted);
  const codes = tensorOf(name);
  const steps = tensorOf(tableScaleName(name));
  const offsets = tensorOf(tableOffsetName(name));
  const grid = gridOfTable(scheme, name);
  if (!codes || !steps || !grid) throw new Error(`${name} is no table`);
  requireHeader(checkpoint, codes);
  const rows = config.vocabSize;
  const columns = config.embeddingSize ?? config.hiddenSize;
  return {
    codes: readCodes(checkpoint, codes, rows, columns),
    scale: readDescribed(checkpoint, steps),
    ...(offsets && { offset: readDescribed(checkpoint, offsets) }),
    group: grid.group,
    bits: grid.bits,
  };
}

/** Reads embedding and head for `loadEndLayers`: of an artifact its own, of an original rounded on the way. */
export function tableReader(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
): ((name: string, shape: readonly number[]) => HostTensor) | undefined {
  if (!scheme.tableBits && !scheme.tables) return undefined;
  return (name, shape) => {
    const grid = gridOfTable(scheme, name);
    if (!grid) return readTensor(checkpoint, name, shape);
    const table = checkpoint.tensors.has(tableScaleName(name))
      ? readQuantizedTable(checkpoint, architecture, config, scheme, name)
      : roundTable(readTensor(checkpoint, name, shape).data, shape[1], grid);
    return { shape, data: dequantized(table.codes, shape[1], table) };
  };
}
