/** Reading an artifact whole, to find out whether it is what was written. */
import { openArtifact } from "./artifact.js";
import { readCodes } from "./block-tensors.js";
import { artifactProblems } from "./consistency.js";
import { damaged, endLayerTensors, readDescribed } from "./tensors.js";
import { readQuantizationInfo } from "./quantization-info.js";

export interface VerifiedArtifact {
  readonly path: string;
  readonly planishVersion: string;
  /** Files whose hashes are right. */
  readonly files: number;
  /** The artifact is of a version that kept no hashes. */
  readonly unrecorded: boolean;
  readonly tensors: number;
  readonly bytes: number;
}

/**
 * Checks the hash of every file, then every tensor's form and values.
 * @throws PlanishError naming the files, or the tensor, that are not as they were written.
 */
export function verifyArtifact(path: string): VerifiedArtifact {
  const info = readQuantizationInfo(path);
  const { files, planishVersion } = info;
  const problems = artifactProblems(path, info);
  if (problems.length > 0) throw damaged(path, problems.join("; "));
  using artifact = openArtifact(path);
  const { checkpoint, architecture, config, scheme } = artifact;
  for (const described of endLayerTensors(architecture, config, scheme)) {
    if (!checkpoint.tensors.has(described.name)) continue;
    // Headers are right, or the artifact would not be open; of codes a row's number is the vocabulary's.
    if (described.packing)
      readCodes(checkpoint, described, config.vocabSize, config.embeddingSize ?? config.hiddenSize);
    else readDescribed(checkpoint, described);
  }
  for (let layer = 0; layer < config.numLayers; layer++) artifact.block(layer);
  const tensors = [...checkpoint.tensors.values()];
  return {
    path,
    planishVersion,
    files: Object.keys(files ?? {}).length,
    unrecorded: files === undefined,
    tensors: tensors.length,
    bytes: tensors.reduce((sum, tensor) => sum + tensor.bytes, 0),
  };
}
