/**
 * Experts that few tokens choose learn with the others. A transform or a clip of an expert is θ̄ + λ·δ: what all of a block's
 * experts share, learned by all of their tokens, and a deviation of its own, of which the expert has as much as its tokens
 * can tell. λ = n / (n + m) for n tokens and a transform of m numbers: none without tokens, half with as many tokens as
 * numbers. Per-channel factors and rounding offsets belong to channels, which experts do not share, and are not pooled.
 */
import {
  expertOf,
  flowOf,
  sitesOf,
  type BlockProgram,
  type LinearName,
  type SiteName,
} from "../../backend/contract/program.js";
import { add, scale } from "../../tensor/ops/index.js";
import { parameter, type Graph, type Tensor } from "../../tensor/tensor.js";
import type { Backend } from "../../backend/contract/training.js";
import { isFixedParameter, type Parameters } from "../transforms/affine.js";
import { parameterName, parameterOf, type ParameterValues } from "../schema/parameters.js";

/** An expert's parameter: what it shares, by name, and its λ. */
export interface PooledParameter {
  readonly shared: string;
  readonly own: number;
}

/** Experts' parameters among `values`, by name. `tokens`: of each expert. */
export function pooledParameters(
  program: BlockProgram,
  values: ParameterValues,
  tokens: readonly number[],
): ReadonlyMap<string, PooledParameter> {
  const flow = flowOf(program);
  const sites = new Map<SiteName, number>(
    sitesOf(program).flatMap(({ site, expert }) => (expert === undefined ? [] : [[site, expert]])),
  );
  const linears = new Map<string, { readonly role: LinearName; readonly expert: number }>();
  for (const step of program.steps) {
    if (step.op !== "product") continue;
    const expert = expertOf(flow, step.x);
    if (expert !== undefined)
      linears.set(program.linears[step.linear].path, { role: step.linear, expert });
  }
  const sizes = new Map<number, number>();
  const found = new Map<string, { readonly shared: string; readonly expert: number }>();
  for (const [name, { data }] of values) {
    const parameter = parameterOf(name);
    if (parameter.kind === "matrix" && !isFixedParameter(name)) {
      const expert = sites.get(parameter.site);
      if (expert === undefined) continue;
      sizes.set(expert, (sizes.get(expert) ?? 0) + data.length);
      const site = sharedName(parameter.site, expert);
      found.set(name, { shared: parameterName({ ...parameter, site }), expert });
    } else if (parameter.kind === "clip" && parameter.target === "a") {
      const linear = linears.get(parameter.of);
      if (!linear) continue;
      const of = sharedName(linear.role, linear.expert);
      found.set(name, { shared: parameterName({ ...parameter, of }), expert: linear.expert });
    }
  }
  return new Map(
    [...found].map(([name, { shared, expert }]) => {
      const own = tokens[expert] / (tokens[expert] + Math.max(1, sizes.get(expert) ?? 0));
      return [name, { shared, own }];
    }),
  );
}

function sharedName(name: string, expert: number): string {
  return name.replace(`experts.${expert}.`, "experts.pooled.");
}

/** Where an expert's parameters and those that it shares are learned, and what they make together. */
export class PooledTensors {
  private constructor(
    /** What is learned, by name. */
    readonly learned: ReadonlyMap<string, Tensor>,
    private readonly pooled: ReadonlyMap<string, PooledParameter>,
  ) {}

  /** The same start for all experts: the first one's. */
  static upload(
    backend: Backend,
    tensors: ReadonlyMap<string, Tensor>,
    pooled: ReadonlyMap<string, PooledParameter>,
  ): PooledTensors {
    const learned = new Map(tensors);
    for (const [name, { shared }] of pooled) {
      const tensor = tensors.get(name);
      if (!tensor?.buffer) continue;
      if (!learned.has(shared))
        learned.set(shared, parameter(backend, tensor.shape, backend.read(tensor.buffer)));
      backend.fill(tensor.buffer, 0);
    }
    return new PooledTensors(learned, pooled);
  }

  /** Every parameter under its own name. */
  bind(g: Graph): Parameters {
    const bound = new Map(this.learned);
    for (const [name, { shared, own }] of this.pooled) {
      const [common, deviation] = [this.learned.get(shared), this.learned.get(name)];
      if (common && deviation) bound.set(name, add(g, common, scale(g, deviation, own)));
    }
    for (const { shared } of this.pooled.values()) bound.delete(shared);
    return bound;
  }
}
