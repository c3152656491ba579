/** Python's two ways of filling in a text: `"%s" % value` and `"{}".format(value)`. */

import {
  Float,
  itemsOf,
  keyOf,
  numeric,
  repr,
  TemplateError,
  text,
  Tuple,
  typeName,
  Undefined,
  type Named,
  type Value,
} from "./values.js";

/** Widest field; more would only fill memory. */
const MAX_WIDTH = 10_000;

/** `format % value`. @throws TemplateError for too few or too many values, or of the wrong type */
export function formatPercent(format: string, value: Value): string {
  const values = value instanceof Tuple ? value.items : [value];
  let used = 0;
  const next = (): Value => {
    if (used >= values.length) throw new TemplateError("not enough arguments for format string");
    return values[used++];
  };
  let named = false;
  const result = format.replace(
    /%(?:\(([^)]*)\))?([-+ 0#]*)(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.?)/gs,
    (
      whole,
      key: string | undefined,
      flags: string,
      width: string,
      digits: string | undefined,
      type: string,
    ) => {
      if (type === "%") return "%";
      const size = (given: string): number =>
        given === "*" ? (numeric(next()) ?? 0) : Number(given);
      const fieldWidth = size(width);
      const precision = digits === undefined ? undefined : size(digits);
      let item: Value;
      if (key === undefined) item = next();
      else {
        named = true;
        if (!(value instanceof Map)) throw new TemplateError("format requires a mapping");
        item = value.get(keyOf(key)) ?? null;
        if (!value.has(key)) throw new TemplateError(`'${key}'`);
      }
      const spec = {
        left: flags.includes("-"),
        zero: flags.includes("0"),
        sign: flags.includes("+") ? "+" : flags.includes(" ") ? " " : "",
        alternate: flags.includes("#"),
        precision,
      };
      return pad(
        converted(item, type, spec, whole),
        fieldWidth,
        spec.left ? "<" : ">",
        spec.zero && !spec.left && /[diufFeEgGxXo]/.test(type) ? "0" : " ",
      );
    },
  );
  if (!named && used < values.length && !(value instanceof Map)) {
    throw new TemplateError("not all arguments converted during string formatting");
  }
  return result;
}

interface Spec {
  readonly sign: string;
  readonly alternate: boolean;
  readonly precision: number | undefined;
}

function converted(item: Value, type: string, spec: Spec, whole: string): string {
  if (type === "s" || type === "r" || type === "a") {
    const all = type === "s" ? text(item) : repr(item);
    return spec.precision === undefined ? all : Array.from(all).slice(0, spec.precision).join("");
  }
  if (type === "c") return typeof item === "number" ? String.fromCodePoint(item) : text(item);
  const number = numeric(item);
  if (number === undefined) {
    if (item instanceof Undefined) item.fail();
    throw new TemplateError(`%${type} format: a real number is required, not ${typeName(item)}`);
  }
  return signed(number, type, spec, whole);
}

function signed(
  number: number,
  type: string,
  { sign, alternate, precision }: Spec,
  whole: string,
): string {
  const size = Math.abs(number);
  const before = number < 0 || Object.is(number, -0) ? "-" : sign;
  const whole_ = Math.trunc(size);
  const digits = precision ?? 6;
  if (digits > 100) throw new TemplateError("precision too big");
  switch (type) {
    case "d":
    case "i":
    case "u":
      return (number <= -1 ? "-" : sign) + String(whole_).padStart(precision ?? 0, "0");
    case "x":
      return before + (alternate ? "0x" : "") + whole_.toString(16);
    case "X":
      return before + (alternate ? "0X" : "") + whole_.toString(16).toUpperCase();
    case "o":
      return before + (alternate ? "0o" : "") + whole_.toString(8);
    case "f":
    case "F":
      return before + size.toFixed(digits);
    case "e":
    case "E": {
      const written = size.toExponential(digits).replace(/e([+-])(\d)$/, "e$10$2");
      return before + (type === "E" ? written.toUpperCase() : written);
    }
    case "g":
    case "G": {
      const exponent =
        size === 0 ? 0 : Math.floor(Math.log10(Number(size.toPrecision(digits || 1))));
      const plain = exponent >= -4 && exponent < (digits || 1);
      const written = plain
        ? size
            .toFixed(Math.max(0, (digits || 1) - 1 - exponent))
            .replace(/\.?0+$/, (zeros) =>
              zeros.startsWith(".") ? "" : zeros.includes(".") ? "" : zeros,
            )
        : size
            .toExponential(Math.max(0, (digits || 1) - 1))
            .replace(/\.?0*e/, "e")
            .replace(/e([+-])(\d)$/, "e$10$2");
      const trimmed =
        plain && written.includes(".") ? written.replace(/0+$/, "").replace(/\.$/, "") : written;
      return before + (type === "G" ? trimmed.toUpperCase() : trimmed);
    }
    default:
      throw new TemplateError(`the format ${JSON.stringify(whole)} is not implemented`);
  }
}

function pad(value: string, width: number, align: string, fill: string): string {
  if (width > MAX_WIDTH) throw new TemplateError(`a field's width of ${width} is too large`);
  const missing = width - Array.from(value).length;
  if (missing <= 0) return value;
  if (align === "<") return value + fill.repeat(missing);
  if (align === "^")
    return fill.repeat(missing >> 1) + value + fill.repeat(missing - (missing >> 1));
  const sign =
    fill === "0" || align === "=" ? (/^(?:[-+ ]?0[xX]|[-+ ])/.exec(value)?.[0] ?? "") : "";
  return sign + fill.repeat(missing) + value.slice(sign.length);
}

/** `format.format(…)`. Attributes of values are not looked into. */
export function formatBraces(format: string, args: readonly Value[], named: Named): string {
  let automatic = 0;
  return format.replace(
    /\{\{|\}\}|\{([^{}:!]*)(?:!([rsa]))?(?::([^{}]*))?\}|[{}]/g,
    (
      whole,
      field: string | undefined,
      conversion: string | undefined,
      spec: string | undefined,
    ) => {
      if (whole === "{{" || whole === "}}") return whole[0];
      if (field === undefined) throw new TemplateError(`a format's '${whole}' stands alone`);
      const [, name = "", path = ""] = /^([^.[]*)(.*)$/s.exec(field) ?? [];
      let item: Value | undefined =
        name === "" ? args[automatic++] : /^\d+$/.test(name) ? args[Number(name)] : named.get(name);
      if (item === undefined) throw new TemplateError(`format has no argument for '${whole}'`);
      for (const match of path.matchAll(/\[([^\]]*)\]|\..*/gs)) {
        const step = match[0];
        const key = match[1] as string | undefined;
        if (key === undefined)
          throw new TemplateError(`attributes in a format (${step}) are not implemented`);
        const items = itemsOf(item);
        const found: Value | undefined = items
          ? items[Number(key)]
          : item instanceof Map
            ? item.get(key)
            : undefined;
        if (found === undefined) throw new TemplateError(`format has no item '${key}'`);
        item = found;
      }
      return formatted(
        conversion === "r" || conversion === "a"
          ? repr(item)
          : conversion === "s"
            ? text(item)
            : item,
        spec ?? "",
      );
    },
  );
}

function formatted(item: Value, spec: string): string {
  if (spec === "") return text(item);
  const parts = /^(?:(.)?([<>=^]))?([-+ ]?)(#?)(0?)(\d*)([,_]?)(?:\.(\d+))?([a-zA-Z%]?)$/su.exec(
    spec,
  );
  if (!parts)
    throw new TemplateError(`the format specification ${JSON.stringify(spec)} is not understood`);
  const [, fill, align, sign, alternate, zero, width, comma, digits, type] = parts;
  const number = typeof item === "string" ? undefined : numeric(item);
  const precision = digits === undefined ? undefined : Number(digits);
  const options = { sign: sign === "-" ? "" : sign, alternate: alternate !== "", precision };
  let written: string;
  if (number === undefined) {
    written = converted(item, "s", options, spec);
  } else if (type === "%") {
    written = `${signed(number * 100, "f", options, spec)}%`;
  } else if (type === "" || type === "s") {
    written =
      type === "" && precision !== undefined
        ? signed(number, "g", options, spec)
        : (number >= 0 ? options.sign : "") + text(item);
  } else {
    if (type === "d" && item instanceof Float) {
      throw new TemplateError("Unknown format code 'd' for object of type 'float'");
    }
    written = signed(number, type, options, spec);
  }
  if (comma !== "")
    written = written.replace(/^[-+ ]?\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, comma));
  const filler = fill ?? (zero ? "0" : " ");
  return pad(
    written,
    Number(width),
    align ?? (zero ? "=" : number === undefined ? "<" : ">"),
    filler,
  );
}
