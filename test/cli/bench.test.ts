import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { planish } from "./run-program.js";

interface Report {
  readonly threads: number;
  readonly ceilings: Record<string, number>;
  readonly cells: { type: string; m: number; gops: number; fraction: number }[];
  readonly peer: { missing: string };
  readonly engine: {
    readonly ceilings: { f32: number; int8: number; int4: number; memory: number };
    readonly products: {
      kind: "int4" | "int8";
      gops: number;
      fraction: number;
      fractionOfInt8: number;
    }[];
    readonly blocks: readonly {
      rows: number;
      sites: { median: number };
      linears: { median: number };
      share: number;
      floor: number;
    }[];
    readonly decode: { gigabytesPerSecond: number; fraction: number };
  };
}

describe("planish bench", () => {
  it("sets every product beside the ceiling of its type", async () => {
    const args = ["bench", "kernels", "--rounds", "1", "--threads", "1", "--no-peer", "--json"];
    const { code, stdout } = await planish(args);
    expect(code).toBe(0);
    const report = JSON.parse(stdout) as Report;
    expect(report.threads).toBe(1);
    expect(report.peer).toEqual({ missing: "left out" });
    // Four numbers of rows, two sizes for K and for N, three types.
    expect(report.cells).toHaveLength(4 * 2 * 2 * 3);
    for (const { type, gops, fraction } of report.cells) {
      expect(gops).toBeGreaterThan(0);
      expect(fraction).toBeCloseTo(gops / report.ceilings[type], 9);
    }
    const { ceilings, products, blocks, decode } = report.engine;
    // Two kinds, two sizes, four numbers of rows.
    expect(products).toHaveLength(2 * 2 * 4);
    for (const { kind, gops, fraction, fractionOfInt8 } of products) {
      expect(fraction).toBeCloseTo(gops / ceilings[kind], 9);
      expect(fractionOfInt8).toBeCloseTo(gops / ceilings.int8, 9);
    }
    // A small and a large model's block. How the share compares with its floor is for who reads the
    // bench: another program's load in the moment of one of the two can turn them round.
    const multiplyAdds = [
      576 * (24 + 24 + 24 + 24 + 9) + 1536 * (32 + 48),
      4096 * (64 + 64 + 64 + 64 + 32) + 11008 * (86 + 128),
    ];
    expect(blocks).toHaveLength(multiplyAdds.length);
    for (const [i, { rows, sites, linears, share, floor }] of blocks.entries()) {
      expect(share).toBeCloseTo(sites.median / linears.median, 9);
      const operations = floor * linears.median * ceilings.f32 * 1e6;
      expect(operations / (2 * rows * multiplyAdds[i])).toBeCloseTo(1, 9);
    }
    expect(decode.fraction).toBeCloseTo(decode.gigabytesPerSecond / ceilings.memory, 9);
  });

  it("runs a model in 16 bits and rounded, with what its time went to", async () => {
    const scratch = mkdtempSync(join(tmpdir(), "planish-bench-"));
    try {
      const args = [
        "bench",
        "tiny-llama",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--no-peer",
        "--json",
      ];
      args.push("--schemes", "w4a4kv4", "--prompt", "70", "--generate", "4", "--scratch", scratch);
      const { code, stdout } = await planish(args);
      expect(code).toBe(0);
      const report = JSON.parse(stdout) as {
        peerMissing: string;
        contestants: {
          name: string;
          prefillTokensPerSecond: number;
          prefill: { median: number };
          residentBytes: number;
          decodeShares: Record<string, number>;
        }[];
      };
      expect(report.peerMissing).toBe("left out");
      expect(report.contestants.map(({ name }) => name.slice(0, 7))).toEqual([
        "tiny-ll",
        "w4a4kv4",
      ]);
      for (const each of report.contestants) {
        expect(each.prefillTokensPerSecond).toBeCloseTo(70_000 / each.prefill.median, 6);
        expect(each.residentBytes).toBeGreaterThan(10e6);
        const shares = Object.values(each.decodeShares);
        expect(shares.reduce((sum, share) => sum + share, 0)).toBeCloseTo(1, 9);
        expect(Object.keys(each.decodeShares)).toContain("packedMatmulParts");
      }
    } finally {
      rmSync(scratch, { recursive: true, force: true });
    }
  });

  it("says what a model is when it does not know one", async () => {
    const { code, stderr } = await planish(["bench", "everything"]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^planish: .*everything/);
  });
});
