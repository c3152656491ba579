/** Ratios of measurements whose denominator may be zero, for results that JSON has to hold. */

/**
 * An error over the size of what was expected. No error is 0 whatever was expected; an error where nothing was expected
 * is all there is, 1.
 */
export function relativeError(error: number, expected: number): number {
  if (error === 0) return 0;
  return expected > 0 ? error / expected : 1;
}

/** JSON of a value in which every number is finite. @throws RangeError naming the one that is not. */
export function finiteJson(value: unknown, indent?: number): string {
  return JSON.stringify(
    value,
    (key, member: unknown) => {
      if (typeof member === "number" && !Number.isFinite(member))
        throw new RangeError(`"${key}" is ${member}, which JSON cannot hold`);
      return member;
    },
    indent,
  );
}
