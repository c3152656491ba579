/** Columns out of rows, and into them. */
import type { Buffer } from "../../backend/contract/training.js";
import type { Graph, Tensor } from "../tensor.js";

/** Columns of a result: where they come from, or nothing: zeros. */
interface Stretch {
  readonly width: number;
  readonly from?: { readonly source: number; readonly cols: number; readonly at: number };
}

function divisor(a: number, b: number): number {
  return b === 0 ? a : divisor(b, a % b);
}

/**
 * [rows, Σ width] made of stretches of the sources' columns. All that begins or ends anywhere is a multiple of some width:
 * rows of that width are what one call gathers.
 */
function assemble(
  g: Graph,
  rows: number,
  sources: readonly { readonly values: Buffer; readonly size: number }[],
  stretches: readonly Stretch[],
): Buffer {
  const unit = stretches.reduce(
    (common, { width, from }) =>
      divisor(divisor(divisor(common, width), from?.at ?? 0), from?.cols ?? 0),
    0,
  );
  const total = sources.reduce((sum, { size }) => sum + size, 0);
  const holes = stretches.some(({ from }) => !from);
  let table = sources[0].values;
  const starts: number[] = [];
  if (sources.length > 1 || holes) {
    table = g.real(total + (holes ? unit : 0));
    if (holes) g.backend.fill(table, 0);
    let at = 0;
    for (const { values, size } of sources) {
      g.backend.copy(values, table, size, 0, at);
      starts.push(at);
      at += size;
    }
  } else starts.push(0);
  const width = stretches.reduce((sum, each) => sum + each.width, 0);
  const ids = new Int32Array((rows * width) / unit);
  let next = 0;
  for (let r = 0; r < rows; r++)
    for (const { width: count, from } of stretches)
      for (let c = 0; c < count; c += unit)
        ids[next++] = from
          ? (starts[from.source] + r * from.cols + from.at + c) / unit
          : total / unit;
  const out = g.real(rows * width);
  g.kernels.gatherRows({ table, cols: unit, ids: g.indices(ids), rows: ids.length, out });
  return out;
}

/** Columns `from` … `from + width` of x. */
export function takeColumns(g: Graph, x: Tensor, from: number, width: number): Tensor {
  const { rows, cols } = x;
  const source = { values: g.values(x), size: x.size };
  const out = assemble(g, rows, [source], [{ width, from: { source: 0, cols, at: from } }]);
  return g.result([rows, width], out, [x], (grad) => {
    const own = [
      { width: from },
      { width, from: { source: 0, cols: width, at: 0 } },
      { width: cols - from - width },
    ];
    const given = { values: grad, size: rows * width };
    g.accumulate(
      x,
      assemble(
        g,
        rows,
        [given],
        own.filter((each) => each.width > 0),
      ),
    );
  });
}

/** x with the columns from `at` on replaced by those of each part; parts do not overlap. */
export function spliceColumns(
  g: Graph,
  x: Tensor,
  parts: readonly { readonly x: Tensor; readonly at: number }[],
): Tensor {
  const { rows, cols } = x;
  const sorted = [...parts].sort((a, b) => a.at - b.at);
  /** Stretches of the result, where `of` says what a part's columns and x's own come from. */
  const layout = (
    part: (index: number) => Stretch["from"],
    own: (at: number) => Stretch["from"],
  ): Stretch[] => {
    const stretches: Stretch[] = [];
    let at = 0;
    for (const [i, { x: each, at: first }] of sorted.entries()) {
      stretches.push({ width: first - at, from: own(at) }, { width: each.cols, from: part(i) });
      at = first + each.cols;
    }
    return [...stretches, { width: cols - at, from: own(at) }].filter(({ width }) => width > 0);
  };
  const all = [x, ...sorted.map((part) => part.x)];
  const out = assemble(
    g,
    rows,
    all.map((each) => ({ values: g.values(each), size: each.size })),
    layout(
      (i) => ({ source: i + 1, cols: sorted[i].x.cols, at: 0 }),
      (at) => ({ source: 0, cols, at }),
    ),
  );
  return g.result([rows, cols], out, all, (grad) => {
    const given = [{ values: grad, size: x.size }];
    const kept = layout(
      () => undefined,
      (at) => ({ source: 0, cols, at }),
    );
    if (g.needs(x)) g.accumulate(x, assemble(g, rows, given, kept));
    for (const { x: part, at } of sorted) {
      if (!g.needs(part)) continue;
      g.accumulate(
        part,
        assemble(g, rows, given, [{ width: part.cols, from: { source: 0, cols, at } }]),
      );
    }
  });
}
