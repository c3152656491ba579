/**
 * Small algebra of native/cuda/linalg.cu. Cayley maps are not launched one by one: each is a long chain of dependent
 * steps that occupies one multiprocessor, so calls are collected and go in one launch, side by side, as soon as any
 * other kernel (which may want a result) is enqueued.
 */
import type { Kernels } from "../../../contract/training.js";
import { PlanishError } from "../../../../common/errors.js";
import { launch, real, type CudaContext } from "../../context.js";
import { readFlag, startFlag } from "./flag.js";

const THREADS = 1024;
/** MOST_SOLVES and the fields of Solve in linalg.cu. */
const MOST_SOLVES = 24;
const FIELDS = 6;

interface Solve {
  readonly seed: number;
  readonly q: number;
  readonly grad: number;
  readonly out: number;
  readonly n: number;
}

/** Cayley maps that were called and not yet launched; all of one kind. */
export interface PendingSolves {
  readonly pending: number;
  readonly kind: "cayley" | "cayleyBackward";
  flush(): void;
}

type LinalgKernels = Pick<Kernels, "inverse" | "cayley" | "cayleyBackward">;

export function linalgKernels(ctx: CudaContext): LinalgKernels & { solves: PendingSolves } {
  const { driver, modules, scratch } = ctx;
  const queue: Solve[] = [];
  let kind: PendingSolves["kind"] = "cayley";
  /** Largest n whose matrix fits shared memory beside two vectors. */
  const largestShared = Math.floor(Math.sqrt(driver.info.sharedBytesPerBlock / 8 + 1) - 1);

  function launchSolves(items: readonly Solve[]): void {
    const kernel = modules.get("linalg", kind === "cayley" ? "cayley" : "cayley_backward");
    const args: number[] = [];
    let shared = 0;
    for (const { seed, q, grad, out, n } of items) {
      const matrices = (kind === "cayley" ? 0 : 2) + (n > largestShared ? 1 : 0);
      args.push(seed, q, grad, out, matrices > 0 ? scratch.take(matrices * n * n * 8) : 0, n);
      shared = Math.max(shared, 8 * (2 * n + (n > largestShared ? 0 : n * n)));
    }
    while (args.length < FIELDS * MOST_SOLVES) args.push(0);
    launch(ctx, kernel, [items.length], THREADS, [...args, largestShared], shared);
  }

  const solves: PendingSolves = {
    get pending() {
      return queue.length;
    },
    get kind() {
      return kind;
    },
    flush() {
      // Largest first, so that one launch's blocks end together.
      queue.sort((a, b) => b.n - a.n);
      for (let i = 0; i < queue.length; i += MOST_SOLVES)
        launchSolves(queue.slice(i, i + MOST_SOLVES));
      queue.length = 0;
    },
  };
  const enqueue = (which: PendingSolves["kind"], solve: Solve) => {
    kind = which;
    queue.push(solve);
  };

  return {
    solves,
    cayley({ seed, n, out }) {
      enqueue("cayley", {
        seed: real(seed, n * n, "cayley seed"),
        q: 0,
        grad: 0,
        out: real(out, n * n, "cayley out"),
        n,
      });
    },
    cayleyBackward({ seed, n, out, grad, gradSeed }) {
      enqueue("cayleyBackward", {
        seed: real(seed, n * n, "cayleyBackward seed"),
        q: real(out, n * n, "cayleyBackward out"),
        grad: real(grad, n * n, "cayleyBackward grad"),
        out: real(gradSeed, n * n, "cayleyBackward gradSeed"),
        n,
      });
    },
    inverse({ x, n, out }) {
      const [from, to] = [real(x, n * n, "inverse x"), real(out, n * n, "inverse out")];
      const flag = startFlag(ctx);
      const work = scratch.take(n * n * 8);
      const kernel = modules.get("linalg", "inverse");
      launch(ctx, kernel, [1], THREADS, [from, n, to, work, flag], 20 * n + 8);
      const pivot = readFlag(ctx, flag);
      if (pivot !== undefined)
        throw new PlanishError(
          `a ${n}×${n} matrix has no inverse (pivot ${pivot} is zero); start again from an invertible matrix, or use the Cayley parametrisation`,
        );
    },
  };
}
