import { describe, expect, it } from "vitest";
import { UsageError } from "../../src/common/errors.js";
import { formatScheme, LEGAL_BITS, parseScheme } from "../../src/backend/contract/scheme.js";

describe("parseScheme", () => {
  it("reads every legal combination back as it was written", () => {
    for (const weightBits of LEGAL_BITS) {
      for (const activationBits of LEGAL_BITS) {
        for (const kvBits of LEGAL_BITS) {
          const scheme = { weightBits, activationBits, kvBits };
          expect(parseScheme(formatScheme(scheme))).toEqual(scheme);
        }
      }
    }
  });

  it("ignores case and lets the cache default to 16 bits", () => {
    expect(parseScheme("W4A8")).toEqual({ weightBits: 4, activationBits: 8, kvBits: 16 });
    expect(parseScheme(" W2A16KV3 ")).toEqual({ weightBits: 2, activationBits: 16, kvBits: 3 });
  });

  it.each(["w4g64a4g64kv4", "w4g32oa8kv8", "w4g64a8kv4h8", "w3a4g128okv16h6g32", "w16a16kv16h4"])(
    "reads %s back as it was written",
    (text) => {
      expect(formatScheme(parseScheme(text))).toBe(text);
    },
  );

  it("gives groups, offsets and tables their fields", () => {
    expect(parseScheme("w4g32oa8g128kv4h8")).toEqual({
      weightBits: 4,
      weightGroup: 32,
      weightOffset: true,
      activationBits: 8,
      activationGroup: 128,
      kvBits: 4,
      tableBits: 8,
      tableGroup: 64,
    });
  });

  it.each([
    ["w4g48a4", "groups of 48 channels for weights; legal groups are 16, 32, 64, 128"],
    ["w4a4g256", "groups of 256 channels for activations"],
    ["w16g64a16", "gives weights of 16 bits a group"],
    ["w4a4h16", "tables of 16 bits; embedding and head may have 4, 6, 8"],
    ["w4a4h8g50", "groups of 50 channels for tables"],
    ["w8g64oa8", "8-bit weights an offset"],
  ])("refuses %s, saying what is legal", (text, what) => {
    expect(() => parseScheme(text)).toThrow(UsageError);
    expect(() => parseScheme(text)).toThrow(what);
  });

  it.each(["", "w4", "w4a4kv", "4-4-4", "w4a4kv4x", "w-4a4kv4", "w4.0a4kv4"])(
    "refuses %j, showing the form",
    (text) => {
      expect(() => parseScheme(text)).toThrow(UsageError);
      expect(() => parseScheme(text)).toThrow(/w<bits>.*a<bits>.*kv<bits>/);
    },
  );

  it.each([
    ["w5a4kv4", "5-bit weights"],
    ["w4a7kv4", "7-bit activations"],
    ["w4a4kv32", "32-bit KV cache"],
  ])("refuses %s, naming the width and the legal ones", (text, what) => {
    expect(() => parseScheme(text)).toThrow(what);
    expect(() => parseScheme(text)).toThrow("2, 3, 4, 6, 8, 16");
  });
});
