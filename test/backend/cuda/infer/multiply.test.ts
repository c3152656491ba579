/**
 * The arithmetic of native/cuda/engine/gemm_mma.cu for one buffer of its ring, restated lane by lane, with the matrix units
 * stated from the PTX manual (fragments of mma.m16n8k32 and m16n8k64, ldmatrix), against a plain product. What is restated is
 * where codes lie in packed weights, in shared memory and in registers; a GPU shows whether the source says the same.
 */
import { describe, expect, it } from "vitest";
import { codeOffset, packWeights, sourceRow } from "../../../../src/backend/cuda/infer/layout.js";
import type { PlainProduct } from "../../../../src/backend/cuda/infer/requests.js";
import { generator } from "./checks/support.js";

const LANES = Array.from({ length: 32 }, (_, lane) => lane);
const signed = (word: number, bits: 4 | 8, i: number) =>
  (word << (32 - bits * (i + 1))) >> (32 - bits);

/** c += A·B for a warp: a[lane][4], b[lane][2], c[lane][4], with eight 4-bit or four 8-bit codes in a register. */
function mma(c: number[][], a: number[][], b: number[][], bits: 4 | 8): void {
  const each = 32 / bits;
  const left = Array.from({ length: 16 }, () => new Int32Array(8 * each));
  const right = Array.from({ length: 8 }, () => new Int32Array(8 * each));
  for (const lane of LANES) {
    const [group, inGroup] = [lane >> 2, lane % 4];
    for (let i = 0; i < 4 * each; i++) {
      const second = Math.floor(i / each) % 2 === 1;
      const column = inGroup * each + (i % each) + (i >= 2 * each ? 4 * each : 0);
      left[group + (second ? 8 : 0)][column] = signed(
        a[lane][Math.floor(i / each)],
        bits,
        i % each,
      );
    }
    for (let i = 0; i < 2 * each; i++) {
      const row = inGroup * each + (i % each) + (i >= each ? 4 * each : 0);
      right[group][row] = signed(b[lane][Math.floor(i / each)], bits, i % each);
    }
  }
  for (const lane of LANES)
    for (let i = 0; i < 4; i++) {
      const row = (lane >> 2) + (i >= 2 ? 8 : 0);
      const column = (lane % 4) * 2 + (i & 1);
      c[lane][i] += left[row].reduce((sum, value, k) => sum + value * right[column][k], 0);
    }
}

/** Four 8×8 matrices of 16-bit numbers: lane l names row l % 8 of matrix l / 8, and gets word l % 4 of each one's row l / 4. */
function ldmatrix(memory: DataView, at: (lane: number) => number): number[][] {
  return LANES.map((lane) =>
    [0, 1, 2, 3].map((m) => memory.getUint32(at(8 * m + (lane >> 2)) + 4 * (lane % 4), true)),
  );
}

interface Case {
  readonly kernel: PlainProduct;
  readonly bits: 4 | 8;
  readonly activationBits: number;
  /** Of a warp. */
  readonly tokens: number;
  readonly across: 1 | 2;
}

const weightPlace = (k: number) => k ^ ((k >> 3) & 7);

