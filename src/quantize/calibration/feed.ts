/**
 * Hands a block's calibration activations to its training steps. A device with memory of its own gets the whole set
 * once, where it fits beside the training, and steps copy within the device; else a step's share travels from the host
 * while the step before it computes.
 */
import type { Backend, Buffer, RealArray, Uploads } from "../../backend/contract/training.js";
import { sampleRange, type Activations } from "../schema/windows.js";

/** A step's share of the calibration set, on the host or on the backend already: [batch·time, hidden] each. */
export interface Batch {
  readonly input: RealArray | Buffer;
  readonly target: RealArray | Buffer;
  /** Sequences in the batch. */
  readonly sequences: number;
}

/** Which sequences: `first` … `first + sequences − 1`. */
export interface Share {
  readonly first: number;
  readonly sequences: number;
}

const RESIDENT_SHARE = 0.4;
const BYTES = 4;

interface Pair {
  readonly input: Buffer;
  readonly target: Buffer;
}

/** A share that travels. */
interface Ahead extends Share {
  readonly pair: Pair;
}

export class BatchFeed implements Disposable {
  private readonly resident: Pair | undefined;
  private readonly uploads: Uploads | undefined;
  private ahead: Ahead | undefined;
  /** What the last batch was read from. */
  private current: Pair | undefined;
  /** Buffers that steps read, by the number of sequences: one of a resident set, two where shares travel. */
  private readonly pairs = new Map<number, Pair[]>();

  /** @param residentShare Share of the free memory that the set may take; the rest is for the block and its step. */
  constructor(
    private readonly backend: Backend,
    private readonly inputs: Activations,
    private readonly targets: Activations,
    residentShare = RESIDENT_SHARE,
  ) {
    const free = backend.freeBytes?.() ?? 0;
    const bytes = (inputs.data.length + targets.data.length) * BYTES;
    if (bytes > free * residentShare) {
      this.uploads = backend.uploads?.([inputs.data, targets.data]);
      return;
    }
    this.resident = this.allocate(inputs.data.length, targets.data.length);
    backend.write(this.resident.input, inputs.data);
    backend.write(this.resident.target, targets.data);
  }

  private allocate(input: number, target: number): Pair {
    const { backend } = this;
    return {
      input: backend.alloc(backend.realType, input),
      target: backend.alloc(backend.realType, target),
    };
  }

  /** Buffers for so many sequences, none that the last batch is read from when shares travel. */
  private pairFor(sequences: number): Pair {
    const { inputs, targets } = this;
    const pairs = this.pairs.get(sequences) ?? [];
    this.pairs.set(sequences, pairs);
    const free = pairs.find((pair) => this.resident ?? pair !== this.current);
    if (free) return free;
    const fresh = this.allocate(
      (sequences * inputs.data.length) / inputs.samples,
      (sequences * targets.data.length) / targets.samples,
    );
    pairs.push(fresh);
    return fresh;
  }

  private send(uploads: Uploads, { first, sequences }: Share): Ahead {
    const pair = this.pairFor(sequences);
    uploads.start(sampleRange(this.inputs, first, sequences), pair.input);
    uploads.start(sampleRange(this.targets, first, sequences), pair.target);
    return { first, sequences, pair };
  }

  /**
   * The sequences of `share`; the batch is good until the next call.
   * @param next What the next call is to ask for: it may travel while this batch is worked on.
   */
  take(share: Share, next?: Share): Batch {
    const { backend, inputs, targets, resident, uploads } = this;
    const { first, sequences } = share;
    if (uploads) {
      const { ahead } = this;
      const came = ahead?.first === first && ahead.sequences === sequences;
      const { pair } = came ? ahead : this.send(uploads, share);
      uploads.join();
      this.current = pair;
      this.ahead = next && this.send(uploads, next);
      return { ...pair, sequences };
    }
    if (!resident)
      return {
        input: sampleRange(inputs, first, sequences),
        target: sampleRange(targets, first, sequences),
        sequences,
      };
    const pair = this.pairFor(sequences);
    const size = inputs.data.length / inputs.samples;
    const targetSize = targets.data.length / targets.samples;
    backend.copy(resident.input, pair.input, sequences * size, first * size);
    backend.copy(resident.target, pair.target, sequences * targetSize, first * targetSize);
    return { ...pair, sequences };
  }

  [Symbol.dispose](): void {
    this.uploads?.[Symbol.dispose]();
    for (const { input, target } of [
      ...[...this.pairs.values()].flat(),
      ...(this.resident ? [this.resident] : []),
    ]) {
      this.backend.free(input);
      this.backend.free(target);
    }
    this.pairs.clear();
  }
}
