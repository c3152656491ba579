/** A block's calibration activations on their way to its steps: kept on a device that has room, else sent each time. */

import { describe, expect, it } from "vitest";
import type { Backend, Buffer, DType, HostArray } from "../../../src/backend/backend.js";
import { createReferenceBackend } from "../../../src/backend/reference/index.js";
import { BatchFeed } from "../../../src/quantize/calibration/feed.js";

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

/** A backend that says it has `free` bytes of its own, and counts what it holds and what was sent to it. */
function device(free: number | undefined) {
  const backend = createReferenceBackend({ realType: "f32" });
  const counts = { live: 0, written: 0 };
  const counting: Backend = Object.assign(Object.create(backend) as Backend, {
    ...(free === undefined ? {} : { freeBytes: () => free }),
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

describe("BatchFeed", () => {
  it("sends a set that fits once, hands out the right samples, and frees everything", () => {
    const { backend, counts } = device(bytes * 4);
    {
      using feed = new BatchFeed(backend, inputs, targets);
      for (const [first, count] of [
        [0, 2],
        [2, 2],
        [4, 1],
        [1, 2],
      ]) {
        const batch = feed.take(first, count);
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
      expect(counts.written).toBe(2 * inputs.data.length);
    }
    expect(counts.live).toBe(0);
  });

  it.each([
    ["too little memory", bytes * 2],
    ["buffers in host memory", undefined],
  ])("gives views of the host's arrays: %s", (_, free) => {
    const { backend, counts } = device(free);
    using feed = new BatchFeed(backend, inputs, targets);
    const { input, target } = feed.take(3, 2);
    expect(input).toEqual(inputs.data.subarray(3 * time * hidden));
    expect(target).toEqual(targets.data.subarray(3 * time * hidden));
    expect(counts).toEqual({ live: 0, written: 0 });
  });
});
