/**
 * Run-time transforms in `transform_config`: each site of a block is a group of its own, whose linears multiply their
 * input by one matrix before it is quantized. The type is "random-hadamard", the one whose matrix is stored and that both
 * compressed-tensors and vLLM multiply by as it is and divide by the square root of its size; "hadamard" would do in
 * compressed-tensors, but vLLM computes that without looking at the stored matrix.
 */
import type { PackedTransform } from "../../backend/contract/packed.js";
import { sitesOf, type SitePlace } from "../../backend/contract/program.js";
import type { TensorEntry } from "../../checkpoint/safetensors.js";
import type { NamedBlock } from "../source.js";

/** Size of a site's matrix: its width, or that of one block where the same one repeats along the diagonal. */
function matrixSize({ width }: Pick<SitePlace, "width">, { left, right }: PackedTransform): number {
  return !left && right ? Math.sqrt(right.length) : width;
}

/** left ⊗ right as one row-major matrix, or its repeated block where `left` is absent. Row vectors are multiplied from the left. */
export function siteMatrix(
  place: Pick<SitePlace, "width">,
  { left, right }: PackedTransform,
): Float32Array {
  if (!left && right) return right;
  const { width } = place;
  const rows = Math.sqrt(left?.length ?? 1);
  const columns = width / rows;
  const matrix = new Float32Array(width * width);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++)
      for (let k = 0; k < rows; k++)
        for (let l = 0; l < columns; l++) {
          const inner = right ? right[j * columns + l] : j === l ? 1 : 0;
          matrix[(i * columns + j) * width + k * columns + l] = (left?.[i * rows + k] ?? 1) * inner;
        }
  return matrix;
}

/** A group of `transform_config` and the tensors that its linears need. */
export interface TransformGroup {
  readonly name: string;
  readonly scheme: Readonly<Record<string, unknown>>;
  readonly tensors: readonly TensorEntry[];
  /** Multiplications that each token costs beyond the model's own. */
  readonly operations: number;
}

/** The groups of a block: one for each site with a transform. */
export function transformGroups(named: NamedBlock): TransformGroup[] {
  const { layer, prefix, program } = named;
  return sitesOf(program).flatMap((place): TransformGroup[] => {
    const stored = named.block.transforms[place.site];
    if (!stored) return [];
    const size = matrixSize(place, stored);
    const name = `layer${layer}_${place.site}`;
    const modules = place.linears.map((role) => prefix + program.linears[role].path);
    const scaled = (): Float32Array => {
      const transform = named.block.transforms[place.site] ?? {};
      return siteMatrix(place, transform).map((value) => value * Math.sqrt(size));
    };
    return [
      {
        name,
        scheme: {
          type: "random-hadamard",
          apply: [{ targets: modules, location: "input", inverse: false, ignore: [] }],
          randomize: false,
          requires_grad: false,
          head_dim: size === place.width ? null : size,
          precision: "torch.float32",
        },
        tensors: modules.map((module) => ({
          name: `${module}.${name}_input.weight`,
          type: "F32" as const,
          shape: [size, size],
          data: scaled,
        })),
        operations: place.width * size,
      },
    ];
  });
}
