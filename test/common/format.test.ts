import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  formatBytes,
  formatCount,
  formatDuration,
  formatMarkdownTable,
  formatNumber,
  formatTable,
} from "../../src/common/format.js";

describe("formatBytes", () => {
  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.00 KB"],
    [9_994, "9.99 KB"],
    [9_996, "10.0 KB"],
    [999_499, "999 KB"],
    [999_500, "1.00 MB"],
    [134_515_008, "135 MB"],
    [3.5e12, "3.50 TB"],
  ])("%d → %s", (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text);
  });

  it("stays within half a percent of what it was given", () => {
    const unit = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, PB: 1e15 };
    fc.assert(
      fc.property(fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }), (bytes) => {
        const [value, name] = formatBytes(bytes).split(" ");
        const back = Number(value) * unit[name as keyof typeof unit];
        expect(Math.abs(back - bytes)).toBeLessThanOrEqual(0.0051 * bytes);
        expect(value.length).toBeLessThanOrEqual(4);
      }),
    );
  });

  it("refuses what is not a size", () => {
    expect(() => formatBytes(-1)).toThrow(RangeError);
    expect(() => formatBytes(NaN)).toThrow(RangeError);
  });
});

describe("formatDuration", () => {
  it.each([
    [0, "0 ms"],
    [0.4501, "450 ms"],
    [0.9996, "1.0 s"],
    [4.23, "4.2 s"],
    [9.96, "10 s"],
    [59.4, "59 s"],
    [59.6, "1 min 00 s"],
    [65, "1 min 05 s"],
    [3599.6, "1 h 00 min"],
    [7620, "2 h 07 min"],
    [86399, "1 d 00 h"],
    [273600, "3 d 04 h"],
  ])("%d s → %s", (seconds, text) => {
    expect(formatDuration(seconds)).toBe(text);
  });

  it("refuses negative durations", () => {
    expect(() => formatDuration(-0.1)).toThrow(RangeError);
  });
});

describe("formatNumber", () => {
  it.each([
    [0, 2, "0"],
    [1234567.891, 2, "1,234,567.89"],
    [-1234.5, 2, "-1,234.5"],
    [65.13, 2, "65.13"],
    [1000, 0, "1,000"],
    [0.0049, 2, "4.90e-3"],
    [0.006, 2, "0.01"],
    [2e15, 1, "2.0e+15"],
    [Infinity, 2, "Infinity"],
  ])("%d with %d digits → %s", (value, digits, text) => {
    expect(formatNumber(value, digits)).toBe(text);
  });
});

describe("formatCount", () => {
  it.each([
    [512, "512"],
    [134_515_008, "135M"],
    [7_241_732_096, "7.24B"],
    [999_600, "1.00M"],
  ])("%d → %s", (count, text) => {
    expect(formatCount(count)).toBe(text);
  });
});

describe("tables", () => {
  const columns = ["method", { title: "perplexity", decimals: 2 }, "note"];
  const rows = [
    ["full precision", 65.127, undefined],
    ["rtn", 9.5, "a|b"],
  ];

  it("aligns text left and numbers right, without trailing blanks", () => {
    expect(formatTable(columns, rows)).toBe(
      [
        "method          perplexity  note",
        "--------------  ----------  ----",
        "full precision       65.13  -",
        "rtn                   9.50  a|b",
      ].join("\n"),
    );
  });

  it("writes Markdown with escaped pipes", () => {
    expect(formatMarkdownTable(columns, rows)).toBe(
      [
        "| method | perplexity | note |",
        "|---|---:|---|",
        "| full precision | 65.13 | - |",
        "| rtn | 9.50 | a\\|b |",
      ].join("\n"),
    );
  });

  it("refuses rows that do not fit the header", () => {
    expect(() => formatTable(["a", "b"], [["only one"]])).toThrow("1 cells, its header 2");
  });
});
