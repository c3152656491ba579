/** RMS and layer normalisation over the last axis. */
import type { Graph, Tensor } from "../tensor.js";

export interface NormOptions {
  readonly kind: "rms" | "layer";
  readonly gain: Tensor;
  /** Layer norm only. */
  readonly bias?: Tensor;
  readonly epsilon: number;
}

/** rms: x·gain/√(mean x² + ε). layer: (x − mean)·gain/√(var + ε) + bias. Rows are as wide as the gain. */
export function norm(g: Graph, x: Tensor, options: NormOptions): Tensor {
  const { kind, gain, bias, epsilon } = options;
  const cols = gain.size;
  const rows = x.size / cols;
  const out = g.real(x.size);
  const shared = { kind, x: g.values(x), rows, cols, gain: g.values(gain), epsilon };
  g.kernels.norm({ ...shared, bias: bias && g.values(bias), out });
  return g.result(x.shape, out, [x, gain, bias], (grad) => {
    const gradX = g.gradientFor(x);
    const gradGain = g.gradientFor(gain);
    const gradBias = g.gradientFor(bias);
    g.kernels.normBackward({ ...shared, grad, gradX, gradGain, gradBias });
    g.accumulate(x, gradX);
    g.accumulate(gain, gradGain);
    g.accumulate(bias, gradBias);
  });
}
