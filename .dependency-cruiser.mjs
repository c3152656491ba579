/**
 * Which files of src/ may import which: no cycles, and the rooms of backend/, engine/ and quantize/ in their order.
 * The big rooms' order is ESLint's (eslint.config.js).
 */

/** A rule for each room of an area: it imports itself and the rooms before it, types too. */
function downwards(area, ...levels) {
  return levels.slice(0, -1).map((rooms, level) => {
    const above = levels.slice(level + 1).flat();
    return {
      name: `${area}/${rooms.join(",")} knows nothing above it`,
      severity: "error",
      from: { path: `^src/${area}/(${rooms.join("|")})/` },
      to: { path: `^src/${area}/(${above.join("|")})/` },
    };
  });
}

/** Rooms side by side that do not know one another. */
function apart(area, ...rooms) {
  return {
    name: `${area}: ${rooms.join(", ")} do not know one another`,
    severity: "error",
    from: { path: `^src/${area}/(${rooms.join("|")})/` },
    to: { path: `^src/${area}/(${rooms.join("|")})/`, pathNot: `^src/${area}/$1/` },
  };
}

export default {
  forbidden: [
    { name: "no cycles", severity: "error", from: {}, to: { circular: true } },
    // The cpu backend runs WebAssembly's kernels where no native library fits.
    ...downwards("backend", ["contract"], ["wasm"], ["reference", "cpu", "cuda"]),
    apart("backend", "reference", "cpu", "cuda"),
    {
      name: "backend: training and inference of a device do not know one another",
      severity: "error",
      from: { path: "^src/backend/([^/]+)/(train|infer)/" },
      to: { path: "^src/backend/$1/(train|infer)/", pathNot: "^src/backend/$1/$2/" },
    },
    ...downwards(
      "quantize",
      ["schema"],
      ["calibration", "transforms"],
      ["grids"],
      ["block"],
      ["rounding"],
      ["methods", "artifact"],
      ["run"],
      ["queue"],
    ),
    {
      name: "quantize: methods do not import one another",
      severity: "error",
      from: { path: "^src/quantize/methods/([^/]+)/" },
      to: { path: "^src/quantize/methods/[^/]+/", pathNot: "^src/quantize/methods/$1/" },
    },
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
    enhancedResolveOptions: { extensions: [".ts", ".js", ".mjs"] },
  },
};
