/**
 * Seeded random numbers. Our own because artifacts must stay byte-identical for a seed, whatever a dependency's
 * next version does. Generator: xoshiro128** (Blackman & Vigna 2018), seeded through splitmix32.
 */
export class Random {
  private readonly state = new Uint32Array(4);
  private spare: number | undefined;

  constructor(seed: number) {
    let s = seed >>> 0;
    for (let i = 0; i < 4; i++) {
      s = (s + 0x9e3779b9) >>> 0;
      let z = s;
      z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
      z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
      this.state[i] = z ^ (z >>> 16);
    }
  }

  /** An independent stream for a named part of the work, so that parts can be redone alone. */
  static for(seed: number, ...path: (string | number)[]): Random {
    let hash = seed >>> 0;
    for (const char of path.join("/")) {
      hash = Math.imul(hash ^ char.charCodeAt(0), 0x01000193) >>> 0;
      hash = (hash ^ (hash >>> 15)) >>> 0;
    }
    return new Random(hash);
  }

  nextUint32(): number {
    const s = this.state;
    const times5 = Math.imul(s[1], 5);
    const result = Math.imul((times5 << 7) | (times5 >>> 25), 9) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 11) | (s[3] >>> 21);
    return result;
  }

  /** Uniform in [0, 1) with 53 bits. */
  uniform(): number {
    const high = this.nextUint32() >>> 5;
    const low = this.nextUint32() >>> 6;
    return (high * 67108864 + low) / 9007199254740992;
  }

  /** Uniform whole number in [0, bound). */
  below(bound: number): number {
    return Math.floor(this.uniform() * bound);
  }

  /** Standard normal (Box–Muller). */
  normal(): number {
    if (this.spare !== undefined) {
      const value = this.spare;
      this.spare = undefined;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** Shuffles in place (Fisher–Yates). */
  shuffle(items: Int32Array | number[]): void {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const item = items[i];
      items[i] = items[j];
      items[j] = item;
    }
  }
}

/** A random orthogonal n×n matrix (Haar): Gram–Schmidt, twice, on normal columns. Row-major float64. */
export function randomOrthogonal(n: number, random: Random): Float64Array {
  const q = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) q[i * n + j] = random.normal();
    for (let pass = 0; pass < 2; pass++)
      for (let p = 0; p < i; p++) {
        let dot = 0;
        for (let j = 0; j < n; j++) dot += q[i * n + j] * q[p * n + j];
        for (let j = 0; j < n; j++) q[i * n + j] -= dot * q[p * n + j];
      }
    let square = 0;
    for (let j = 0; j < n; j++) square += q[i * n + j] ** 2;
    const scale = 1 / Math.sqrt(square);
    for (let j = 0; j < n; j++) q[i * n + j] *= scale;
  }
  return q;
}
