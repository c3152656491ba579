/** What page.js finds in the HTML file beside it. */
import type * as PlotModule from "@observablehq/plot";

declare global {
  const Plot: typeof PlotModule;
}
