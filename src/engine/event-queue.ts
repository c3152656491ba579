/** Items that one side puts in and one reader takes out, in order; the reader waits while there are none. */
export class EventQueue<T> {
  private readonly items: T[] = [];
  private error: Error | undefined;
  private waiting: { resolve: (item: T) => void; reject: (error: Error) => void } | undefined;

  push(item: T): void {
    if (this.waiting) {
      this.waiting.resolve(item);
      this.waiting = undefined;
    } else this.items.push(item);
  }

  /** What was put in before still comes out first. */
  fail(error: Error): void {
    this.error ??= error;
    this.waiting?.reject(this.error);
    this.waiting = undefined;
  }

  /** The next item. Rejects after `fail`, once the items are gone. One call at a time. */
  next(): Promise<T> {
    const item = this.items.shift();
    if (item !== undefined) return Promise.resolve(item);
    if (this.error) return Promise.reject(this.error);
    return new Promise((resolve, reject) => (this.waiting = { resolve, reject }));
  }
}
