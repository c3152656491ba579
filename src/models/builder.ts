/** Writes block programs: what an architecture's lowering calls, step by step, in the order of the arithmetic. */
import {
  BLOCK_INPUT,
  type Activation,
  type AttentionStep,
  type BlockProgram,
  type LinearName,
  type LinearPlace,
  type LinearSite,
  type NormName,
  type NormPlace,
  type NormStep,
  type Rotary,
  type StoredRows,
  type Step,
  type ValueName,
} from "../backend/contract/program.js";

/** A linear or norm of the checkpoint: the part it plays, its path inside the block, and where it is stored otherwise. */
export interface Named {
  readonly name: string;
  readonly path: string;
  readonly stored?: StoredRows;
}

export interface NamedLinear extends Named, Pick<LinearPlace, "factor"> {
  /** Output features. */
  readonly out: number;
}

export interface NamedNorm extends Named, Pick<NormPlace, "offset"> {
  /** Channels of the gain, where groups have gains of their own. */
  readonly channels?: number;
}

/** How a norm computes, whichever it is. */
export type NormKind = Pick<NormStep, "kind" | "epsilon">;

export class BlockBuilder {
  private readonly steps: Step[] = [];
  private readonly linears: Record<LinearName, LinearPlace> = {};
  private readonly norms: Record<NormName, NormPlace> = {};
  private readonly taken = new Map<string, number>();

  /** The value that enters the block. */
  readonly input: ValueName = BLOCK_INPUT;

  /** `width`: of the groups that are normalized, a row's or a head's channels. */
  norm(x: ValueName, place: NamedNorm, width: number, { kind, epsilon }: NormKind): ValueName {
    const { name, channels, ...rest } = place;
    const out = this.fresh(`${name}_normed`);
    this.norms[name] = { ...rest, width: channels ?? width };
    this.steps.push({ op: "norm", norm: name, kind, width, epsilon, x, out });
    return out;
  }

  /** What `linears` read; `shapes` are [out, in] with one `in`. Returns their outputs in order. */
  site(
    x: ValueName,
    site: LinearSite,
    linears: readonly NamedLinear[],
    width: number,
  ): ValueName[] {
    const read = this.fresh(site);
    this.steps.push({ op: "site", site, width, x, out: read });
    return linears.map(({ name, out: rows, ...rest }) => {
      const out = this.fresh(name);
      this.linears[name] = { ...rest, shape: [rows, width] };
      this.steps.push({ op: "product", linear: name, x: read, out });
      return out;
    });
  }

  rope(x: ValueName, rotary: Rotary, heads: number, headDim: number): ValueName {
    const out = this.fresh(`${x}_rotated`);
    this.steps.push({ op: "rope", rotary, heads, headDim, x, out });
    return out;
  }

  /** Queries, keys and values through the cache to mixed values. */
  attention(
    values: { readonly q: ValueName; readonly k: ValueName; readonly v: ValueName },
    shape: Omit<AttentionStep, "op" | "q" | "k" | "v" | "out">,
  ): ValueName {
    const { heads, kvHeads, headDim } = shape;
    const [q, k] = [this.fresh("queries"), this.fresh("keys")];
    this.steps.push({ op: "head", part: "query", heads, headDim, x: values.q, out: q });
    this.steps.push({ op: "head", part: "key", heads: kvHeads, headDim, x: values.k, out: k });
    const [outK, outV] = [this.fresh("cached_keys"), this.fresh("cached_values")];
    this.steps.push({ op: "cache", heads: kvHeads, headDim, k, v: values.v, outK, outV });
    const out = this.fresh("mixed");
    this.steps.push({ op: "attention", ...shape, q, k: outK, v: outV, out });
    return out;
  }

  activation(activation: Activation, x: ValueName, gate?: ValueName): ValueName {
    const out = this.fresh("activated");
    this.steps.push({ op: "activation", activation, gate, x, out });
    return out;
  }

  add(a: ValueName, b: ValueName): ValueName {
    const out = this.fresh("sum");
    this.steps.push({ op: "add", a, b, out });
    return out;
  }

  /** x itself where the factor is 1. */
  scale(x: ValueName, factor: number): ValueName {
    if (factor === 1) return x;
    const out = this.fresh("scaled");
    this.steps.push({ op: "scale", factor, x, out });
    return out;
  }

  finish(out: ValueName): BlockProgram {
    return { steps: this.steps, out, linears: this.linears, norms: this.norms };
  }

  private fresh(name: string): ValueName {
    const count = this.taken.get(name) ?? 0;
    this.taken.set(name, count + 1);
    return count === 0 ? name : `${name}#${count + 1}`;
  }
}
