/** A block's calibration activations on their way to its steps: kept on a device that has room, else sent for each. */

import { describe, expect, it } from "vitest";
import type {
  Backend,
  Buffer,
  DType,
  HostArray,
  Uploads,
} from "../../../src/backend/contract/training.js";
import { createReferenceBackend } from "../../../src/backend/reference/train/backend.js";
import { BatchFeed, type Batch } from "../../../src/quantize/calibration/feed.js";

const [samples, time, hidden] = [5, 3, 2];
const activations = (first: number) => ({
  samples,
  time,
  hidden,
  data: Float32Array.from({ length: samples * time * hidden }, (_, i) => first + i),
});
const inputs = activations(0);
const targets = activations(1000);
const bytes = 2 * inputs.data.length * 4;

/** When copies that were started arrive: as soon as they may, or as late as they may. */
type Arrival = "at once" | "at join";

/**
 * A backend that says it has `free` bytes of its own, and counts what it holds and what was sent to it. With `arrival` it
 * takes arrays while it computes.
 */
function device(free: number | undefined, arrival?: Arrival) {
  const backend = createReferenceBackend({ realType: "f32" });
  const counts = { live: 0, written: 0 };
  const uploads = (arrays: readonly HostArray[]): Uploads => {
    counts.live++;
    let travelling: (() => void)[] = [];
    const join = () => {
      for (const arrive of travelling) arrive();
      travelling = [];
    };
    return {
      start: (source, target) => {
        expect(arrays.some((array) => array.buffer === source.buffer)).toBe(true);
        travelling.push(() => {
          counts.written += source.length;
          backend.write(target, source);
        });
        if (arrival === "at once") join();
      },
      join,
      [Symbol.dispose]: () => {
        counts.live--;
      },
    };
  };
  const counting: Backend = Object.assign(Object.create(backend) as Backend, {
    ...(free === undefined ? {} : { freeBytes: () => free }),
    ...(arrival === undefined ? {} : { uploads }),
    alloc: (dtype: DType, length: number) => {
      counts.live++;
      return backend.alloc(dtype, length);
    },
    free: (buffer: Buffer) => {
      counts.live--;
      backend.free(buffer);
    },
    write: (buffer: Buffer, data: HostArray, offset?: number) => {
      counts.written += data.length;
      backend.write(buffer, data, offset);
    },
  });
  return { backend: counting, counts };
}

const onDevice = (data: unknown): data is Buffer => typeof data === "object" && "dtype" in data!;

/** That the batch is on the device, and is samples `first` to `first + count − 1`. */
function expectSamples(backend: Backend, batch: Batch, first: number, count: number): void {
  const range = [first * time * hidden, (first + count) * time * hidden] as const;
  expect(batch.sequences).toBe(count);
  for (const [given, source] of [
    [batch.input, inputs],
    [batch.target, targets],
  ] as const) {
    if (!onDevice(given)) throw new Error("the batch is not on the device");
    expect([...backend.read(given)]).toEqual([...source.data.slice(...range)]);
  }
}

describe("BatchFeed", () => {
  it("sends a set that fits once, hands out the right samples, and frees everything", () => {
    const { backend, counts } = device(bytes * 4, "at once");
    {
      using feed = new BatchFeed(backend, inputs, targets);
      for (const [first, sequences] of [
        [0, 2],
        [2, 2],
        [4, 1],
        [1, 2],
      ])
        expectSamples(backend, feed.take({ first, sequences }), first, sequences);
      expect(counts.written).toBe(2 * inputs.data.length);
    }
    expect(counts.live).toBe(0);
  });

  it.each(["at once", "at join"] as const)(
    "sends the next share of a set that does not fit during a step, copies arriving %s",
    (arrival) => {
      const { backend, counts } = device(bytes, arrival);
      {
        using feed = new BatchFeed(backend, inputs, targets);
        const shares = [0, 2, 4].map((first) => ({
          first,
          sequences: Math.min(2, samples - first),
        }));
        for (let i = 0; i < 7; i++) {
          const share = shares[i % 3];
          const batch = feed.take(share, shares[(i + 1) % 3]);
          expectSamples(backend, batch, share.first, share.sequences);
        }
        // Something else than was announced; then nothing announced.
        expectSamples(backend, feed.take({ first: 3, sequences: 2 }), 3, 2);
        expectSamples(backend, feed.take({ first: 1, sequences: 2 }), 1, 2);
      }
      expect(counts.live).toBe(0);
    },
  );

  it.each([
    ["too little memory", bytes * 2],
    ["buffers in host memory", undefined],
  ])("gives views of the host's arrays: %s", (_, free) => {
    const { backend, counts } = device(free);
    using feed = new BatchFeed(backend, inputs, targets);
    const { input, target } = feed.take({ first: 3, sequences: 2 });
    expect(input).toEqual(inputs.data.subarray(3 * time * hidden));
    expect(target).toEqual(targets.data.subarray(3 * time * hidden));
    expect(counts).toEqual({ live: 0, written: 0 });
  });
});
