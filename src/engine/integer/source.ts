/** What an engine is built from: an artifact's packed blocks, or an original's as blocks without grids. */
import type { PackedKind } from "../../backend/cpu/engine-kernels.js";
import type { Checkpoint } from "../../checkpoint/checkpoint.js";
import { openCheckpoint } from "../../checkpoint/open.js";
import { PlanishError } from "../../common/errors.js";
import { mapValues } from "../../common/records.js";
import { parseSource } from "../../models/source.js";
import type { Architecture, ModelConfig } from "../../models/config.js";
import { readBlock, type HostBlock } from "../../models/weights.js";
import { isArtifact, openArtifact } from "../../quantize/artifact.js";
import type { PackedBlock, PackedLinear } from "../../quantize/packed-block.js";
import { formatScheme, parseScheme, type Scheme } from "../../quantize/scheme.js";
import { singles } from "./outer.js";

export interface EngineSource extends Disposable {
  readonly checkpoint: Checkpoint;
  readonly architecture: Architecture;
  readonly config: ModelConfig;
  readonly scheme: Scheme;
  block(layer: number): PackedBlock;
}

/** @throws PlanishError when the path holds no model. The caller disposes the source once the engine is built. */
export function openSource(path: string): EngineSource {
  if (isArtifact(path)) return openArtifact(path);
  const checkpoint = openCheckpoint(path);
  try {
    const { architecture, config } = parseSource(checkpoint);
    return {
      checkpoint,
      architecture,
      config,
      scheme: parseScheme("w16a16kv16"),
      block: (layer) => unquantized(readBlock(checkpoint, architecture, config, layer)),
      [Symbol.dispose]: () => checkpoint[Symbol.dispose](),
    };
  } catch (error) {
    checkpoint[Symbol.dispose]();
    throw error;
  }
}

function unquantized(host: HostBlock): PackedBlock {
  const linears = mapValues(host.linears, ({ path, weight, bias }): PackedLinear => ({
    path,
    shape: [weight.shape[0], weight.shape[1]],
    weight: singles(weight.data),
    bias: bias && singles(bias.data),
  }));
  return { norms: host.norms, linears, transforms: {} };
}

/** How a scheme's linears are kept and multiplied. @throws PlanishError for the schemes that have no such kernel. */
export function linearKind(scheme: Scheme): PackedKind {
  const { weightBits, activationBits } = scheme;
  if (weightBits >= 16 && activationBits >= 16) return "bf16Bf16";
  if (weightBits >= 16)
    throw new PlanishError(
      `scheme ${formatScheme(scheme)} has no integer kernels: activations of ${activationBits} bits need weights below 16; ` +
        "run it simulated (planish eval, planish generate)",
    );
  if (activationBits >= 16) return weightBits <= 4 ? "int4F32" : "int8F32";
  return weightBits <= 4 ? "int4" : "int8";
}
