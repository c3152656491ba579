/**
 * Formats of strings, as patterns that are at least as narrow as the standards: what is written fits, and not everything
 * that would fit can be written (no 29th of February, no leap second, IPv6 in full).
 */

const DATE =
  "\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8]))";
const HOUR = "(?:[01]\\d|2[0-3])";
const TIME = `${HOUR}:[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-]${HOUR}:[0-5]\\d)`;
const LABEL = "[A-Za-z0-9](?:-?[A-Za-z0-9])*";
const SHORT_LABEL = "[A-Za-z0-9](?:-?[A-Za-z0-9]){0,30}";
const HOST = `${LABEL}(?:\\.${LABEL}){0,4}`;
const OCTET = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const HEX = "[0-9a-f]";
const PATH = "(?:/[A-Za-z0-9._~-]*)*";
const DURATION_TIME =
  "T(?:\\d{1,4}H(?:\\d{1,4}M)?(?:\\d{1,4}S)?|\\d{1,4}M(?:\\d{1,4}S)?|\\d{1,4}S)";

/** Patterns that match a whole text, by the format's name. */
export const FORMATS: Readonly<Record<string, string>> = {
  date: DATE,
  time: TIME,
  "date-time": `${DATE}T${TIME}`,
  duration: `P(?:\\d{1,4}W|\\d{1,4}Y(?:\\d{1,4}M(?:\\d{1,4}D)?)?(?:${DURATION_TIME})?|\\d{1,4}M(?:\\d{1,4}D)?(?:${DURATION_TIME})?|\\d{1,4}D(?:${DURATION_TIME})?|${DURATION_TIME})`,
  email: `[A-Za-z0-9_+-]+(?:\\.[A-Za-z0-9_+-]+)*@${LABEL}(?:\\.${LABEL})+`,
  hostname: `${SHORT_LABEL}(?:\\.${SHORT_LABEL}){0,2}`,
  ipv4: `${OCTET}(?:\\.${OCTET}){3}`,
  ipv6: `${HEX}{1,4}(?::${HEX}{1,4}){7}`,
  uuid: `${HEX}{8}-${HEX}{4}-${HEX}{4}-${HEX}{4}-${HEX}{12}`,
  uri: `(?:https?|ftp)://${HOST}(?::[1-9]\\d{0,3})?${PATH}(?:\\?[A-Za-z0-9=&._~-]*)?(?:#[A-Za-z0-9._~-]*)?`,
  "uri-reference": `(?:https?://${HOST})?${PATH}`,
  "json-pointer": "(?:/[A-Za-z0-9_.-]*)*",
};

/** Formats of numbers and of bytes that say nothing beyond their type here. */
export const SILENT_FORMATS: ReadonlySet<string> = new Set(["float", "double"]);
/** Formats that are a range of whole numbers (OpenAPI). */
const INTEGER_FORMATS: Readonly<Record<string, readonly [number, number]>> = {
  int32: [-(2 ** 31), 2 ** 31 - 1],
  int64: [-Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
  uint32: [0, 2 ** 32 - 1],
};

/** Least and greatest whole number of a schema's format; undefined where it names no such range. */
export function integerRange(format: unknown): readonly [number, number] | undefined {
  return typeof format === "string" && Object.hasOwn(INTEGER_FORMATS, format)
    ? INTEGER_FORMATS[format]
    : undefined;
}
