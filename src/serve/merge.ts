/** Several asynchronous sequences as one, each item as soon as it is there, with the number of its sequence. */
export async function* merge<T>(
  sources: readonly AsyncIterator<T, void>[],
): AsyncGenerator<{ readonly source: number; readonly item: T }, void> {
  type Step = { readonly source: number; readonly result: IteratorResult<T, void> };
  const advance = async (source: number): Promise<Step> => ({
    source,
    result: await sources[source].next(),
  });
  const pending = new Map(sources.map((_, source) => [source, advance(source)]));
  try {
    while (pending.size > 0) {
      const { source, result } = await Promise.race(pending.values());
      if (result.done) pending.delete(source);
      else {
        pending.set(source, advance(source));
        yield { source, item: result.value };
      }
    }
  } finally {
    // Whoever is still on the way ends by itself or by the signal that it was given; its error has no reader.
    for (const step of pending.values()) step.catch(() => undefined);
  }
}
