/**
 * Mamba-2's mixer (Dao & Gu 2024, arXiv 2405.21060) as hybrid models have it: values, keys B and queries C through a short
 * convolution, a state for each head, a gate, and a norm of groups before or after the gate.
 */
import { finiteIn, LIMITS, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import type { BlockBuilder } from "../builder.js";
import type { ConfigReader, ModelConfig } from "../config.js";
import type { MambaConfig } from "../recurrent-config.js";
import type { ValueName } from "../../backend/contract/program.js";
import { checkShared } from "./hybrid.js";
import { activation } from "./reader.js";

/** What the keys that most of these models share say; `inner`: channels of all heads. */
export function mambaConfig(
  c: ConfigReader,
  inner: number,
  fallback: Pick<MambaConfig, "heads" | "groups" | "state">,
): MambaConfig {
  // How the original cuts a sequence changes nothing but roundings.
  c.optional("mamba_chunk_size");
  const heads = c.integer("mamba_n_heads", LIMITS.heads, fallback.heads);
  const auto = (c.optional("mamba_d_head") ?? "auto") === "auto";
  const headDim = auto ? inner / heads : c.integer("mamba_d_head", LIMITS.width);
  if (heads * headDim !== inner || !Number.isInteger(headDim))
    throw new PlanishError(
      `config.json: ${heads} heads (mamba_n_heads) of ${shown(headDim)} channels (mamba_d_head) do not make ${inner}`,
    );
  return checkedMamba({
    kind: "mamba",
    ...{ heads, headDim },
    groups: c.integer("mamba_n_groups", LIMITS.heads, fallback.groups),
    state: c.integer("mamba_d_state", LIMITS.width, fallback.state),
    taps: c.integer("mamba_d_conv", LIMITS.width, 4),
    convBias: c.boolean("mamba_conv_bias", true),
    activation: activation(c.string("hidden_act", "silu")),
    norm: "after",
    limits: timeLimits(c, "time_step_limit"),
  });
}

/** @throws PlanishError when heads cannot share their groups. */
export function checkedMamba(config: MambaConfig): MambaConfig {
  checkShared(config.heads, config.groups, "heads of a state-space layer");
  return config;
}

/** float32's largest number: what lies beyond bounds nothing. */
const LARGEST = 3.4e38;

/** Two numbers, of which the second may be infinite, as Python writes that or as transformers does. */
function timeLimits(c: ConfigReader, key: string): MambaConfig["limits"] {
  const value = c.optional(key) ?? undefined;
  if (value === undefined) return undefined;
  if (!Array.isArray(value) || value.length !== 2)
    throw new PlanishError(`config.json: ${key} must be two numbers, found ${shown(value)}`);
  const [least, most] = value.map((each: unknown) => {
    const written = isJsonObject(each) ? Number(each.__float__) : each;
    return written === Infinity || Number(written) > LARGEST
      ? Infinity
      : finiteIn(written, `config.json: ${key}`, { min: 0 });
  });
  if (least > most)
    throw new PlanishError(`config.json: ${key} ends below its beginning: ${shown(value)}`);
  return least === 0 && most === Infinity ? undefined : { least, most };
}

function isJsonObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => from + i);

/** From the normed residual stream to out's output. `prefix`: where the mixer is stored. */
export function mambaMixer(
  b: BlockBuilder,
  { hiddenSize, norm, residualScale }: ModelConfig,
  mamba: MambaConfig,
  x: ValueName,
  prefix = "mamba",
): ValueName {
  const { heads, headDim, groups, state, taps, convBias, limits, factors } = mamba;
  const [inner, keys] = [heads * headDim, groups * state];
  const channels = inner + 2 * keys;
  const part = (name: string, from: number, rows: readonly number[]) => ({
    name,
    path: `${prefix}.in_proj_${name}`,
    out: rows.length,
    stored: {
      parts: [{ path: `${prefix}.in_proj`, rows: inner + channels + heads }],
      order: range(from, rows.length),
    },
    rowFactors: factors && rows,
  });
  const times = (count: number, factor = 1): number[] =>
    Array.from({ length: count }, () => factor);
  const [z, mixing, step] = b.site(
    x,
    "mixer_in",
    [
      part("z", 0, times(inner, factors?.z)),
      part("xbc", inner, [
        ...times(inner, factors?.x),
        ...times(keys, factors?.b),
        ...times(keys, factors?.c),
      ]),
      part("step", inner + channels, times(heads, factors?.step)),
    ],
    hiddenSize,
  );
  const convolved = b.conv(mixing, {
    weight: b.kept("conv", `${prefix}.conv1d.weight`, [channels, 1, taps]),
    bias: convBias ? b.kept("conv_bias", `${prefix}.conv1d.bias`, [channels]) : undefined,
    ...{ channels, taps },
  });
  const read = b.recurrence({
    ...{ heads, keyHeads: groups, keyDim: state, valueDim: headDim },
    width: channels,
    at: { v: 0, k: inner, q: inner + keys },
    scale: 1,
    limits,
    ...{ x: b.activation(mamba.activation, convolved), step },
    rate: b.kept("rate", `${prefix}.A_log`, [heads]),
    bias: b.kept("step_bias", `${prefix}.dt_bias`, [heads]),
    skip: b.kept("skip", `${prefix}.D`, [heads]),
  });
  const gated = (value: ValueName): ValueName => b.activation("silu", value, z);
  const normed = (value: ValueName): ValueName =>
    b.norm(value, { name: "mixer", path: `${prefix}.norm`, channels: inner }, inner / groups, {
      kind: "rms",
      epsilon: norm.epsilon,
    });
  const given =
    mamba.norm === undefined
      ? gated(read)
      : mamba.norm === "before"
        ? gated(normed(read))
        : normed(gated(read));
  const out = {
    name: "out",
    path: `${prefix}.out_proj`,
    ...{ out: hiddenSize, factor: residualScale },
  };
  return b.site(given, "mixer_out", [out], inner)[0];
}
