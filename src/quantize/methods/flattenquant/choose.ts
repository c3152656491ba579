/**
 * Bits by what they cost the whole model (criterion "model", ours), once every block is calibrated: a linear runs at 4
 * bits where the divergence that it adds, over its share of the model's multiply-adds, is below γ. So the cheapest nats
 * are spent first, and γ is what the model would lose if all of it were rounded at this rate.
 */
import type { RealArray } from "../../../backend/contract/training.js";
import { parameterOf, type ParameterValues } from "../../schema/parameters.js";
import type { LinearFacts, RefineJob, RefineOutcome } from "../../schema/method.js";
import { modelEffect } from "./model-effect.js";
import type { FlattenQuantRecipe } from "./recipe.js";
import type { LinearName } from "../../../backend/contract/program.js";

/** Before the names of parameters that hold a linear's grids at 4 bits, while it is undecided. */
const AT_FOUR = "four.";

/** A block's parameters at 8 bits together with its grids at 4. */
export function withAlternative(at8: ParameterValues, at4: ParameterValues): ParameterValues {
  const grids = [...at4].filter(([name]) => parameterOf(name).kind === "grid");
  return new Map([...at8, ...grids.map(([name, value]) => [AT_FOUR + name, value] as const)]);
}

/** The parameters with the linears of these paths at 4 bits, the others at 8, and no alternatives left. */
export function decide(both: ParameterValues, four: (path: string) => boolean): ParameterValues {
  const decided = new Map<string, { shape: readonly number[]; data: RealArray }>();
  for (const [name, value] of both) {
    const isFour = name.startsWith(AT_FOUR);
    const parameter = parameterOf(isFour ? name.slice(AT_FOUR.length) : name);
    if (parameter.kind !== "grid") decided.set(name, value);
    else if (four(parameter.of) === isFour)
      decided.set(isFour ? name.slice(AT_FOUR.length) : name, value);
  }
  return decided;
}

/** @throws InterruptedError on the job's signal. */
export async function chooseByModel(job: RefineJob<FlattenQuantRecipe>): Promise<RefineOutcome> {
  const { parameters, reports, recipe } = job;
  const undecided = reports.every(({ alternatives }) => alternatives !== undefined);
  if (!undecided) return { parameters, losses: [] };
  const roles = parameters.map((_, layer) =>
    Object.entries(job.readBlock(layer).linears).map(([role, { path }]) => [role, path] as const),
  );
  const added = await addedDivergences(job, roles);
  const total = reports.reduce(
    (sum, { linears }) =>
      sum +
      Object.values(linears ?? {}).reduce((s, { multiplyAdds }) => s + Number(multiplyAdds), 0),
    0,
  );
  let next = 0;
  const linears = reports.map(({ linears: at8 = {}, alternatives: at4 = {} }, layer) => {
    const facts: Record<string, LinearFacts> = {};
    for (const [, path] of roles[layer]) {
      const rate = (added[next++] * total) / Number(at8[path].multiplyAdds);
      const bits = rate < recipe.gamma ? 4 : 8;
      const rule = `model ${rate.toPrecision(3)} ${bits === 4 ? "<" : "≥"} ${recipe.gamma}`;
      facts[path] = { ...(bits === 4 ? at4 : at8)[path], bits, rule };
    }
    return facts;
  });
  return {
    parameters: parameters.map((both, layer) =>
      decide(both, (path) => linears[layer][path].bits === 4),
    ),
    losses: [],
    linears,
  };
}

/** Block by block in the order of `roles`; taken from the journal, or from a run with the same settings but γ. */
async function addedDivergences(
  job: RefineJob<FlattenQuantRecipe>,
  roles: readonly (readonly [LinearName, string])[][],
): Promise<ArrayLike<number>> {
  const { recipe, scheme, parameters, teacher } = job;
  if (job.resume) return job.resume.losses;
  const { alpha, rows, beta, reach, maxExpansion } = recipe;
  const key = `flattenquant ${JSON.stringify({ alpha, rows, beta, reach, maxExpansion, scheme })}`;
  let added = teacher.statistics?.get(key)?.added;
  if (!added) {
    const effect = await modelEffect(job, (layer, bits) =>
      decide(parameters[layer], () => bits === 4),
    );
    added = Float64Array.from(
      roles.flatMap((each, layer) => each.map(([role]) => effect.added[layer][role] ?? NaN)),
    );
    teacher.statistics?.set(key, { added });
  }
  await job.keep({ step: 1, tensors: [], losses: Array.from(added) });
  return added;
}
