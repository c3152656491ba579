/**
 * The journal of a run: a directory beside the artifact-to-be that holds the settings, each finished block and the
 * state of the end-to-end stage. A file under its final name is complete, so a run killed at any moment goes on at
 * the first unfinished block. Removed when the artifact is in place.
 */
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readSync,
  rmdirSync,
  rmSync,
  statSync,
  writeSync,
  openSync,
  closeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { isJsonObject, readJsonObject } from "../../checkpoint/file-reader.js";
import {
  fileProblems,
  fileRecordSchema,
  recordFile,
  sha256OfText,
} from "../../checkpoint/file-record.js";
import { sealedText, unsealed } from "../../checkpoint/sealed-json.js";
import {
  openSafetensors,
  writeSafetensors,
  type TensorEntry,
} from "../../checkpoint/safetensors.js";
import { oneLine, parseJson, quoted, shown } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { MAX_SETTINGS_BYTES, readUserText } from "../../common/read-file.js";
import { mapValues } from "../../common/records.js";
import { finiteJson } from "../../common/ratio.js";
import { replaceFile, writeAtomically } from "../../common/temporary.js";
import type { ParameterValues } from "../schema/parameters.js";
import type { Activations } from "../schema/windows.js";
import {
  blockReportSchema,
  packReportSchema,
  parseContent,
  refineSchema,
} from "./journal-schema.js";
import type { BlockReport, RefineState } from "../schema/method.js";

/** What makes two runs the same run. */
export type JournalSettings = Readonly<Record<string, unknown>>;

/** Bytes per call when states are written and read: system calls take less than 2 GiB. */
const STATES_CHUNK = 2 ** 28;

/** How the packing of one block went. */
export interface PackReport {
  /** Mean squared error of the packed block's output, when activations were at hand. */
  readonly errorPacked?: number;
  /** Fallbacks and remarks. */
  readonly notes: readonly string[];
}

const SETTINGS_FILE = "settings.json";

/** Everything that a run keeps in its journal, finished or on its way. */
const OWN_FILES = /^(settings|refine|(block|packed|states|refine)-\d+)\.[\w-]+(\.[\w.-]+)?$/;

export class Journal {
  private constructor(
    readonly directory: string,
    /** What was found damaged when a run was resumed, and has been dropped, in words. */
    readonly damaged: readonly string[] = [],
  ) {}

  static pathFor(out: string): string {
    return `${out}.run`;
  }

  /** Bytes that an unfinished run has written already. */
  static bytesAt(out: string): number {
    const directory = Journal.pathFor(out);
    if (!existsSync(directory)) return 0;
    const sizes = readdirSync(directory).map(
      (name) => statSync(join(directory, name), { throwIfNoEntry: false })?.size ?? 0,
    );
    return sizes.reduce((sum, size) => sum + size, 0);
  }

  /**
   * Opens or starts the journal of a run. Resuming, what does not hold the bytes that were written is dropped, to be
   * done again. `joins`: this process works for the one that opened the journal, which has checked it; its threads are
   * fewer.
   * @throws PlanishError when one is there and `resume` was not asked for, or when its settings differ.
   */
  static open(
    out: string,
    settings: JournalSettings,
    { resume = false, joins = false }: { resume?: boolean; joins?: boolean },
  ): Journal {
    const directory = Journal.pathFor(out);
    const file = join(directory, SETTINGS_FILE);
    if (existsSync(file)) {
      if (!resume)
        throw new PlanishError(
          `${directory} holds an unfinished run; add --resume to continue it, or remove that directory`,
        );
      const difference = firstDifference(readSettings(file), settings, joins);
      if (difference !== undefined)
        throw new PlanishError(
          `${directory} was begun with other settings (${difference}); run with those, or remove that directory`,
        );
      if (!joins) return new Journal(directory, dropDamaged(directory));
    } else {
      mkdirSync(directory, { recursive: true });
      // Beside the settings nothing of ours can be there yet, but for a killed process's attempt to write them.
      // A journal being cleared away loses its settings last, unless a kill came between.
      const foreign = readdirSync(directory).find(
        (name) => !name.startsWith(`${SETTINGS_FILE}.partial-`) && !(joins && OWN_FILES.test(name)),
      );
      if (foreign !== undefined)
        throw new PlanishError(
          `${directory} is where this run would be kept, and it holds other files (${foreign}); choose another --out, or move them`,
        );
      writeAtomically(file, sealedText(settings));
    }
    return new Journal(directory);
  }

