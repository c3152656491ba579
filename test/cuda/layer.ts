/** What the driver layer offers beyond the backend contract: events, graphs, pinned transfers, errors. */
import type { CudaBackend } from "../../src/backend/cuda/backend.js";
import { Nvrtc } from "../../src/backend/cuda/nvrtc.js";
import { describe, expect, test } from "./vitest-shim.js";

export function registerLayerTests(backend: CudaBackend): void {
  const { driver, stream, modules } = backend.context;

  describe("cuda driver layer", () => {
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
      expect(() => modules.get("losses", "no_such_kernel", "p")).toThrow(/cuModuleGetFunction/);
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
