// @ts-check
/**
 * The report's plots and the controls that pick what they show. Runs in the reader's browser from the HTML file itself,
 * with Observable Plot as the global `Plot`; reads the JSON that `src/experiments/page/data.ts` describes.
 */
(() => {
  /** @typedef {import("../../src/experiments/page/data.js").PageData} PageData */
  /** @typedef {import("../../src/experiments/page/data.js").Magnitudes} Magnitudes */
  /** @typedef {import("../../src/experiments/page/data.js").Distribution} Distribution */
  /** @typedef {import("@observablehq/plot").PlotOptions} PlotOptions */

  const SITE_TITLES = /** @type {Record<string, string>} */ ({
    attn_in: "into q, k, v",
    attn_out: "into o",
    mlp_in: "into the MLP",
    mlp_down: "into down",
  });

  /** @type {PageData} */
  const data = JSON.parse(document.getElementById("data")?.textContent ?? "{}");
  const root = /** @type {HTMLElement} */ (document.getElementById("plots"));
  const { methods, siteNames } = data;
  /** What is shown: indices of method, block and site. */
  const shown = { method: 0, layer: 0, site: siteNames.length - 1 };
  /** Draws again what depends on the choice, or on the width. @type {(() => void)[]} */
  const redraws = [];

  /** The same colour for a method wherever it appears. @param {number} index */
  const methodColor = (index) => `var(--m${index % 10})`;

  /**
   * @template {keyof HTMLElementTagNameMap} K
   * @param {K} tag
   * @param {Record<string, string>} [attributes]
   * @param {(Node | string)[]} [children]
   * @returns {HTMLElementTagNameMap[K]}
   */
  function element(tag, attributes = {}, children = []) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** @param {string} title @param {string} text @param {(Node | string)[]} children */
  function section(title, text, children) {
    const id = `s-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
    root.append(
      element("section", { "aria-labelledby": id }, [
        element("h2", { id }, [title]),
        element("p", {}, [text]),
        ...children,
      ]),
    );
  }

  /**
   * A figure that is drawn as wide as its place is. `draw` gives the plot's options and its caption.
   * @param {string} title
   * @param {() => { options: PlotOptions, caption: (Node | string)[], text: string } | undefined} draw
   */
  function figure(title, draw) {
    const place = element("div");
    const caption = element("figcaption");
    const whole = element("figure", {}, [element("h3", {}, [title]), place, caption]);
    redraws.push(() => {
      const drawn = draw();
      whole.hidden = drawn === undefined;
      if (!drawn) return;
      const width = Math.max(260, Math.min(whole.clientWidth || 600, 1080));
      const svg = Plot.plot({
        width,
        height: 230,
        marginLeft: 46,
        marginBottom: 36,
        ...drawn.options,
      });
      // One picture with one description: names on its parts would be read as nothing.
      for (const part of svg.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", `${title}. ${drawn.text}`);
      place.replaceChildren(svg);
      caption.replaceChildren(...drawn.caption);
    });
    return whole;
  }

  /** @param {readonly { name: string, color: string }[]} entries */
  function legend(entries) {
    return element(
      "ul",
      { class: "legend" },
      entries.map(({ name, color }) =>
        element("li", {}, [element("span", { style: `background:${color}` }), name]),
      ),
    );
  }

  /** @param {number} x */
  const percent = (x) => `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`;

  /** Which of the sorted channels stands at a point of a curve: as `curvePlace` in data.ts. @param {number} point @param {number} points @param {number} channels */
  const channelAt = (point, points, channels) =>
    Math.round((point / (points - 1)) ** 2 * (channels - 1)) + 1;

  /** Divergence against size and against speed: what is best in either stands out, and is joined by a line. */
  function planeSection() {
    const points = data.plane ?? [];
    if (points.length < 3) return;
    const named = points.map(({ name }, index) => ({ name, color: methodColor(index) }));
    const colors = new Map(named.map(({ name, color }) => [name, color]));
    /**
     * @param {string} title @param {"size" | "speed"} of @param {string} label
     * @param {(point: (typeof points)[number]) => number | undefined} x
     */
    const plane = (title, of, label, x) =>
      figure(title, () => {
        const some = points.flatMap((point) => {
          const place = x(point);
          return place === undefined ? [] : [{ ...point, place }];
        });
        if (some.length < 3) return undefined;
        const best = some
          .filter((point) => point.best.includes(of))
          .sort((a, b) => a.place - b.place);
        return {
          options: {
            height: 320,
            x: { label, grid: true, nice: true },
            y: { label: "KL to the original (nats a token)", grid: true, zero: true, nice: true },
            marks: [
              Plot.line(best, {
                x: "place",
                y: "kl",
                stroke: "var(--muted)",
                strokeDasharray: "4 3",
              }),
              Plot.dot(some, {
                x: "place",
                y: "kl",
                r: (d) => (d.best.includes(of) ? 7 : 4),
                fill: (d) => colors.get(d.name),
                fillOpacity: (d) => (d.best.includes(of) ? 1 : 0.5),
              }),
              Plot.text(some, {
                x: "place",
                y: "kl",
                text: "name",
                dy: -13,
                fill: "var(--ink)",
              }),
              Plot.tip(
                some,
                Plot.pointer({
                  x: "place",
                  y: "kl",
                  fill: "var(--bg)",
                  stroke: "var(--line)",
                  title: (d) =>
                    `${d.name}\nKL ${d.kl.toPrecision(3)}${d.perplexity === undefined ? "" : `, perplexity ${d.perplexity.toFixed(2)}`}\n${label}: ${d.place.toPrecision(4)}`,
                }),
              ),
            ],
            color: { type: "identity" },
            r: { type: "identity" },
            opacity: { type: "identity" },
          },
          caption: [`best in ${of}: ${best.map(({ name }) => name).join(", ")}`],
          text: some
            .map((d) => `${d.name}: KL ${d.kl.toPrecision(3)}, ${label} ${d.place.toPrecision(4)}`)
            .join("; "),
        };
      });
    section(
      "What to choose",
      "Lower is nearer to the original. Large dots: no other method is as near and as small, or as near and as fast.",
      [
        element("div", { class: "pair" }, [
          plane("Divergence against size", "size", "size (MB)", ({ bytes }) => bytes / 1e6),
          plane("Divergence against decoding speed", "speed", "tokens/s", ({ decode }) => decode),
        ]),
      ],
    );
  }

  function tasksSection() {
    const scores = data.tasks ?? [];
    if (scores.length === 0) return;
    const names = [...new Set(scores.map(({ name }) => name))];
    const colors = new Map(names.map((name, index) => [name, methodColor(index)]));
    section("Zero-shot tasks", "The customary metric of each task, by method.", [
      legend(names.map((name) => ({ name, color: colors.get(name) ?? "" }))),
      figure("Share of items answered right", () => ({
        options: {
          height: 300,
          fx: { label: null },
          x: { axis: null, domain: names },
          y: { label: "right", tickFormat: ".0%", grid: true, zero: true },
          marks: [
            Plot.barY(scores, {
              fx: "task",
              x: "name",
              y: "value",
              fill: (d) => colors.get(d.name),
            }),
            Plot.ruleY([0], { stroke: "var(--line)" }),
          ],
          color: { type: "identity" },
        },
        caption: [],
        text: scores.map((d) => `${d.task}, ${d.name}: ${percent(d.value)}`).join("; "),
      })),
    ]);
  }

  function depthSection() {
    const series = methods.flatMap(({ name, depth }, index) =>
      (depth ?? []).map((error, block) => ({ name, index, block, error })),
    );
    if (series.length === 0) return;
    const named = methods
      .map(({ name, depth }, index) => ({ name, depth, color: methodColor(index) }))
      .filter(({ depth }) => depth !== undefined);
    section(
      "Errors through the depth of the model",
      "Relative error of the hidden states after each block, every model on its own states: what earlier blocks lost is in it.",
      [
        legend(named),
        figure("Relative error after each block", () => ({
          options: {
            height: 320,
            x: { label: "block", ticks: Math.min(data.layers, 12), tickFormat: "d" },
            y: { label: "relative error", grid: true, zero: true, tickFormat: ".0%" },
            marks: [
              Plot.ruleY([0], { stroke: "var(--line)" }),
              Plot.line(series, {
                x: "block",
                y: "error",
                z: "name",
                stroke: (d) => methodColor(d.index),
                strokeWidth: 2,
              }),
              Plot.tip(
                series,
                Plot.pointer({
                  x: "block",
                  y: "error",
                  fill: "var(--bg)",
                  stroke: "var(--line)",
                  title: (d) => `${d.name}\nafter block ${d.block}: ${percent(d.error)}`,
                }),
              ),
            ],
            color: { type: "identity" },
          },
          caption: [],
          text: named
            .map(
              ({ name, depth }) => `${name}: ${percent(depth?.at(-1) ?? 0)} after the last block`,
            )
            .join("; "),
        })),
      ],
    );
  }

  /** Picks method, block and site; its choice is what the sections below show. */
  function controls() {
    const select = element(
      "select",
      { id: "method" },
      methods.map(({ name }, i) => element("option", { value: String(i) }, [name])),
    );
    select.addEventListener("change", () => choose({ method: Number(select.value) }));
    const range = element("input", {
      id: "layer",
      type: "range",
      min: "0",
      max: String(data.layers - 1),
      value: "0",
    });
    range.addEventListener("input", () => choose({ layer: Number(range.value) }));
    const output = element("output", { for: "layer" });
    const radios = siteNames.map((_, i) => {
      const radio = element("input", { type: "radio", name: "site", value: String(i) });
      radio.addEventListener("change", () => choose({ site: i }));
      return radio;
    });
    redraws.push(() => {
      select.value = String(shown.method);
      range.value = String(shown.layer);
      output.textContent = String(shown.layer);
      for (const [i, radio] of radios.entries()) radio.checked = i === shown.site;
    });
    return element("div", { class: "controls", role: "group", "aria-label": "What is shown" }, [
      element("div", {}, [element("label", { for: "method" }, ["Method"]), " ", select]),
      element("div", { class: "block" }, [
        element("label", { for: "layer" }, ["Block"]),
        range,
        output,
      ]),
      element("fieldset", {}, [
        element("legend", {}, ["Site"]),
        ...siteNames.map((name, i) => element("label", {}, [radios[i], ` ${name}`])),
      ]),
    ]);
  }

  /** @param {Partial<typeof shown>} change */
  function choose(change) {
    Object.assign(shown, change);
    redraw();
  }

  /** Errors by block and site, as a table of buttons: arrow keys move, Enter picks. */
  function heatSection() {
    if (!methods.some(({ siteErrors }) => siteErrors)) return;
    const largest = Math.max(...methods.flatMap(({ siteErrors }) => (siteErrors ?? []).flat()));
    const place = element("div", { class: "heat scroll" });
    redraws.push(() => {
      const { siteErrors, blockErrors, name } = methods[shown.method];
      if (!siteErrors) {
        place.replaceChildren(element("p", {}, [`${name} left no artifact to look into.`]));
        return;
      }
      const focused = place.contains(document.activeElement);
      const rows = siteErrors.map((errors, layer) =>
        element("tr", {}, [
          element("th", { scope: "row" }, [String(layer)]),
          ...errors.map((error, site) => {
            const picked = layer === shown.layer && site === shown.site;
            const button = element(
              "button",
              {
                type: "button",
                style: `--p:${(error / largest).toFixed(3)}`,
                "aria-pressed": String(picked),
                "aria-label": `block ${layer}, ${siteNames[site]}: ${percent(error)}`,
                tabindex: picked ? "0" : "-1",
              },
              [percent(error)],
            );
            button.addEventListener("click", () => choose({ layer, site }));
            return element("td", {}, [button]);
          }),
          element("td", {}, [
            element("span", { style: "--p:0" }, [percent(blockErrors?.[layer] ?? 0)]),
          ]),
        ]),
      );
      place.replaceChildren(
        element("table", { "aria-label": `Relative errors of ${name} by block and site` }, [
          element("thead", {}, [
            element("tr", {}, [
              element("th", { scope: "col" }, ["block"]),
              ...siteNames.map((site) => element("th", { scope: "col" }, [site])),
              element("th", { scope: "col" }, ["output"]),
            ]),
          ]),
          element("tbody", {}, rows),
        ]),
      );
      if (focused)
        /** @type {HTMLElement | null} */ (place.querySelector("[tabindex='0']"))?.focus();
    });
    const moves = /** @type {Record<string, [number, number]>} */ ({
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    });
    place.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      choose({
        layer: Math.min(Math.max(shown.layer + move[0], 0), data.layers - 1),
        site: Math.min(Math.max(shown.site + move[1], 0), siteNames.length - 1),
      });
    });
    section(
      "Where a method loses",
      "Relative error of each site's outputs, and of the block's, when the block reads full-precision states. Stronger colour is larger, " +
        "on one scale for all methods. Pick a cell, or move with the arrow keys: the plots below follow.",
      [place],
    );
  }

  /**
   * @param {"activations" | "weights"} kind
   * @param {string} title
   */
  function flatnessFigure(kind, title) {
    return figure(title, () => {
      const before = data.before?.[shown.layer][shown.site][kind];
      const after = methods[shown.method].sites?.[shown.layer][shown.site][kind];
      if (!before) return undefined;
      const curves = /** @type {[string, Magnitudes, string][]} */ ([
        ["before", before, "var(--before)"],
        ...(after ? [["after", after, "var(--after)"]] : []),
      ]);
      const points = curves.flatMap(([name, { curve, channels }, color]) =>
        curve.map((value, i) => ({
          name,
          color,
          value,
          rank: channelAt(i, curve.length, channels),
        })),
      );
      const numbers = curves.map(([name, { flatness }]) => `${name} ${flatness.toFixed(2)}`);
      return {
        options: {
          x: { label: "channels, largest first", type: "sqrt" },
          y: { label: "multiples of the mean", grid: true, zero: true },
          color: { type: "identity" },
          marks: [
            Plot.ruleY([1], { stroke: "var(--muted)", strokeDasharray: "3 3" }),
            Plot.line(points, {
              x: "rank",
              y: "value",
              z: "name",
              stroke: "color",
              strokeWidth: 2,
            }),
            Plot.tip(
              points,
              Plot.pointer({
                x: "rank",
                y: "value",
                fill: "var(--bg)",
                stroke: "var(--line)",
                title: (d) => `${d.name}\nchannel ${d.rank}: ${d.value.toFixed(2)} × mean`,
              }),
            ),
          ],
        },
        caption: ["distance from flat: ", element("strong", {}, [numbers.join(", ")])],
        text: `Distance from flat: ${numbers.join(", ")}.`,
      };
    });
  }

  /**
   * @param {"activationGrid" | "weightGrid"} kind
   * @param {"before" | "after"} when
   * @param {string} title
   */
  function gridFigure(kind, when, title) {
    return figure(title, () => {
      const views = when === "before" ? data.before : methods[shown.method].sites;
      /** @type {Distribution | undefined} */
      const grid = views?.[shown.layer][shown.site][kind];
      if (!grid) return undefined;
      const [low, high] = grid.range;
      const width = (high - low) / grid.shares.length;
      const bins = grid.shares.map((share, i) => ({
        from: low + i * width,
        to: low + (i + 1) * width,
        share,
      }));
      const levels =
        grid.bits <= 4 ? Array.from({ length: 2 ** grid.bits }, (_, i) => low + 0.5 + i) : [];
      const middle = bins.filter(({ from, to }) => from < 0.5 && to > -0.5);
      const zero = middle.reduce((sum, { share }) => sum + share, 0);
      // Bins wider than a level do not tell.
      const zeros = width > 1 ? "" : `; ${percent(zero)} of the values become 0`;
      const color = when === "before" ? "var(--before)" : "var(--after)";
      return {
        options: {
          height: 200,
          x: { label: "steps of the grid", domain: [low, high], tickFormat: "d" },
          y: {
            label: "share of values (root scale)",
            type: "sqrt",
            tickFormat: ".0%",
            ticks: 4,
            grid: true,
          },
          marks: [
            Plot.ruleX(levels, { stroke: "var(--line)" }),
            Plot.rectY(bins, {
              x1: "from",
              x2: "to",
              y: "share",
              fill: color,
              insetLeft: 0.5,
              insetRight: 0.5,
            }),
            Plot.ruleY([0], { stroke: "var(--muted)" }),
          ],
        },
        caption: [`${grid.bits} bits${zeros}`],
        text: `${grid.bits} bits${zeros}.`,
      };
    });
  }

  function siteSections() {
    if (!data.before) return;
    const heading = element("p");
    redraws.push(() => {
      const site = siteNames[shown.site];
      heading.replaceChildren(
        element("strong", {}, [`${methods[shown.method].name}, block ${shown.layer}, ${site}`]),
        ` (${SITE_TITLES[site] ?? ""})`,
      );
    });
    const colors = legend([
      { name: "before: as trained, plain grid", color: "var(--before)" },
      { name: "after: as the method has it", color: "var(--after)" },
    ]);
    section(
      "Flatness",
      "Largest magnitude of every channel, sorted, in multiples of the mean. A flat curve wastes no level of the grid. The " +
        "distance from flat is the root mean square distance of the curve from its mean, over the mean.",
      [
        heading,
        colors,
        element("div", { class: "pair" }, [
          flatnessFigure("activations", "Activations"),
          flatnessFigure("weights", "Weights that read them"),
        ]),
      ],
    );
    if (!data.before[0].some(({ activationGrid, weightGrid }) => activationGrid ?? weightGrid))
      return;
    section(
      "Distributions on their grids",
      "Where values lie between the levels they are rounded to (lines), each row in steps of its own grid. Weights after the " +
        "method are the integers as packed.",
      [
        element("div", { class: "pair" }, [
          gridFigure("activationGrid", "before", "Activations before"),
          gridFigure("activationGrid", "after", "Activations after"),
          gridFigure("weightGrid", "before", "Weights before"),
          gridFigure("weightGrid", "after", "Weights after"),
        ]),
      ],
    );
  }

  function calibrationSection() {
    if (!methods.some(({ finalError }) => finalError)) return;
    section(
      "Calibration",
      "How far calibration brought each block of the chosen method: mean squared error of the block's output, and the loss of " +
        "each pass over the text relative to the first.",
      [
        element("div", { class: "pair" }, [
          figure("Error of each block, over that of rounding to nearest", () => {
            const { roundedError, finalError, name } = methods[shown.method];
            if (!roundedError || !finalError) return undefined;
            const bars = finalError.map((error, block) => ({
              block,
              share: error / roundedError[block],
            }));
            const mean = bars.reduce((sum, { share }) => sum + share, 0) / bars.length;
            return {
              options: {
                x: {
                  label: "block",
                  type: "band",
                  tickFormat: (b) => (data.layers <= 16 || b % 5 === 0 ? String(b) : ""),
                },
                y: { label: "of rounding's error", tickFormat: ".0%", grid: true, zero: true },
                marks: [
                  Plot.barY(bars, {
                    x: "block",
                    y: "share",
                    fill: (d) => (d.block === shown.layer ? "var(--accent)" : "var(--after)"),
                  }),
                  Plot.ruleY([1], { stroke: "var(--muted)", strokeDasharray: "3 3" }),
                ],
                color: { type: "identity" },
              },
              caption: [`${name}: ${percent(mean)} on average`],
              text: `${name}: ${percent(mean)} of the error of rounding to nearest on average.`,
            };
          }),
          figure("Loss of each epoch, over the first", () => {
            const { epochLoss, name } = methods[shown.method];
            const lines = (epochLoss ?? []).flatMap((losses, block) =>
              losses.map((loss, epoch) => ({ block, epoch: epoch + 1, share: loss / losses[0] })),
            );
            if (!lines.some(({ epoch }) => epoch > 1)) return undefined;
            const own = lines.filter(({ block }) => block === shown.layer);
            return {
              options: {
                x: { label: "epoch", ticks: Math.min(own.length, 10), tickFormat: "d" },
                y: { label: "of the first epoch's loss", tickFormat: ".0%", grid: true },
                marks: [
                  Plot.line(lines, {
                    x: "epoch",
                    y: "share",
                    z: "block",
                    stroke: "var(--muted)",
                    strokeOpacity: 0.5,
                  }),
                  Plot.line(own, {
                    x: "epoch",
                    y: "share",
                    stroke: "var(--accent)",
                    strokeWidth: 3,
                  }),
                ],
              },
              caption: [`${name}: every block, block ${shown.layer} in bold`],
              text: `Block ${shown.layer} ends at ${percent(own.at(-1)?.share ?? 1)} of its first epoch's loss.`,
            };
          }),
        ]),
      ],
    );
  }

  function redraw() {
    for (const each of redraws) each();
  }

  if (methods.length > 0) {
    planeSection();
    tasksSection();
    depthSection();
    // The method that was named last is usually the one that is asked about.
    shown.method = methods.length - 1;
    shown.layer = data.layers - 1;
    root.append(controls());
    heatSection();
    siteSections();
    calibrationSection();
    redraw();
    let width = root.clientWidth;
    addEventListener("resize", () => {
      if (root.clientWidth === width) return;
      width = root.clientWidth;
      redraw();
    });
  }
})();