  /** What an unfinished run was begun with; undefined where there is none. @throws PlanishError when it is damaged. */
  static settingsAt(out: string): JournalSettings | undefined {
    const file = join(Journal.pathFor(out), SETTINGS_FILE);
    return existsSync(file) ? readSettings(file) : undefined;
  }

  private blockFile(layer: number, extension: string): string {
    return join(this.directory, `block-${String(layer).padStart(3, "0")}.${extension}`);
  }

  /** A file of a block that lies here only while it is on its way elsewhere. */
  passingFile(layer: number, what: "fetched" | "weights"): string {
    return this.blockFile(layer, `${what}.safetensors`);
  }

  hasBlock(layer: number): boolean {
    return existsSync(this.blockFile(layer, "json"));
  }

  async keepBlock(layer: number, parameters: ParameterValues, report: BlockReport): Promise<void> {
    await writeParameters(this.blockFile(layer, "safetensors"), parameters);
    // The report is written last: its presence means that the block is finished.
    writeSealed(this.blockFile(layer, "json"), report, this.blockFile(layer, "safetensors"));
  }

  readBlock(layer: number): { parameters: ParameterValues; report: BlockReport } {
    return {
      parameters: readParameters(this.blockFile(layer, "safetensors")),
      report: readSealed(this.blockFile(layer, "json"), blockReportSchema),
    };
  }

  private statesFile(layer: number): string {
    return join(this.directory, `states-${String(layer).padStart(3, "0")}.f32`);
  }

  /** Keeps the full-precision states that enter a block, for the process that works on from there. */
  keepStates(layer: number, { data }: Activations): void {
    replaceFile(this.statesFile(layer), (file) => {
      for (let at = 0; at < data.byteLength;) {
        const count = Math.min(STATES_CHUNK, data.byteLength - at);
        at += writeSync(file, new Uint8Array(data.buffer, data.byteOffset + at, count));
      }
    });
    writeSealed(this.statesSeal(layer), {}, this.statesFile(layer));
  }

  private statesSeal(layer: number): string {
    return join(this.directory, `states-${String(layer).padStart(3, "0")}.json`);
  }

  /** @throws PlanishError when they are not kept, are not what was kept, or belong to other windows. */
  readStates(layer: number, shape: Omit<Activations, "data" | "statistics">): Activations {
    const file = this.statesFile(layer);
    const damage = sealProblem(this.directory, this.statesSeal(layer));
    if (damage !== undefined)
      throw new PlanishError(
        `the states that enter block ${layer}: ${damage}; run without --blocks, which makes them again`,
      );
    const data = new Float32Array(shape.samples * shape.time * shape.hidden);
    const found = statSync(file).size;
    if (found !== data.byteLength)
      throw new PlanishError(
        `${file} holds ${found} bytes, and the states that enter block ${layer} are ${data.byteLength}; run without --blocks`,
      );
    const fd = openSync(file, "r");
    for (let at = 0; at < data.byteLength;) {
      const count = Math.min(STATES_CHUNK, data.byteLength - at);
      at += readSync(fd, new Uint8Array(data.buffer, at, count));
    }
    closeSync(fd);
    return { ...shape, data };
  }

  /** Where a block's packed tensors are kept until the artifact is put together. */
  packedFile(layer: number): string {
    return join(this.directory, `packed-${String(layer).padStart(3, "0")}.safetensors`);
  }

  private packedReportFile(layer: number): string {
    return join(this.directory, `packed-${String(layer).padStart(3, "0")}.json`);
  }

  /** What is known of a packed block; undefined when its packing is not finished. */
  readPacked(layer: number): PackReport | undefined {
    const file = this.packedReportFile(layer);
    return existsSync(file) ? readSealed(file, packReportSchema) : undefined;
  }

  /** Keeps a packed block. Its integers are final: a resumed run does not choose them again. */
  async keepPacked(
    layer: number,
    entries: readonly TensorEntry[],
    report: PackReport,
  ): Promise<void> {
    rmSync(this.packedFile(layer), { force: true });
    await writeSafetensors(this.packedFile(layer), entries);
    writeSealed(this.packedReportFile(layer), report, this.packedFile(layer));
  }

