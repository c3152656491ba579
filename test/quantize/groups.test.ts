/**
 * Grids of groups: the statement that folding shares with the backends, what an artifact holds of them, and that the packed
 * model is the simulated one.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { formatScheme, parseScheme } from "../../src/backend/contract/scheme.js";
import { openBackend } from "../../src/backend/open.js";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { Random } from "../../src/common/random.js";
import { openSource } from "../../src/engine/source.js";
import { openArtifact } from "../../src/quantize/artifact/artifact.js";
import { loadModel, loadSimulated } from "../../src/quantize/artifact/load.js";
import {
  packCodes,
  packedRowBytes,
  unpackCodes,
} from "../../src/quantize/artifact/packed-codes.js";
import { readQuantizedTable } from "../../src/quantize/artifact/tables.js";
import { verifyArtifact } from "../../src/quantize/artifact/verify.js";
import { dequantized, onGrid, roundInSingle } from "../../src/quantize/grids/groups.js";
import { gptqRound, plainGptq } from "../../src/quantize/rounding/gptq.js";
import { nativeGptq } from "../../src/quantize/rounding/native.js";
import { quantize } from "../../src/quantize/run/pipeline.js";
import { planRun } from "../../src/quantize/run/preview.js";
import { Graph } from "../../src/tensor/tensor.js";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { FEW, smallCalibration } from "./methods/support.js";

const directory = mkdtempSync(join(tmpdir(), "planish-groups-"));
const model = join(directory, "model");
let calibration: string;
const cpu = openBackend({ device: "cpu" });

beforeAll(async () => {
  calibration = smallCalibration(directory);
  await writeFirstBlocks(join(packageRoot, "models", "tiny-llama"), model, 2);
});

afterAll(() => {
  cpu[Symbol.dispose]();
  rmSync(directory, { recursive: true, force: true });
});

describe("codes in bytes", () => {
  it.each([
    [4, true],
    [4, false],
    [6, true],
    [6, false],
  ] as const)("of %i bits, signed %s, come back as they were", (bits, signed) => {
    const from = signed ? -(2 ** (bits - 1)) : 0;
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 1, max: 13 }),
        fc.infiniteStream(fc.integer({ min: from, max: from + 2 ** bits - 1 })),
        (rows, cols, stream) => {
          const codes = Int8Array.from(
            { length: rows * cols },
            () => stream.next().value as number,
          );
          const packed = packCodes(codes, rows, cols, { bits, signed });
          expect(packed.length).toBe(rows * packedRowBytes(cols, bits));
          expect(unpackCodes(packed, rows, cols, { bits, signed })).toEqual(codes);
        },
      ),
    );
  });

  it("lie as the format says: lower columns in lower bits", () => {
    expect(packCodes(Int8Array.of(-1, 7, 3), 1, 3, { bits: 4, signed: true })).toEqual(
      Uint8Array.of(0x7f, 0x03),
    );
    // 1 | 2<<6 | 3<<12 | 4<<18
    expect(packCodes(Int8Array.of(1, 2, 3, 4), 1, 4, { bits: 6, signed: false })).toEqual(
      Uint8Array.of(0x81, 0x30, 0x10),
    );
  });
});

describe("a group's grid", () => {
  it.each([
    { bits: 4, group: 32 },
    { bits: 4, group: 64, offset: true },
    { bits: 6, group: 128, offset: true },
    { bits: 3, group: undefined },
  ])("%o: folding gives what backends compute, bit for bit", (grid) => {
    const random = Random.for(3, "groups", grid.bits);
    const [rows, cols] = [5, 256];
    const weight = Float32Array.from({ length: rows * cols }, () => random.normal() + 0.3);
    // Halfway between two levels, as 16-bit weights often are.
    for (let i = 0; i < 20; i++) weight[i] = Math.round(weight[i] * 8) / 8;
    const folded = roundInSingle(weight, cols, grid);
    const values = dequantized(folded.codes, cols, folded);
    for (const backend of [createReferenceBackend({ realType: "f32" }), cpu]) {
      using g = new Graph(backend);
      const onBackend = g.read(onGrid(g, g.constant([rows, cols], weight), grid));
      for (let i = 0; i < values.length; i++)
        // Of scale·code + offset a backend may round the sum once instead of twice.
        expect(Math.abs(onBackend[i] - values[i])).toBeLessThanOrEqual(2 ** -22 * 8);
    }
  });

  it("with an offset holds a 4-bit source's own grid exactly", () => {
    const [scale, least] = [0.0123291015625, -0.07177734375];
    const weight = Float32Array.from({ length: 64 }, (_, i) => least + scale * (i % 16));
    const grid = { bits: 4, group: 32, offset: true };
    const folded = roundInSingle(weight, 64, grid);
    expect(folded.codes).toEqual(Int8Array.from({ length: 64 }, (_, i) => i % 16));
    expect([...folded.offset!]).toEqual([least, least]);
  });

  it("is rounded on by GPTQ: the native solver as the plain one, and better than to nearest", () => {
    const random = Random.for(7, "gptq groups");
    const [rows, cols, tokens] = [6, 128, 200];
    const weight = Float64Array.from({ length: rows * cols }, () => random.normal());
    const x = Array.from({ length: tokens }, () => {
      const shared = random.normal();
      return Float64Array.from({ length: cols }, () => shared + 0.5 * random.normal());
    });
    const moment = new Float64Array(cols * cols);
    for (const row of x)
      for (let i = 0; i < cols; i++)
        for (let j = 0; j < cols; j++) moment[i * cols + j] += row[i] * row[j];
    for (const offset of [false, true]) {
      const { codes: nearest, ...steps } = roundInSingle(weight, cols, {
        bits: 4,
        group: 32,
        offset,
      });
      const problem = { weight, rows, cols, moment, actOrder: true, ...steps };
      const plain = gptqRound(problem, plainGptq).codes;
      expect(gptqRound(problem, nativeGptq()).codes).toEqual(plain);
      const errorOf = (codes: Int8Array): number => {
        const values = dequantized(codes, cols, steps);
        let sum = 0;
        for (const row of x)
          for (let r = 0; r < rows; r++) {
            let e = 0;
            for (let c = 0; c < cols; c++)
              e += row[c] * (values[r * cols + c] - weight[r * cols + c]);
            sum += e * e;
          }
        return sum;
      };
      expect(errorOf(plain)).toBeLessThan(0.5 * errorOf(nearest));
      expect(Math.min(...plain)).toBeGreaterThanOrEqual(offset ? 0 : -8);
      expect(Math.max(...plain)).toBeLessThanOrEqual(offset ? 15 : 7);
    }
  });
});

describe("an artifact with groups", () => {
  const cases = [
    ["w4g32oa4g32okv4h6", "flatquant", { ...FEW, epochs: 1, batch: 2 }],
    ["w3g64a8g64kv8h4g32", "rtn", {}],
    ["w4g64oa16kv16h8", "awq", { ...FEW, gridSteps: 4 }],
    ["w4g64a4g32kv4", "quarot", {}],
  ] as const;

  it.each(cases)(
    "%s by %s is the simulated model, within 16-bit steps",
    async (scheme, method, recipe) => {
      const out = join(directory, `${method}-${scheme}`);
      using source = openCheckpoint(model);
      await quantize({
        ...{ backend: cpu, source, out, method, scheme, recipe, calibration, keepParameters: true },
      });
      verifyArtifact(out);
      using packed = loadModel(cpu, out);
      using simulated = await loadSimulated(cpu, out, model);
      const ids = Int32Array.from({ length: 48 }, (_, i) => (i * 37 + 11) % 4096);
      using original = loadModel(cpu, model);
      const [found, expected, exact] = [packed, simulated, original].map(({ model: each }) => {
        using g = new Graph(cpu);
        return Float64Array.from(g.read(each.logits(g, each.hidden(g, ids))));
      });
      const distance = (a: Float64Array, b: Float64Array): number =>
        Math.sqrt(a.reduce((sum, x, i) => sum + (x - b[i]) ** 2, 0));
      // A step's 16 bits err by 2⁻¹¹ of it, where rounding errs by half of one. Activations of 4 bits that lie beside a tie
      // then take the other code: of steps of x/s up to 7, some 2⁻¹¹·7 = 0.3% do, which is a fifth of rounding's own error
      // (0.3% of 1² beside 1/12), and what follows meets that as well. It stays below what rounding did.
      const share = parseScheme(scheme).activationBits > 4 ? 0.05 : 0.8;
      expect(distance(found, expected)).toBeLessThan(share * distance(expected, exact));
      const { bytes } = verifyArtifact(out);
      expect(packed.info?.scheme).toBe(formatScheme(parseScheme(scheme)));
      const plan = planRun({ backend: cpu, source, method, scheme: parseScheme(scheme) });
      // The plan's recipe is the preset's; nothing in it changes what is stored here.
      expect(plan.artifactBytes).toBe(bytes);
    },
  );

  it("gives engines codes and steps of weights and tables", async () => {
    const out = join(directory, "for-engines");
    using source = openCheckpoint(model);
    await quantize({ backend: cpu, source, out, method: "rtn", scheme: "w4g64oa8kv8h6g32" });
    using opened = openSource(out);
    const { quantized } = opened.block(0).linears.q;
    expect(quantized).toMatchObject({ group: 64 });
    expect(quantized!.scale).toHaveLength((256 * 256) / 64);
    expect(quantized!.offset).toHaveLength((256 * 256) / 64);
    const table = opened.endLayers.embedding.quantized!();
    expect(table).toMatchObject({ group: 32, bits: 6 });
    expect(table.scale).toHaveLength((4096 * 256) / 32);
    using artifact = openArtifact(out);
    const { checkpoint, architecture, config, scheme } = artifact;
    const name = architecture.names.embedding;
    expect(readQuantizedTable(checkpoint, architecture, config, scheme, name)).toEqual(table);
    // Six bits lie in six bits.
    expect(checkpoint.tensors.get(name)!.bytes).toBe((4096 * 256 * 6) / 8);
  });

  it("refuses groups that do not divide a width, naming those that do", async () => {
    using source = openCheckpoint(model);
    const run = (scheme: string, method = "rtn") =>
      quantize({
        backend: cpu,
        source,
        out: join(directory, "refused"),
        method,
        scheme,
        calibration,
      });
    await expect(run("w4g128a4kv4")).rejects.toThrow(
      "groups of 128 channels, which do not divide the 704 that mlp.down_proj reads; groups of 16 or 32 or 64 divide every width",
    );
    await expect(run("w4a8g128")).rejects.toThrow("groups of 16 or 32 or 64 divide every width");
    await expect(run("w4g64a4g64kv4", "flattenquant")).rejects.toThrow("leave the groups out");
  });
});
