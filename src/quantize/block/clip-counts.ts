/** Activations that a model meets beyond the reach of its static grids, counted while it runs. */

/** Values that met one linear's static grid, and those of them that lay beyond its reach. */
export interface ClipCount {
  readonly clipped: number;
  readonly values: number;
}

export class ClipCounter {
  private readonly counts = new Map<string, ClipCount>();

  /** `linear`: its full path, such as "model.layers.3.mlp.down_proj". */
  add(linear: string, clipped: number, values: number): void {
    const before = this.counts.get(linear);
    this.counts.set(linear, {
      clipped: clipped + (before?.clipped ?? 0),
      values: values + (before?.values ?? 0),
    });
  }

  /** Counts of the linears that clipped anything, most first, and of all together. */
  summary(): ClipSummary {
    let clipped = 0;
    let values = 0;
    for (const count of this.counts.values()) {
      clipped += count.clipped;
      values += count.values;
    }
    const linears = [...this.counts]
      .filter(([, count]) => count.clipped > 0)
      .sort(([, a], [, b]) => b.clipped - a.clipped);
    return { clipped, values, linears: Object.fromEntries(linears) };
  }
}

export interface ClipSummary extends ClipCount {
  readonly linears: Readonly<Record<string, ClipCount>>;
}
