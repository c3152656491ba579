/**
 * Checkpoints whose weights are codes of a quantization that nothing here reads (`quantized/` has those that are read).
 * They are recognised by what `config.json` says, by names of tensors beside the weights and by element types, and
 * refused: codes taken for weights give a model that runs and talks nonsense.
 */
import { quoted, shown } from "../common/bounds.js";
import { PlanishError } from "../common/errors.js";
import type { StoredTensor } from "./checkpoint.js";
import { isJsonObject } from "./file-reader.js";

const REMEDY =
  "give the original full-precision model instead (16- or 32-bit safetensors, or GGUF), or one whose quantization_config names gptq, awq, compressed-tensors, fp8, mxfp4 or bitsandbytes";

/** Keys under which tools write how they quantized; the last is MLX's. */
export const CONFIG_KEYS = ["quantization_config", "compression_config", "quantization"] as const;

/**
 * @param file names the configuration in the error.
 * @throws PlanishError naming the format when the configuration says that weights are quantized.
 */
export function refuseQuantizedConfig(
  config: Readonly<Record<string, unknown>>,
  file: string,
): void {
  const key = CONFIG_KEYS.find((name) => config[name] !== undefined && config[name] !== null);
  if (key === undefined) return;
  throw new PlanishError(
    `${file}: ${key} says that the model is quantized already (${formatOf(key, config[key])}); ${REMEDY}`,
  );
}

function formatOf(key: string, value: unknown): string {
  if (!isJsonObject(value)) return shown(value);
  const method = value.quant_method ?? value.quant_algo ?? value.format ?? value.mode;
  const named = typeof method === "string" ? method : key === "quantization" ? "mlx" : undefined;
  const bits = value.bits ?? value.w_bit;
  const width = typeof bits === "number" ? `${bits} bits` : undefined;
  return [named, width].filter((part) => part !== undefined).join(", ") || shown(value);
}

/** Endings of tensor names that each format puts beside (or in place of) a weight. */
const FORMATS: readonly (readonly [string, RegExp])[] = [
  [
    "a Planish artifact",
    /^quantizer\.|\.(?:ln|o|up_gate|down|kcache)_trans\.|_cache_quantizer\.|\.act_quantizer\./,
  ],
  ["GPTQ or AWQ", /\.(?:qweight|qzeros|g_idx|scales)$/],
  ["FP8 in blocks", /[._]scale_inv$/],
  [
    "bitsandbytes",
    /\.(?:SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map)$|\.quant_state\./,
  ],
  ["compressed-tensors", /\.weight_(?:packed|shape|zero_point|g_idx|global_scale)$/],
  ["MXFP4", /_(?:blocks|scales)$/],
  ["quanto", /\.weight\._(?:data|scale|shift|qdata)$/],
  ["HQQ", /\.W_q$/],
  ["MLX", /\.biases$/],
  [
    "compressed-tensors or FP8",
    /[._](?:weight|input|output|act|k|v|q)_scale(?:_\d+)?$|\.(?:scale|zero_point|weight_scale_2)$/,
  ],
];

/**
 * @param used names of the tensors that are read as weights; only these need a floating-point type.
 * @throws PlanishError naming the format, or the type of weights that are codes.
 */
export function refuseQuantizedTensors(
  path: string,
  tensors: Iterable<StoredTensor>,
  used: ReadonlySet<string>,
): void {
  let codes: StoredTensor | undefined;
  for (const tensor of tensors) {
    const { name, type } = tensor;
    if (used.has(name)) {
      if (/^(?:[IU]\d+|BOOL|F8_.*)$/.test(type)) codes ??= tensor;
      continue;
    }
    const format = FORMATS.find(([, ending]) => ending.test(name))?.[0];
    if (format !== undefined)
      throw new PlanishError(
        `${path} is quantized already: tensor ${quoted(name, 120)} belongs to ${format}; ${REMEDY}`,
      );
  }
  if (codes)
    throw new PlanishError(
      `${path} is quantized already: tensor ${quoted(codes.name, 120)} holds ${codes.type.startsWith("F8") ? "8-bit floats" : "integers"} (${codes.type}), codes of a format that it does not name; ${REMEDY}`,
    );
}
