/** Typed arrays as bytes: in pieces, since no Uint8Array of Node 20 is longer than 2³² elements, and others are. */

/** Largest piece; Node.js also refuses to read, write or hash 2 GiB at once. */
export const MOST_BYTES_AT_ONCE = 2 ** 30;

/** The bytes of an array, in place, as pieces that follow one another; none for an empty array. */
export function* bytePieces(
  { buffer, byteOffset, byteLength }: ArrayBufferView,
  most = MOST_BYTES_AT_ONCE,
): Generator<Uint8Array> {
  for (let at = 0; at < byteLength; at += most)
    yield new Uint8Array(buffer, byteOffset + at, Math.min(most, byteLength - at));
}