  /** Saves the end-to-end stage; the previous saving stays until this one is complete. */
  async keepRefine(state: RefineState): Promise<void> {
    const entries = state.tensors.flatMap((values, layer) => parameterEntries(values, `${layer}/`));
    const name = `refine-${String(state.step).padStart(6, "0")}`;
    const file = join(this.directory, `${name}.safetensors`);
    await writeSafetensors(file, entries);
    const previous = this.refineName();
    const { step, tensors, losses } = state;
    writeSealed(
      join(this.directory, "refine.json"),
      { name, step, blocks: tensors.length, losses },
      file,
    );
    if (previous !== undefined && previous !== name)
      rmSync(join(this.directory, `${previous}.safetensors`), { force: true });
  }

  private refineName(): string | undefined {
    const file = join(this.directory, "refine.json");
    return existsSync(file) ? readSealed(file, refineSchema).name : undefined;
  }

  readRefine(): RefineState | undefined {
    const name = this.refineName();
    if (name === undefined) return undefined;
    const { step, blocks, losses } = readSealed(join(this.directory, "refine.json"), refineSchema);
    const file = join(this.directory, `${name}.safetensors`);
    const all = readParameters(file);
    const tensors = Array.from(
      { length: blocks },
      () => new Map<string, { shape: readonly number[]; data: Float32Array }>(),
    );
    for (const [key, value] of all) {
      const slash = key.indexOf("/");
      const block = /^\d+$/.test(key.slice(0, slash))
        ? tensors[Number(key.slice(0, slash))]
        : undefined;
      if (block === undefined)
        throw new PlanishError(`${file}: tensor ${quoted(key)} is of none of the ${blocks} blocks`);
      block.set(key.slice(slash + 1), {
        shape: value.shape,
        data: Float32Array.from(value.data),
      });
    }
    return { step, tensors, losses };
  }

  /** How many blocks are calibrated, and how many packed. */
  get finished(): { readonly blocks: number; readonly packed: number } {
    const names = readdirSync(this.directory);
    const count = (pattern: RegExp): number => names.filter((name) => pattern.test(name)).length;
    return { blocks: count(/^block-\d+\.json$/), packed: count(/^packed-\d+\.json$/) };
  }

  /** Removes what a run writes, and the directory unless somebody has put something else in it. */
  remove(): void {
    const names = readdirSync(this.directory).filter((name) => OWN_FILES.test(name));
    // The settings last: a removal that is cut short leaves what is still known for a run's.
    for (const name of [...names.filter((name) => name !== SETTINGS_FILE), SETTINGS_FILE])
      rmSync(join(this.directory, name), { force: true });
    if (readdirSync(this.directory).length === 0 && lstatSync(this.directory).isDirectory())
      rmdirSync(this.directory);
  }
}

/** Keeps a block's parameters as float32 in a file of their own. */
export async function writeParameters(path: string, values: ParameterValues): Promise<void> {
  await writeSafetensors(path, parameterEntries(values));
}

function parameterEntries(values: ParameterValues, prefix = ""): TensorEntry[] {
  return [...values].map(([name, { shape, data }]) => {
    const floats = Float32Array.from(data);
    return {
      name: prefix + name,
      type: "F32" as const,
      shape,
      data: () => floats,
    };
  });
}

/** @throws PlanishError when the file is damaged or holds what is no finite number. */
export function readParameters(path: string): ParameterValues {
  using store = openSafetensors(path).store;
  const values = new Map<string, { shape: readonly number[]; data: Float32Array }>();
  for (const [name, { shape }] of store.tensors) {
    const data = store.read(name);
    const at = data.findIndex((value) => !Number.isFinite(value));
    if (at >= 0)
      throw new PlanishError(
        `${path}: tensor ${quoted(name)} holds ${data[at]} at ${at}; remove the file and continue with --resume`,
      );
    values.set(name, { shape, data });
  }
  return values;
}

const sealedSchema = z.strictObject({
  sha256: z.string(),
  /** The file that the content speaks of. */
  file: z.string().regex(/^[^/\\]+$/),
  record: fileRecordSchema,
  content: z.record(z.string(), z.unknown()),
});

