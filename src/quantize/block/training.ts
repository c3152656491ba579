/** Optimisation of a block's parameters: AdamW with a cosine schedule, per-parameter rates. */
import type { Backend, Buffer } from "../../backend/contract/training.js";
import { Graph, type Tensor } from "../../tensor/tensor.js";

export interface ParameterRule {
  readonly learningRate: number;
  readonly weightDecay: number;
  /** Clamp to ±bound after the update. */
  readonly bound?: number;
}

export interface AdamWOptions {
  readonly beta1?: number;
  readonly beta2?: number;
  readonly epsilon?: number;
  readonly totalSteps: number;
  /** Where the cosine ends, for every rate. */
  readonly finalLearningRate: number;
}

interface Moments {
  readonly moment1: Buffer;
  readonly moment2: Buffer;
}

/** Rate at `step` of `total` (both from 0): cosine from `start` to `end` (Loshchilov & Hutter 2017, no restarts). */
export function cosineRate(start: number, end: number, step: number, total: number): number {
  return end + ((start - end) * (1 + Math.cos((Math.PI * step) / total))) / 2;
}

/** AdamW over named parameters. State lives on the backend; it can be read out and restored for resuming. */
export class AdamW implements Disposable {
  private step = 0;
  private readonly moments = new Map<string, Moments>();

  constructor(
    private readonly backend: Backend,
    private readonly params: ReadonlyMap<string, Tensor>,
    private readonly rule: (name: string) => ParameterRule,
    private readonly options: AdamWOptions,
  ) {
    for (const [name, p] of params)
      this.moments.set(name, {
        moment1: backend.alloc(backend.realType, p.size),
        moment2: backend.alloc(backend.realType, p.size),
      });
  }

  get stepsTaken(): number {
    return this.step;
  }

  /** Applies the gradients that `Graph.backward` left, each multiplied by gradScale. Parameters without one stay. */
  update(gradScale = 1): void {
    const {
      beta1 = 0.9,
      beta2 = 0.999,
      epsilon = 1e-8,
      totalSteps,
      finalLearningRate,
    } = this.options;
    const done = this.step;
    this.step++;
    for (const [name, p] of this.params) {
      const moments = this.moments.get(name);
      if (!p.grad || !p.buffer || !moments) continue;
      const { learningRate, weightDecay, bound } = this.rule(name);
      this.backend.kernels.adamW({
        param: p.buffer,
        grad: p.grad,
        ...moments,
        length: p.size,
        step: this.step,
        learningRate: cosineRate(learningRate, finalLearningRate, done, totalSteps),
        beta1,
        beta2,
        epsilon,
        weightDecay,
        gradScale,
        bound,
      });
      p.grad = undefined;
    }
  }

  /** Steps taken and both moments, by parameter name. */
  state(): {
    step: number;
    moments: Map<string, { moment1: Float32Array; moment2: Float32Array }>;
  } {
    const moments = new Map<string, { moment1: Float32Array; moment2: Float32Array }>();
    for (const [name, m] of this.moments)
      moments.set(name, {
        moment1: Float32Array.from(this.backend.read(m.moment1) as Float32Array),
        moment2: Float32Array.from(this.backend.read(m.moment2) as Float32Array),
      });
    return { step: this.step, moments };
  }

  restore(state: ReturnType<AdamW["state"]>): void {
    this.step = state.step;
    for (const [name, m] of this.moments) {
      const saved = state.moments.get(name);
      if (!saved) continue;
      this.backend.write(m.moment1, saved.moment1);
      this.backend.write(m.moment2, saved.moment2);
    }
  }

  [Symbol.dispose](): void {
    for (const m of this.moments.values()) {
      this.backend.free(m.moment1);
      this.backend.free(m.moment2);
    }
  }
}

/**
 * One optimisation step: forward, loss, backward, update. The gradient is divided by the loss's own value, so that
 * blocks with large and small errors train alike (docs/methods.md, flatquant). Returns the loss.
 */
export function trainStep(
  backend: Backend,
  optimizer: AdamW,
  graphOptions: ConstructorParameters<typeof Graph>[1],
  loss: (g: Graph) => Tensor,
): number {
  using g = new Graph(backend, { ...graphOptions, train: true });
  const out = loss(g);
  const value = g.scalar(out);
  g.backward(out);
  optimizer.update(value > 0 ? 1 / value : 1);
  return value;
}
