/** Writes block programs: what an architecture's lowering calls, step by step, in the order of the arithmetic. */
import {
  BLOCK_INPUT,
  type Activation,
  type ArrangeStep,
  type AttentionStep,
  type BlockProgram,
  type GateClamp,
  type KeptName,
  type KeptPlace,
  type LinearName,
  type LinearPlace,
  type LinearSite,
  type NormName,
  type NormPlace,
  type NormStep,
  type Rotary,
  type RouteStep,
  type SpliceStep,
  type StoredRows,
  type Step,
  type ValueName,
} from "../backend/contract/program.js";
import type { ConvStep, RecurrenceStep } from "../backend/contract/recurrent.js";

/** A linear or norm of the checkpoint: the part it plays, its path inside the block, and where it is stored otherwise. */
export interface Named {
  readonly name: string;
  readonly path: string;
  readonly stored?: StoredRows;
}

export interface NamedLinear
  extends Named, Pick<LinearPlace, "factor" | "rowFactors" | "scaledBy"> {
  /** Output features. */
  readonly out: number;
}

export interface NamedNorm extends Named, Pick<NormPlace, "offset" | "factor" | "unit"> {
  /** Channels of the gain, where groups have gains of their own. */
  readonly channels?: number;
}

/** How a norm computes, whichever it is. */
export type NormKind = Pick<NormStep, "kind" | "epsilon">;

export class BlockBuilder {
  private readonly steps: Step[] = [];
  private readonly linears: Record<LinearName, LinearPlace> = {};
  private readonly norms: Record<NormName, NormPlace> = {};
  private readonly keptPlaces: Record<KeptName, KeptPlace> = {};
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
    return this.products(this.read(x, site, width), linears, width);
  }

  /** What linears of a site read, which several lists of them may do. */
  read(x: ValueName, site: LinearSite, width: number): ValueName {
    const out = this.fresh(site);
    this.steps.push({ op: "site", site, width, x, out });
    return out;
  }

  /** Outputs of linears of what a site gives, in order. */
  products(read: ValueName, linears: readonly NamedLinear[], width: number): ValueName[] {
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

  activation(activation: Activation, x: ValueName, gate?: ValueName, clamp?: GateClamp): ValueName {
    const out = this.fresh("activated");
    this.steps.push({ op: "activation", activation, clamp, gate, x, out });
    return out;
  }

  /** Heads of other channels, or of parts. */
  arrange(
    parts: ArrangeStep["parts"],
    { heads, headDim, order }: Pick<ArrangeStep, "heads" | "headDim" | "order">,
  ): ValueName {
    const out = this.fresh("arranged");
    this.steps.push({ op: "arrange", heads, headDim, parts, order, out });
    return out;
  }

  /** Each channel by itself, over the positions before. */
  conv(x: ValueName, options: Omit<ConvStep, "op" | "x" | "out">): ValueName {
    const out = this.fresh("convolved");
    this.steps.push({ op: "conv", ...options, x, out });
    return out;
  }

  recurrence(options: Omit<RecurrenceStep, "op" | "out">): ValueName {
    const out = this.fresh("read");
    this.steps.push({ op: "recurrence", ...options, out });
    return out;
  }

  multiply(a: ValueName, b: ValueName): ValueName {
    const out = this.fresh("product");
    this.steps.push({ op: "multiply", a, b, out });
    return out;
  }

  add(a: ValueName, b: ValueName): ValueName {
    const out = this.fresh("sum");
    this.steps.push({ op: "add", a, b, out });
    return out;
  }

  /** x itself where the factor is 1. */
  scale(x: ValueName, factor: number | KeptName): ValueName {
    if (factor === 1) return x;
    const out = this.fresh("scaled");
    this.steps.push({ op: "scale", factor, x, out });
    return out;
  }

  /** Columns of rows of `of` columns. */
  columns(x: ValueName, from: number, width: number, of: number): ValueName {
    const out = this.fresh("columns");
    this.steps.push({ op: "take", from, width, of, x, out });
    return out;
  }

  /** x with other columns in some places; x itself without any. */
  splice(x: ValueName, parts: SpliceStep["parts"], width: number): ValueName {
    if (parts.length === 0) return x;
    const out = this.fresh("spliced");
    this.steps.push({ op: "splice", width, parts, x, out });
    return out;
  }

  /** A tensor that stays as it is. */
  kept(name: KeptName, path: string, shape: readonly number[]): KeptName {
    this.keptPlaces[name] = { path, shape };
    return name;
  }

  /** The experts of each row. */
  route(x: ValueName, options: Omit<RouteStep, "op" | "x" | "out">): ValueName {
    const out = this.fresh("routing");
    this.steps.push({ op: "route", ...options, x, out });
    return out;
  }

  /** The rows of an expert. */
  dispatch(routing: ValueName, x: ValueName, expert: number): ValueName {
    const out = this.fresh(`${x}_of_${expert}`);
    this.steps.push({ op: "dispatch", expert, routing, x, out });
    return out;
  }

  /** `parts`: what each expert gave, `width` channels. */
  combine(routing: ValueName, parts: readonly ValueName[], width: number): ValueName {
    const out = this.fresh("combined");
    this.steps.push({ op: "combine", routing, width, parts, out });
    return out;
  }

  /** x times the weight of each row's only expert. */
  weigh(routing: ValueName, x: ValueName): ValueName {
    const out = this.fresh("weighed");
    this.steps.push({ op: "weigh", routing, x, out });
    return out;
  }

  finish(out: ValueName): BlockProgram {
    const { steps, linears, norms, keptPlaces: kept } = this;
    return { steps, out, linears, norms, kept };
  }

  private fresh(name: string): ValueName {
    const count = this.taken.get(name) ?? 0;
    this.taken.set(name, count + 1);
    return count === 0 ? name : `${name}#${count + 1}`;
  }
}
