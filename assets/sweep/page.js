// @ts-check
/**
 * Trade-off curves of a sweep: perplexity against the share of 4-bit computation, size and speed. Runs in the reader's
 * browser from the HTML file itself, with Observable Plot as the global `Plot`; reads the JSON of `planish sweep`.
 */
(() => {
  /** @typedef {import("../../src/experiments/sweep/sweep.js").Sweep} Sweep */
  /** @typedef {import("../../src/experiments/sweep/sweep.js").SweepPoint} SweepPoint */

  /** @type {Sweep} */
  const sweep = JSON.parse(document.getElementById("data")?.textContent ?? "{}");
  const root = /** @type {HTMLElement} */ (document.getElementById("plots"));

  /** @type {[string, (point: SweepPoint) => number | undefined][]} */
  const axes = [
    ["multiply-adds at 4 bits (%)", (p) => p.fourBitShare && 100 * p.fourBitShare],
    ["size (MB)", (p) => p.bytes / 1e6],
    ["prompt tokens per second", (p) => p.tokensPerSecond],
  ];
  for (const [label, value] of axes) {
    const points = sweep.points.flatMap((point) => {
      const x = value(point);
      return x === undefined ? [] : [{ x, y: point.perplexity, name: point.name }];
    });
    if (points.length === 0) continue;
    points.sort((a, b) => a.x - b.x);
    const section = document.createElement("section");
    const heading = document.createElement("h2");
    heading.textContent = `Perplexity against ${label}`;
    const full = sweep.fullPrecision.perplexity;
    const plot = Plot.plot({
      width: Math.min(900, root.clientWidth || 900),
      height: 320,
      grid: true,
      x: { label, nice: true },
      y: { label: "perplexity", nice: true },
      marks: [
        Plot.ruleY([full], { strokeDasharray: "4 3", stroke: "currentColor" }),
        Plot.text([full], {
          y: (/** @type {number} */ d) => d,
          frameAnchor: "right",
          dy: -6,
          text: () => "full precision",
          textAnchor: "end",
        }),
        Plot.line(points, { x: "x", y: "y", stroke: "var(--m0)", strokeOpacity: 0.4 }),
        Plot.dot(points, { x: "x", y: "y", fill: "var(--m0)", tip: true, title: "name" }),
      ],
    });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", heading.textContent);
    section.append(heading, plot);
    root.append(section);
  }
})();
