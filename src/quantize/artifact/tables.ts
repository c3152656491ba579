/** Embedding and head on symmetric grids of groups: rounded, stored and read. */
import type { QuantizedMatrix } from "../../backend/contract/packed.js";
import type { Scheme } from "../../backend/contract/scheme.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import type { HostTensor } from "../../backend/contract/packed.js";
import { readTensor } from "../../models/weights.js";
import { dequantized, roundInSingle, storedSteps, type Grid } from "../grids/groups.js";
import { readCodes } from "./block-tensors.js";
import { endLayerTensors, readDescribed, requireHeader, tableScaleName } from "./tensors.js";

/** The grid of a scheme's tables; undefined: they have 16 bits. */
export function tableGrid({
  tableBits,
  tableGroup,
}: Scheme): (Grid & { group: number }) | undefined {
  return tableBits && tableGroup ? { bits: tableBits, group: tableGroup } : undefined;
}

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
  const [codes, steps] = [name, tableScaleName(name)].map((wanted) => {
    const tensor = described.find((each) => each.name === wanted);
    if (!tensor) throw new Error(`${wanted} is no table`);
    return tensor;
  });
  requireHeader(checkpoint, codes);
  const rows = config.vocabSize;
  const columns = config.embeddingSize ?? config.hiddenSize;
  return {
    codes: readCodes(checkpoint, codes, rows, columns),
    scale: readDescribed(checkpoint, steps),
    group: scheme.tableGroup,
    bits: scheme.tableBits,
  };
}

/** Reads embedding and head for `loadEndLayers`: of an artifact its own, of an original rounded on the way. */
export function tableReader(
  checkpoint: Checkpoint,
  architecture: Architecture,
  config: ModelConfig,
  scheme: Scheme,
): ((name: string, shape: readonly number[]) => HostTensor) | undefined {
  const grid = tableGrid(scheme);
  if (!grid) return undefined;
  return (name, shape) => {
    const table = checkpoint.tensors.has(tableScaleName(name))
      ? readQuantizedTable(checkpoint, architecture, config, scheme, name)
      : roundTable(readTensor(checkpoint, name, shape).data, shape[1], grid);
    return { shape, data: dequantized(table.codes, shape[1], table) };
  };
}
