/** quantization.json of an artifact, and what follows from its scheme. */
import { readFileSync } from "node:fs";
import { parseScheme } from "../../../src/backend/contract/scheme.js";
import { readQuantizationInfo } from "../../../src/quantize/artifact/quantization-info.js";
import { ensure, ensureFinite, type Target } from "../target.js";
import { decode, encode, JsonBase } from "../mutate.js";
import { scratch, scratchFile } from "../scratch.js";

const BASE = new JsonBase(
  JSON.parse(readFileSync(new URL("../bases/quantization.json", import.meta.url), "utf8")),
  ["refineLoss", "errorPacked", "linears", "files", "packingThreads"],
  [
    "w4a4kv4",
    "w16a16kv16",
    "w5a4",
    "w4a4kv0",
    { "self_attn.q_proj": { bits: 4, kept: "int4" } },
    { "model.safetensors": { bytes: 1, sha256: "0".repeat(64) } },
  ],
);

export const quantizationTarget: Target = {
  name: "quantization.json",
  generate: (random) => encode(BASE.mutated(random)),
  run(input) {
    scratchFile("quantization.json", decode(input));
    const info = readQuantizationInfo(scratch());
    ensureFinite(info);
    parseScheme(info.scheme);
    info.layers.forEach(({ layer }, i) =>
      ensure(layer === i, `layer ${layer} stands at place ${i}`),
    );
  },
};