/** Sums by [feature][token], as the lanes of eight warps have them. */
function multiply(given: Case, packed: Uint8Array, codes: Int8Array): Map<string, number> {
  const { kernel, bits, tokens, across } = given;
  const blockTokens = tokens * across;
  const start = blockTokens * 128;
  const memory = new Uint8Array(start + packed.length);
  memory.set(new Uint8Array(codes.buffer, 0, start));
  for (let k = 0; k < packed.length / 16; k++)
    memory.set(packed.subarray(16 * k, 16 * k + 16), start + 16 * weightPlace(k));
  const view = new DataView(memory.buffer);
  const piece = (at: number) => [0, 4, 8, 12].map((i) => view.getUint32(at + i, true));
  const weightsOf = (of: number, t: number, half: number) =>
    Math.floor(of / 4) * (packed.length / 2) + (2 * t + half) * 512 * bits + (of % 4) * 128 * bits;
  const unit = bits === 4 && kernel !== "mma-s4" ? 16 : 1;
  const nibbles = (low: number, high: number) => (low & 0x0f0f0f0f) | (high & 0xf0f0f0f0);
  const found = new Map<string, number>();
  const keep = (of: number, t: number, lane: number, i: number, token: number, sum: number) => {
    const r = (lane >> 2) + (i >= 2 ? 8 : 0);
    const order = { rows: 256, gated: false };
    const row = sourceRow(order, 0, Math.floor(of / 4), of % 4, t, r);
    const key = `${row} ${token + (lane % 4) * 2 + (i & 1)}`;
    expect(found.has(key)).toBe(false);
    found.set(key, sum / unit);
  };

  for (let warp = 0; warp < 8; warp++) {
    const firstOf = (warp % (8 / across)) * across;
    const firstToken = Math.floor(warp / (8 / across)) * tokens;
    for (let of = firstOf; of < firstOf + across; of++)
      for (let t = 0; t < 2; t++)
        for (let j = 0; j < tokens / 8; j++) {
          const c = LANES.map(() => [0, 0, 0, 0]);
          const first = (of % 4) * 8 * bits;
          if (kernel === "dp4a") {
            for (const lane of LANES)
              for (let step = 0; step < 4; step++)
                for (let i = 0; i < 2; i++)
                  for (let h = 0; h < 2; h++)
                    for (let q = 0; q < 4; q++) {
                      const s = step % 2;
                      const k = first + (4 * (lane >> 2) + q) * (bits / 4) + (bits === 8 ? s : 0);
                      const from = start + weightsOf(of, t, step >> 1);
                      const four = piece(from + (weightPlace(k) - first) * 16);
                      const word = bits === 8 ? four[2 * i + h] : four[2 * s + i];
                      const a = bits === 8 ? word : (h ? word : word << 4) & 0xf0f0f0f0;
                      for (let e = 0; e < 2; e++) {
                        const row = 8 * j + 2 * (lane % 4) + e;
                        const b = piece(row * 128 + ((2 * step + i) ^ (row % 8)) * 16)[q];
                        for (let n = 0; n < 4; n++)
                          c[lane][2 * h + e] += signed(a, 8, n) * signed(b, 8, n);
                      }
                    }
          } else
            for (let half = 0; half < 2; half++) {
              const words = LANES.map((lane) => {
                const place = (weightPlace(first + lane * (bits / 4)) - first) * 16;
                const at = start + weightsOf(of, t, half) + place;
                return [...piece(at), ...(bits === 8 ? piece(at ^ 16) : [])];
              });
              const x = ldmatrix(
                view,
                (lane) =>
                  ((firstToken + (lane % 8)) * 128 + ((lane >> 3) ^ (lane % 8)) * 16 + j * 1024) ^
                  (64 * half),
              );
              if (kernel === "mma-s4") {
                const a = words.map(([w0, w1, w2, w3]) => [
                  nibbles(w0, w1 << 4),
                  nibbles(w0 >>> 4, w1),
                  nibbles(w2, w3 << 4),
                  nibbles(w2 >>> 4, w3),
                ]);
                const b = x.map(([x0, x1, x2, x3]) => [nibbles(x0, x1 << 4), nibbles(x2, x3 << 4)]);
                mma(c, a, b, 4);
              } else
                for (let s = 0; s < 2; s++) {
                  const a = words.map((w) =>
                    bits === 8
                      ? w.slice(4 * s, 4 * s + 4)
                      : [0, 1, 2, 3].map(
                          (r) =>
                            (r % 2 ? w[2 * s + (r >> 1)] : w[2 * s + (r >> 1)] << 4) & 0xf0f0f0f0,
                        ),
                  );
                  mma(
                    c,
                    a,
                    x.map((four) => four.slice(2 * s, 2 * s + 2)),
                    8,
                  );
                }
            }
          for (const lane of LANES)
            for (let i = 0; i < 4; i++) keep(of, t, lane, i, firstToken + 8 * j, c[lane][i]);
        }
  }
  return found;
}

describe("what the matrix units are given, in the order that packed weights and codes have", () => {
  it.each<Case>([
    { kernel: "mma-s4", bits: 4, activationBits: 4, tokens: 16, across: 1 },
    { kernel: "mma-s4", bits: 4, activationBits: 4, tokens: 16, across: 2 },
    { kernel: "mma-s8", bits: 4, activationBits: 8, tokens: 8, across: 1 },
    { kernel: "mma-s8", bits: 8, activationBits: 8, tokens: 16, across: 2 },
    { kernel: "dp4a", bits: 4, activationBits: 8, tokens: 16, across: 1 },
    { kernel: "dp4a", bits: 8, activationBits: 8, tokens: 8, across: 1 },
  ])("%o", (given) => {
    const { bits, activationBits, tokens, across } = given;
    const next = generator(bits * 31 + activationBits);
    const codesOf = (count: number, width: number) =>
      Int8Array.from({ length: count }, () => Math.floor(next() * 2 ** (width - 1)));
    const count = tokens * across;
    const weights = codesOf(256 * 128, bits);
    const plain = codesOf(count * 128, activationBits);
    const codes = new Int8Array(count * 128);
    for (let t = 0; t < count; t++)
      for (let c = 0; c < 128; c++) codes[codeOffset(count, t, c)] = plain[t * 128 + c];
    const packed = packWeights(weights, 128, { rows: 256, gated: false }, bits);
    const found = multiply(given, packed, codes);
    expect(found.size).toBe(256 * count);
    let wrong = 0;
    for (let f = 0; f < 256; f++)
      for (let t = 0; t < count; t++) {
        let sum = 0;
        for (let c = 0; c < 128; c++) sum += weights[f * 128 + c] * plain[t * 128 + c];
        if (found.get(`${f} ${t}`) !== sum) wrong++;
      }
    expect(wrong).toBe(0);
  });
});
