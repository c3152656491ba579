import type { HostLinear } from "../../backend/contract/packed.js";
/** A positive factor per channel that moves an activation's outliers into the weights that read it. */

/** Channels that never fire, and weights that are all zero, count as this much. */
const FLOOR = 1e-5;

/**
 * d_j = max_n|W[n,j]|^(1−α) / max_t|X[t,j]|^α, at least 1e-5: what the activation is multiplied with, and the weights
 * divided by. Source: docs/methods.md, flatquant; it is the inverse of SmoothQuant's s_j (Xiao et al., ICML
 * 2023, equation 4).
 */
export function balancingDiag(
  linears: readonly HostLinear[],
  activationMax: Float64Array,
  alpha: number,
): Float64Array {
  const cols = activationMax.length;
  const weightMax = new Float64Array(cols);
  for (const { weight } of linears)
    for (let i = 0; i < weight.data.length; i++) {
      const value = Math.abs(weight.data[i]);
      const j = i % cols;
      if (value > weightMax[j]) weightMax[j] = value;
    }
  return Float64Array.from(weightMax, (w, j) =>
    Math.max(Math.max(w, FLOOR) ** (1 - alpha) / Math.max(activationMax[j], FLOOR) ** alpha, FLOOR),
  );
}
