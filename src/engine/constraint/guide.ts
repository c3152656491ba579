/** One text's guide as the engine's thread sees it: the mask lies in memory that a guide thread writes. */
import type { Guide } from "./contract.js";
import { GuideState, maskLength } from "./protocol.js";

/** What a guide needs of the thread that works for it. */
export interface GuideService {
  accept(guide: number, token: number): void;
  drop(guide: number): void;
}

export class SharedGuide implements Guide {
  /** Tokens so far: another thread can take over by them. */
  readonly tokens: number[] = [];
  private state: Int32Array;
  private listener: (() => void) | undefined;
  private disposed = false;

  constructor(
    readonly id: number,
    private readonly vocabulary: number,
    private service: GuideService,
    readonly fail: (error: Error) => void,
  ) {
    this.state = this.memory();
  }

  private memory(): Int32Array {
    const length = GuideState.mask + maskLength(this.vocabulary);
    return new Int32Array(new SharedArrayBuffer(4 * length));
  }

  get shared(): SharedArrayBuffer {
    return this.state.buffer as SharedArrayBuffer;
  }

  /** Another thread goes on from the tokens so far. */
  moveTo(service: GuideService): void {
    this.service = service;
    this.state = this.memory();
    if (this.listener) Atomics.store(this.state, GuideState.awaited, 1);
  }

  get isAwaited(): boolean {
    return this.listener !== undefined;
  }

  isReady(): boolean {
    return Atomics.load(this.state, GuideState.version) === this.tokens.length + 1;
  }

  onReady(listener: () => void): void {
    this.listener = listener;
    Atomics.store(this.state, GuideState.awaited, 1);
    // The other side looks after it has written: one of the two sees the other.
    if (this.isReady()) queueMicrotask(() => this.tell());
  }

  /** A mask has come: perhaps an earlier one, which both sides had seen. */
  tell(): void {
    if (!this.isReady()) return;
    const { listener } = this;
    this.listener = undefined;
    if (!this.disposed) listener?.();
  }

  get mask(): Int32Array {
    return this.state.subarray(GuideState.mask);
  }

  get isComplete(): boolean {
    return Atomics.load(this.state, GuideState.complete) === 1;
  }

  accept(token: number): void {
    this.tokens.push(token);
    this.service.accept(this.id, token);
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    this.listener = undefined;
    this.service.drop(this.id);
  }
}
