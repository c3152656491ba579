/** The journal of a run: its settings, and what is kept of finished blocks, with hashes that fit or do not. */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { Journal } from "../../../src/quantize/run/journal.js";
import { ensureFinite, type Target } from "../target.js";
import { decode, encode, JsonBase, mutatedBytes, pick } from "../mutate.js";
import { scratch } from "../scratch.js";
import { safetensorsBytes } from "../../checkpoint/file-bytes.js";

const SETTINGS = {
  method: "rtn",
  recipe: { samples: 2 },
  seed: 0,
  machine: { device: "cpu", threads: 2 },
};
const SETTINGS_BASE = new JsonBase(SETTINGS);

const CONTENTS = {
  "block-000": {
    errorRounded: 0.5, errorInitial: 0.4, errorFinal: 0.3, epochLoss: [0.4, 0.3], moved: { "attn_in.diag": 0.1 },
    notes: ["a note"], linears: { "self_attn.q_proj": { kept: "int4", error: 0.1 } },
  },
  "packed-000": { errorPacked: 0.25, notes: [] },
  refine: { name: "refine-000002", step: 2, blocks: 1, losses: [1, 0.5] },
} as const; // prettier-ignore
type Part = keyof typeof CONTENTS;
const PARTS = Object.keys(CONTENTS) as Part[];
const BASES = Object.fromEntries(
  PARTS.map((part) => [part, new JsonBase(CONTENTS[part], ["alternatives"])]),
);

/** What is stored beside each of them: `0/` says the block in an end-to-end stage. */
const TENSORS = safetensorsBytes(
  { "0/attn_in.diag": { dtype: "F32", shape: [2], data_offsets: [0, 8] } },
  new Uint8Array(new Float32Array([0.5, 2]).buffer),
);

interface Case {
  readonly settings: string;
  readonly part: Part;
  /** Text of the seal's content, and whether its hashes are made anew. */
  readonly content: string;
  readonly resealed: boolean;
  readonly tensors: string;
}

function sha(data: string | Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}

/** A seal over a content, with hashes that fit unless the text is no JSON. */
function seal({ content, part, resealed }: Case, tensors: Uint8Array): string {
  const file = `${part === "refine" ? CONTENTS.refine.name : part}.safetensors`;
  const record = { bytes: tensors.length, sha256: sha(tensors) };
  const rest = (text: string): string =>
    `"file":${JSON.stringify(file)},"record":${JSON.stringify(record)},"content":${text}`;
  let canonical = content;
  try {
    if (resealed) canonical = JSON.stringify(JSON.parse(content)) ?? content;
  } catch {
    // Stays as it is: no hash fits it.
  }
  const whole = JSON.stringify(CONTENTS[part]);
  return `{"sha256":"${sha(`{${rest(resealed ? canonical : whole)}}`)}",${rest(content)}}`;
}

export const journalTarget: Target = {
  name: "journal",
  generate(random) {
    const part = pick(random, PARTS);
    const kind = random.uniform();
    const made: Case = {
      settings:
        kind < 0.15 ? SETTINGS_BASE.mutated(random) : `${JSON.stringify(SETTINGS, undefined, 2)}\n`,
      part,
      content: kind < 0.15 ? JSON.stringify(CONTENTS[part]) : BASES[part].mutated(random),
      resealed: random.uniform() < 0.8,
      tensors: Buffer.from(kind > 0.85 ? mutatedBytes(TENSORS, random) : TENSORS).toString(
        "base64",
      ),
    };
    return encode(JSON.stringify(made));
  },
  run(input) {
    const made = JSON.parse(decode(input)) as Case;
    const out = join(scratch(), "artifact");
    const directory = Journal.pathFor(out);
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(directory);
    const tensors = Buffer.from(made.tensors, "base64");
    const file = made.part === "refine" ? CONTENTS.refine.name : made.part;
    writeFileSync(join(directory, "settings.json"), made.settings);
    writeFileSync(join(directory, `${file}.safetensors`), tensors);
    writeFileSync(join(directory, `${made.part}.json`), seal(made, tensors));
    const journal = Journal.open(out, SETTINGS, { resume: true });
    if (journal.hasBlock(0)) ensureFinite(journal.readBlock(0));
    ensureFinite(journal.readPacked(0));
    ensureFinite(journal.readRefine());
  },
};
