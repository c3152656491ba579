interface Step<T> {
  readonly source: number;
  readonly result: IteratorResult<T, void>;
}

/** Several asynchronous sequences as one, each item as soon as it is there, with the number of its sequence. */
export async function* merge<T>(
  sources: readonly AsyncIterator<T, void>[],
): AsyncGenerator<{ readonly source: number; readonly item: T }, void> {
  const pending = new Map<number, Promise<Step<T>>>();
  const advance = (source: number): void => {
    const step = sources[source].next().then((result) => ({ source, result }));
    // Whoever fails while nobody waits for it any more fails unheard.
    step.catch(() => undefined);
    pending.set(source, step);
  };
  sources.forEach((_, source) => advance(source));
  while (pending.size > 0) {
    const { source, result } = await Promise.race(pending.values());
    if (result.done) pending.delete(source);
    else {
      advance(source);
      yield { source, item: result.value };
    }
  }
}
