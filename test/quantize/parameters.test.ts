/** Names of parameters and what they stand for. */
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  parameterGroup,
  parameterName,
  parameterOf,
  type Parameter,
} from "../../src/quantize/schema/parameters.js";

const path = fc
  .array(fc.stringMatching(/^[a-z][a-z0-9_]{0,8}$/), { minLength: 1, maxLength: 3 })
  .map((parts) => parts.join("."));
const site = fc.constantFrom("attn_in", "attn_out", "mlp_in", "mlp_down", "k_head", "v_head");

const parameter: fc.Arbitrary<Parameter> = fc.oneof(
  fc.record({
    kind: fc.constant("matrix" as const),
    site,
    part: fc.constantFrom("p", "u", "s", "v", "r", "q"),
    side: fc.constantFrom("", "_left", "_right"),
  }),
  fc.record({ kind: fc.constantFrom("diag" as const, "factor" as const), site }),
  fc.record({
    kind: fc.constant("clip" as const),
    of: path,
    target: fc.constantFrom("w", "a"),
    bound: fc.constantFrom("max", "min"),
  }),
  fc.record({ kind: fc.constant("round" as const), of: path }),
  fc.record({
    kind: fc.constant("grid" as const),
    of: path,
    part: fc.constantFrom("bits", "thresholds", "channel", "part", "weight_part"),
  }),
);

describe("parameters", () => {
  it("are what their names say", () => {
    fc.assert(
      fc.property(parameter, (given) => {
        expect(parameterOf(parameterName(given))).toEqual(given);
      }),
    );
  });

  it("count under their site or kind", () => {
    expect(parameterGroup("attn_in.u_left")).toBe("attn_in");
    expect(parameterGroup("mlp_down.diag")).toBe("mlp_down");
    expect(parameterGroup("clip.self_attn.q_proj.w_max")).toBe("clip");
    expect(parameterGroup("round.mlp.up_proj")).toBe("round");
  });

  it.each(["", "attn_in", "attn_in.x", "clip.q", "clip.q.b_max"])("refuses %j", (name) => {
    expect(() => parameterOf(name)).toThrow(/is no parameter/);
  });
});
