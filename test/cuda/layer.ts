/** What the driver layer offers beyond the backend contract: events, graphs, pinned transfers, errors. */
import type { CudaBackend } from "../../src/backend/cuda/train/backend.js";
import { Nvrtc } from "../../src/backend/cuda/nvrtc.js";
import { describe, expect, test } from "./registered-tests.js";

/** The group's name: some of its tests measure time. */
export const LAYER_GROUP = "cuda driver layer";

export function registerLayerTests(backend: CudaBackend): void {
  const { driver, stream, modules } = backend.context;

  describe(LAYER_GROUP, () => {
    test("a captured graph repeats its launches", () => {
      const buffer = backend.alloc("f32", 1000);
      backend.fill(buffer, 1);
      const once = () => {
        backend.kernels.scale({
          x: buffer,
          length: 1000,
          alpha: 2,
          accumulate: false,
          out: buffer,
        });
      };
      once();
      backend.synchronize();
      const graph = driver.capture(stream, once);
      for (let i = 0; i < 3; i++) driver.launchGraph(graph, stream);
      expect(backend.read(buffer)[999]).toBe(16);
      driver.destroyGraph(graph);
      backend.free(buffer);
    });

    test("transfers larger than the stages arrive whole, both ways", () => {
      const length = 13_000_003;
      const data = Float32Array.from({ length }, (_, i) => i % 65_521);
      const buffer = backend.alloc("f32", length);
      backend.write(buffer, data);
      const back = backend.read(buffer);
      expect(back.every((value, i) => value === data[i])).toBe(true);
      backend.free(buffer);
    });

    test("arrays travel while kernels run, and later work waits for them", () => {
      const length = 2 ** 24;
      const shares = 4;
      const data = Float32Array.from({ length: shares * length }, (_, i) => i % 65_521);
      const pairs = [backend.alloc("f32", length), backend.alloc("f32", length)];
      const sums = backend.alloc("f32", length);
      {
        using uploads = backend.uploads!([data])!;
        const share = (i: number) => data.subarray(i * length, (i + 1) * length);
        uploads.start(share(0), pairs[0]);
        for (let i = 0; i < shares; i++) {
          uploads.join();
          if (i + 1 < shares) uploads.start(share(i + 1), pairs[(i + 1) % 2]);
          // Long enough for the next share to arrive meanwhile.
          for (let repeat = 0; repeat < 50; repeat++)
            backend.kernels.scale({
              ...{ x: pairs[i % 2], length, alpha: 1, accumulate: repeat > 0 || i > 0 },
              out: sums,
            });
        }
        const other = new Float32Array(4);
        expect(() => {
          uploads.start(other, pairs[0]);
        }).toThrow(/no part of the arrays/);
      }
      const back = backend.read(sums);
      const expected = (i: number) => {
        let sum = 0;
        for (let s = 0; s < shares; s++) sum += 50 * data[s * length + i];
        return sum;
      };
      // Whole numbers below 2²⁴: sums are exact.
      expect(back.every((value, i) => value === expected(i))).toBe(true);
      for (const buffer of [...pairs, sums]) backend.free(buffer);
    });

    test("arrays that are locked already are refused, not failed on", () => {
      const data = new Float32Array(2 ** 20);
      {
        using uploads = backend.uploads!([data]);
        expect(uploads === undefined).toBe(false);
        expect(backend.uploads!([data])).toBe(undefined);
      }
      using again = backend.uploads!([data]);
      expect(again === undefined).toBe(false);
    });

    test("events measure time that grows with the work", () => {
      const buffer = backend.alloc("f32", 64 * 2 ** 20);
      const time = (times: number) => {
        const [start, end] = [driver.createEvent(), driver.createEvent()];
        driver.record(start, stream);
        for (let i = 0; i < times; i++) backend.fill(buffer, i);
        driver.record(end, stream);
        driver.synchronizeEvent(end);
        return driver.elapsed(start, end);
      };
      time(1);
      expect(time(20)).toBeGreaterThan(2 * time(1));
      backend.free(buffer);
    });

    test("more memory than there is: an error with both numbers, and the device goes on", () => {
      const { total } = driver.memory();
      expect(() => backend.alloc("u8", 4 * total)).toThrow(/out of GPU memory.*MiB/);
      const buffer = backend.alloc("i32", 3);
      expect([...backend.read(buffer)]).toEqual([0, 0, 0]);
      backend.free(buffer);
    });

    test("a source that does not compile: the compiler's log", () => {
      const compile = () =>
        new Nvrtc().compile({
          name: "broken.cu",
          source: 'extern "C" __global__ void f() { undeclared = 1; }',
          architecture: "sm_90",
        });
      expect(compile).toThrow(/broken\.cu does not compile.*undeclared/s);
    });

    test("a kernel that is not in a module is named", () => {
      expect(() => modules.get("losses", "no_such_kernel")).toThrow(/declares no no_such_kernel/);
    });

    test("a profile times the kernels that ran", () => {
      const buffer = backend.alloc("f32", 2 ** 20);
      const times = backend.profile(() => {
        for (let i = 0; i < 3; i++)
          backend.kernels.unary({ op: "negate", x: buffer, length: 2 ** 20, out: buffer });
      });
      expect(times.map(({ kernel, calls }) => [kernel, calls])).toEqual([["unary", 3]]);
      expect(times[0].seconds).toBeGreaterThan(0);
      backend.free(buffer);
    });
  });
}
