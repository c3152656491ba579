/** Which models `planish eval` scores: one, one beside another, or an artifact beside what it was packed from. */

import type { Backend } from "../../backend/contract/training.js";
import { resolveModel } from "../../checkpoint/hub.js";
import { loadTokenizer, type Tokenizer } from "../../checkpoint/tokenizer.js";
import { UsageError } from "../../common/errors.js";
import { isArtifact } from "../../quantize/artifact/artifact.js";
import {
  loadModel,
  loadRounded,
  loadSimulated,
  type LoadedModel,
} from "../../quantize/artifact/load.js";
import { formatScheme, parseScheme } from "../../backend/contract/scheme.js";
import type { CommandContext } from "../action.js";

export interface SimulationFlags {
  readonly against?: string;
  readonly simulated?: boolean;
  readonly source?: string;
  readonly scheme?: string;
}

/** A model with the name to print, and its tokenizer. */
export interface Candidate extends Disposable {
  readonly name: string;
  readonly path: string;
  readonly loaded: LoadedModel;
  readonly tokenizer: Tokenizer;
  readonly scheme: string;
  readonly method?: string;
}

export interface Candidates extends Disposable {
  /** The model asked for, and the one it is compared with, if any. */
  readonly all: readonly Candidate[];
  /** Whether the second is the first's simulated model. */
  readonly simulated: boolean;
}

/** What can be refused before anything is read. @throws UsageError */
export function checkSimulationFlags({
  against,
  simulated,
  source,
  scheme,
}: SimulationFlags): void {
  if (!simulated && (source ?? scheme) !== undefined)
    throw new UsageError(
      `--${source === undefined ? "scheme" : "source"} is for simulated models; give --simulated as well`,
    );
  if (source !== undefined && scheme !== undefined)
    throw new UsageError(
      "--source goes with an artifact, --scheme with a model that is none; give one of them",
    );
  if (source !== undefined && against !== undefined)
    throw new UsageError(
      "--simulated already compares an artifact with its simulated model; leave --against out",
    );
  if (scheme !== undefined) parseScheme(scheme);
}

/** Opens what the flags name; the caller disposes it. @throws UsageError for flags that do not fit the model. */
export async function openModels(
  context: CommandContext,
  backend: Backend,
  name: string,
  flags: SimulationFlags,
): Promise<Candidates> {
  const all: Candidate[] = [];
  const dispose = (): void => {
    for (const each of all.reverse()) each[Symbol.dispose]();
  };
  try {
    const simulated = await fill(all, context, backend, name, flags);
    return { all, simulated, [Symbol.dispose]: dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

/** Opens candidates one by one into `all`; returns whether the second is the first's simulated model. */
async function fill(
  all: Candidate[],
  context: CommandContext,
  backend: Backend,
  name: string,
  flags: SimulationFlags,
): Promise<boolean> {
  const resolve = (model: string): Promise<string> =>
    resolveModel(model, { progress: context.reporter, signal: context.signal });
  const path = await resolve(name);
  const add = (title: string, at: string, loaded: LoadedModel, scheme?: string): void => {
    all.push(candidate(title, at, loaded, scheme));
  };
  let simulated = false;
  if (flags.simulated && isArtifact(path)) {
    if (flags.source === undefined)
      throw new UsageError(
        flags.scheme === undefined
          ? `the simulated model of artifact ${name} needs the weights it was made from; give --source MODEL`
          : `artifact ${name} has its scheme already; give --source MODEL instead of --scheme`,
      );
    const source = await resolve(flags.source);
    add(name, path, loadModel(backend, path));
    add(`${name} (simulated)`, path, await loadSimulated(backend, path, source));
    simulated = true;
    if (all[0].loaded.info?.recipe.rounding === "gptq")
      context.reporter.warn(
        "the artifact's weights were rounded by GPTQ, its simulated model rounds to nearest: the two differ by that",
      );
  } else if (flags.simulated) {
    if (flags.scheme === undefined)
      throw new UsageError(
        flags.source === undefined
          ? `${name} is no artifact; say what to round it to, such as --scheme w4a4kv4`
          : `${name} is no artifact, so it has no --source; give --scheme instead, such as w4a4kv4`,
      );
    const scheme = parseScheme(flags.scheme);
    add(`${name} (rounded)`, path, loadRounded(backend, path, scheme), formatScheme(scheme));
  } else add(name, path, loadModel(backend, path));
  if (flags.against !== undefined) {
    const other = await resolve(flags.against);
    add(flags.against, other, loadModel(backend, other));
  }
  return simulated;
}

/** `scheme`: what an original was rounded to. */
function candidate(name: string, path: string, loaded: LoadedModel, scheme?: string): Candidate {
  try {
    return {
      name,
      path,
      loaded,
      tokenizer: loadTokenizer(loaded.checkpoint),
      scheme: scheme ?? loaded.info?.scheme ?? "as stored",
      method: scheme === undefined ? loaded.info?.method : "rtn",
      [Symbol.dispose]: () => loaded[Symbol.dispose](),
    };
  } catch (error) {
    loaded[Symbol.dispose]();
    throw error;
  }
}
