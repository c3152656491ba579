/**
 * The journal of a run: a directory beside the artifact-to-be that holds the settings, each finished block and the
 * state of the end-to-end stage. A file under its final name is complete, so a run killed at any moment goes on at
 * the first unfinished block. Removed when the artifact is in place.
 */
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
  openSync,
  fsyncSync,
  closeSync,
} from "node:fs";
import { join } from "node:path";
import { openSafetensors, writeSafetensors, type TensorEntry } from "../checkpoint/safetensors.js";
import { PlanishError } from "../common/errors.js";
import type { ParameterValues } from "./fold.js";
import type { Activations } from "./calibration/windows.js";
import type { BlockReport, RefineState } from "./method.js";

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

export class Journal {
  private constructor(readonly directory: string) {}

  static pathFor(out: string): string {
    return `${out}.run`;
  }

  /**
   * Opens or starts the journal of a run.
   * @throws PlanishError when one is there and `resume` was not asked for, or when its settings differ.
   */
  static open(out: string, settings: JournalSettings, resume: boolean): Journal {
    const directory = Journal.pathFor(out);
    const file = join(directory, "settings.json");
    const wanted = `${JSON.stringify(settings, undefined, 2)}\n`;
    if (existsSync(file)) {
      if (!resume)
        throw new PlanishError(
          `${directory} holds an unfinished run; add --resume to continue it, or remove that directory`,
        );
      const found = readFileSync(file, "utf8");
      if (found !== wanted)
        throw new PlanishError(
          `${directory} was begun with other settings (${firstDifference(found, settings)}); run with those, or remove that directory`,
        );
    } else {
      mkdirSync(directory, { recursive: true });
      writeAtomically(file, wanted);
    }
    return new Journal(directory);
  }

  private blockFile(layer: number, extension: string): string {
    return join(this.directory, `block-${String(layer).padStart(3, "0")}.${extension}`);
  }

  hasBlock(layer: number): boolean {
    return existsSync(this.blockFile(layer, "json"));
  }

  async keepBlock(layer: number, parameters: ParameterValues, report: BlockReport): Promise<void> {
    await writeSafetensors(this.blockFile(layer, "safetensors"), parameterEntries(parameters));
    // The report is written last: its presence means that the block is finished.
    writeAtomically(this.blockFile(layer, "json"), JSON.stringify(report));
  }

  readBlock(layer: number): { parameters: ParameterValues; report: BlockReport } {
    return {
      parameters: readParameters(this.blockFile(layer, "safetensors")),
      report: JSON.parse(readFileSync(this.blockFile(layer, "json"), "utf8")) as BlockReport,
    };
  }

  private statesFile(layer: number): string {
    return join(this.directory, `states-${String(layer).padStart(3, "0")}.f32`);
  }

  /** Keeps the full-precision states that enter a block, for the process that works on from there. */
  keepStates(layer: number, { data }: Activations): void {
    const file = this.statesFile(layer);
    const partial = `${file}.${process.pid}.partial`;
    const fd = openSync(partial, "w");
    for (let at = 0; at < data.byteLength;) {
      const count = Math.min(STATES_CHUNK, data.byteLength - at);
      at += writeSync(fd, new Uint8Array(data.buffer, data.byteOffset + at, count));
    }
    closeSync(fd);
    renameSync(partial, file);
  }

  /** @throws PlanishError when they are not kept, or belong to other windows. */
  readStates(layer: number, shape: Omit<Activations, "data" | "statistics">): Activations {
    const file = this.statesFile(layer);
    const data = new Float32Array(shape.samples * shape.time * shape.hidden);
    const found = existsSync(file) ? statSync(file).size : 0;
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
    return existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as PackReport) : undefined;
  }

  /** Keeps a packed block. Its integers are final: a resumed run does not choose them again. */
  async keepPacked(
    layer: number,
    entries: readonly TensorEntry[],
    report: PackReport,
  ): Promise<void> {
    rmSync(this.packedFile(layer), { force: true });
    await writeSafetensors(this.packedFile(layer), entries);
    writeAtomically(this.packedReportFile(layer), JSON.stringify(report));
  }

  /** Saves the end-to-end stage; the previous saving stays until this one is complete. */
  async keepRefine(state: RefineState): Promise<void> {
    const entries = state.tensors.flatMap((values, layer) => parameterEntries(values, `${layer}/`));
    const name = `refine-${String(state.step).padStart(6, "0")}`;
    await writeSafetensors(join(this.directory, `${name}.safetensors`), entries);
    const previous = this.refineName();
    writeAtomically(
      join(this.directory, "refine.json"),
      JSON.stringify({
        name,
        step: state.step,
        blocks: state.tensors.length,
        losses: state.losses,
      }),
    );
    if (previous !== undefined && previous !== name)
      rmSync(join(this.directory, `${previous}.safetensors`), { force: true });
  }

  private refineName(): string | undefined {
    const file = join(this.directory, "refine.json");
    return existsSync(file)
      ? (JSON.parse(readFileSync(file, "utf8")) as { name: string }).name
      : undefined;
  }

  readRefine(): RefineState | undefined {
    const name = this.refineName();
    if (name === undefined) return undefined;
    const { step, blocks, losses } = JSON.parse(
      readFileSync(join(this.directory, "refine.json"), "utf8"),
    ) as {
      step: number;
      blocks: number;
      losses: number[];
    };
    const all = readParameters(join(this.directory, `${name}.safetensors`));
    const tensors = Array.from(
      { length: blocks },
      () => new Map<string, { shape: readonly number[]; data: Float32Array }>(),
    );
    for (const [key, value] of all) {
      const slash = key.indexOf("/");
      tensors[Number(key.slice(0, slash))].set(key.slice(slash + 1), {
        shape: value.shape,
        data: Float32Array.from(value.data),
      });
    }
    return { step, tensors, losses };
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
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

function readParameters(path: string): ParameterValues {
  using store = openSafetensors(path).store;
  const values = new Map<string, { shape: readonly number[]; data: Float32Array }>();
  for (const [name, { shape }] of store.tensors)
    values.set(name, { shape, data: store.read(name) });
  return values;
}

/** Writes a small file so that it appears complete or not at all. */
export function writeAtomically(path: string, text: string): void {
  // Several processes may work on one run.
  const partial = `${path}.${process.pid}.partial`;
  writeFileSync(partial, text);
  const fd = openSync(partial, "r");
  fsyncSync(fd);
  closeSync(fd);
  renameSync(partial, path);
}

function firstDifference(found: string, settings: JournalSettings): string {
  try {
    const before = JSON.parse(found) as Record<string, unknown>;
    for (const key of Object.keys({ ...before, ...settings }))
      if (JSON.stringify(before[key]) !== JSON.stringify(settings[key]))
        return `${key} was ${JSON.stringify(before[key])}, is ${JSON.stringify(settings[key])}`;
  } catch {
    return "its settings file is damaged";
  }
  return "unknown difference";
}
