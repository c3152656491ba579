/** What methods report of each linear, over a whole model. */
import type { LinearFacts } from "./method.js";

/** Facts of linears by block and path, as `quantization.json` and reports hold them. */
export type LayersOfFacts = readonly {
  readonly linears?: Readonly<Record<string, LinearFacts>>;
}[];

export interface BitSummary {
  /** Share of the linears' multiply-adds that run at 4 bits, extra columns counted. */
  readonly fourBitShare: number;
  /** Multiply-adds over those without extra columns: K'/K of the whole model. */
  readonly expansion: number;
}

/** Undefined where the method decides no bits by linear. */
export function summarizeBits(layers: LayersOfFacts): BitSummary | undefined {
  let all = 0;
  let four = 0;
  let plain = 0;
  for (const { linears } of layers)
    for (const { bits, multiplyAdds, expansion } of Object.values(linears ?? {})) {
      if (typeof multiplyAdds !== "number" || typeof expansion !== "number") continue;
      all += multiplyAdds;
      plain += multiplyAdds / expansion;
      if (bits === 4) four += multiplyAdds;
    }
  return all > 0 ? { fourBitShare: four / all, expansion: all / plain } : undefined;
}
