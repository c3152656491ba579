/**
 * Hands a block's calibration activations to its training steps. A device with memory of its own gets the whole set
 * once, where it fits beside the training, and steps copy within the device; else every step's share comes from the
 * host.
 */
import type { Backend, Buffer, RealArray } from "../../backend/backend.js";
import { sampleRange, type Activations } from "./windows.js";

/** A step's share of the calibration set, on the host or on the backend already: [batch·time, hidden] each. */
export interface Batch {
  readonly input: RealArray | Buffer;
  readonly target: RealArray | Buffer;
  /** Sequences in the batch. */
  readonly sequences: number;
}

/** Share of the free memory that the set may take; the rest is for the block and its step. */
const RESIDENT_SHARE = 0.4;
const BYTES = 4;

interface Resident {
  readonly input: Buffer;
  readonly target: Buffer;
}

export class BatchFeed implements Disposable {
  private readonly resident: Resident | undefined;
  /** Buffers that steps read, by the number of sequences. */
  private readonly shares = new Map<number, Resident>();

  constructor(
    private readonly backend: Backend,
    private readonly inputs: Activations,
    private readonly targets: Activations,
  ) {
    const free = backend.freeBytes?.() ?? 0;
    const bytes = (inputs.data.length + targets.data.length) * BYTES;
    if (bytes > free * RESIDENT_SHARE) return;
    this.resident = this.allocate(inputs.data.length, targets.data.length);
    backend.write(this.resident.input, inputs.data);
    backend.write(this.resident.target, targets.data);
  }

  private allocate(input: number, target: number): Resident {
    const { backend } = this;
    return {
      input: backend.alloc(backend.realType, input),
      target: backend.alloc(backend.realType, target),
    };
  }

  /** Sequences `first` … `first + sequences − 1`. The batch is good until the next call. */
  take(first: number, sequences: number): Batch {
    const { backend, inputs, targets, resident } = this;
    if (!resident)
      return {
        input: sampleRange(inputs, first, sequences),
        target: sampleRange(targets, first, sequences),
        sequences,
      };
    const size = inputs.data.length / inputs.samples;
    const targetSize = targets.data.length / targets.samples;
    let share = this.shares.get(sequences);
    if (!share) {
      share = this.allocate(sequences * size, sequences * targetSize);
      this.shares.set(sequences, share);
    }
    backend.copy(resident.input, share.input, sequences * size, first * size);
    backend.copy(resident.target, share.target, sequences * targetSize, first * targetSize);
    return { ...share, sequences };
  }

  [Symbol.dispose](): void {
    for (const { input, target } of [
      ...this.shares.values(),
      ...(this.resident ? [this.resident] : []),
    ]) {
      this.backend.free(input);
      this.backend.free(target);
    }
    this.shares.clear();
  }
}