/** Writes what is known of a finished file, with both their hashes; its presence means that the file is finished. */
function writeSealed(path: string, content: object, file: string): void {
  const sealed = { file: basename(file), record: recordFile(file), content };
  writeAtomically(path, finiteJson({ sha256: sha256OfText(finiteJson(sealed)), ...sealed }));
}

/** @throws PlanishError when it is not as it was written. */
function readSealed<T>(path: string, schema: z.ZodType<T>): T {
  const result = sealedSchema.safeParse(readJsonObject(path));
  if (!result.success) throw new PlanishError(`${path} is damaged: continue with --resume`);
  const { sha256, ...sealed } = result.data;
  if (sha256OfText(finiteJson(sealed)) !== sha256)
    throw new PlanishError(`${path} is damaged: continue with --resume`);
  return parseContent(schema, sealed.content, path);
}

/** Removes what does not hold the bytes that were written, and says what that was. */
function dropDamaged(directory: string): string[] {
  const seals = readdirSync(directory).filter((name) => SEALS.test(name));
  return seals.sort().flatMap((name) => {
    const path = join(directory, name);
    const problem = sealProblem(directory, path);
    if (problem === undefined) return [];
    rmSync(path, { force: true });
    return [`${path}: ${problem}; it is done again`];
  });
}

function schemaOf(path: string): z.ZodType {
  const name = basename(path);
  if (name.startsWith("states")) return z.strictObject({});
  if (name === "refine.json") return refineSchema;
  return name.startsWith("packed") ? packReportSchema : blockReportSchema;
}

const SEALS = /^(block-\d+|packed-\d+|refine)\.json$/;

function sealProblem(directory: string, path: string): string | undefined {
  try {
    readSealed(path, schemaOf(path));
  } catch (error) {
    if (error instanceof PlanishError) return "it does not hold what was written";
    throw error;
  }
  const { file, record } = sealedSchema.parse(readJsonObject(path));
  return fileProblems(directory, { [file]: record })[0];
}

/** What a run was begun with. @throws PlanishError when that is not known any more */
function readSettings(file: string): JournalSettings {
  const text = readUserText(file, { most: MAX_SETTINGS_BYTES });
  try {
    const found = parseJson(text, "settings");
    if (isJsonObject(found)) return unsealed(found, file);
  } catch {
    // Said below, with what to do about the whole run.
  }
  throw new PlanishError(
    `${file} is damaged, so what this run was begun with is not known; remove ${dirname(file)} and begin again`,
  );
}

/** In words; undefined where only the machine differs and that does not count. */
function firstDifference(
  before: JournalSettings,
  settings: JournalSettings,
  anyMachine: boolean,
): string | undefined {
  for (const key of Object.keys({ ...before, ...settings })) {
    if (JSON.stringify(before[key]) === JSON.stringify(settings[key])) continue;
    if (key !== "machine")
      return `${oneLine(key, 60)} was ${shown(before[key])}, is ${shown(settings[key])}`;
    if (!anyMachine) return machineDifference(before[key], settings[key]);
  }
  return undefined;
}

/** As JSON would write it. */
function dropUndefined(value: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(value).filter(([, each]) => each !== undefined));
}

/** How to say again on what a run was begun. */
const MACHINE_FLAGS: Readonly<Record<string, (value: string) => string>> = {
  device: (value) => `--device ${value}`,
  level: (value) => `the environment variable PLANISH_ISA=${value}, on a processor that has it`,
  threads: (value) => `--threads ${value}`,
  packingThreads: (value) => `--threads ${value}`,
};

function machineDifference(before: unknown, now: unknown): string {
  const [was, is] = [before, now].map((value) =>
    isJsonObject(value)
      ? mapValues(dropUndefined(value), (each) =>
          typeof each === "string" ? oneLine(each, 60) : shown(each),
        )
      : {},
  );
  const keys = Object.keys({ ...was, ...is }).filter((key) => was[key] !== is[key]);
  const differences = keys.map(
    (key) => `${oneLine(key, 60)} was ${was[key] ?? "not kept"}, is ${is[key] ?? "none"}`,
  );
  const flags = keys.flatMap((key) =>
    was[key] !== undefined && Object.hasOwn(MACHINE_FLAGS, key) ? MACHINE_FLAGS[key](was[key]) : [],
  );
  const how = flags.length > 0 ? `: ${flags.join(" and ")} computes as it did` : "";
  return differences.join(", ") + how;
}
