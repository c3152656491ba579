/** Dates as Python's `strftime` writes them on Linux, in the C locale and local time. */

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
]; // prettier-ignore

interface Field {
  readonly text: string;
  /** Digits and what fills them up, of numbers. */
  readonly width?: number;
  readonly fill?: "0" | " ";
}

const number = (value: number, width: number, fill: "0" | " " = "0"): Field => ({
  text: String(value),
  width,
  fill,
});

/**
 * Writes `date` in `format`. Takes glibc's flags (`%-d`, `%_d`, `%02d`, `%^a`, `%#p`) and widths. What is no
 * directive stays as it is.
 */
export function strftime(date: Date, format: string): string {
  return format.replace(
    /%([-_0^#]*)(\d*)[EO]?([a-zA-Z%])/g,
    (whole, flags: string, width: string, directive: string) => {
      const field = fieldOf(date, directive);
      if (field === undefined) return whole;
      let { text, width: least = 0 } = field;
      let fill = field.fill ?? " ";
      for (const flag of flags) {
        if (flag === "-") [least, fill] = [0, " "];
        else if (flag === "_") fill = " ";
        else if (flag === "0") fill = "0";
        else if (flag === "^") text = text.toUpperCase();
        else
          text = directive === "p" || directive === "Z" ? text.toLowerCase() : text.toUpperCase();
      }
      return text.padStart(width === "" ? least : Math.min(Number(width), 1000), fill);
    },
  );
}

function fieldOf(date: Date, directive: string): Field | undefined {
  const year = date.getFullYear();
  const hours = date.getHours();
  const day = date.getDay();
  const composed = (format: string): Field => ({ text: strftime(date, format) });
  switch (directive) {
    case "%":
      return { text: "%" };
    case "n":
      return { text: "\n" };
    case "t":
      return { text: "\t" };
    case "a":
      return { text: DAYS[day].slice(0, 3) };
    case "A":
      return { text: DAYS[day] };
    case "b":
    case "h":
      return { text: MONTHS[date.getMonth()].slice(0, 3) };
    case "B":
      return { text: MONTHS[date.getMonth()] };
    case "p":
      return { text: hours < 12 ? "AM" : "PM" };
    case "P":
      return { text: hours < 12 ? "am" : "pm" };
    case "Y":
      return number(year, 1);
    case "C":
      return number(Math.floor(year / 100), 2);
    case "y":
      return number(year % 100, 2);
    case "m":
      return number(date.getMonth() + 1, 2);
    case "d":
      return number(date.getDate(), 2);
    case "e":
      return number(date.getDate(), 2, " ");
    case "H":
      return number(hours, 2);
    case "k":
      return number(hours, 2, " ");
    case "I":
      return number(hours % 12 || 12, 2);
    case "l":
      return number(hours % 12 || 12, 2, " ");
    case "M":
      return number(date.getMinutes(), 2);
    case "S":
      return number(date.getSeconds(), 2);
    case "f":
      return { text: String(date.getMilliseconds() * 1000).padStart(6, "0") };
    case "j":
      return number(dayOfYear(date) + 1, 3);
    case "u":
      return number(day || 7, 1);
    case "w":
      return number(day, 1);
    case "U":
      return number(Math.floor((dayOfYear(date) + 7 - day) / 7), 2);
    case "W":
      return number(Math.floor((dayOfYear(date) + 7 - ((day + 6) % 7)) / 7), 2);
    case "V":
      return number(isoWeek(date).week, 2);
    case "G":
      return number(isoWeek(date).year, 1);
    case "g":
      return number(isoWeek(date).year % 100, 2);
    case "s":
      return number(Math.floor(date.getTime() / 1000), 1);
    case "z":
    case "Z":
      // As of a Python datetime without a time zone.
      return { text: "" };
    case "c":
      return composed("%a %b %e %H:%M:%S %Y");
    case "D":
    case "x":
      return composed("%m/%d/%y");
    case "F":
      return composed("%Y-%m-%d");
    case "T":
    case "X":
      return composed("%H:%M:%S");
    case "R":
      return composed("%H:%M");
    case "r":
      return composed("%I:%M:%S %p");
    default:
      return undefined;
  }
}

/** Days since January 1st, whatever the clocks do in between. */
function dayOfYear(date: Date): number {
  const day = Date.UTC(date.getFullYear(), date.getMonth(), date.getDate());
  return Math.round((day - Date.UTC(date.getFullYear(), 0, 1)) / 86_400_000);
}

/** ISO 8601's week: weeks begin on Monday, and belong to the year of their Thursday. */
function isoWeek(date: Date): { year: number; week: number } {
  const weekday = (date.getDay() + 6) % 7;
  const thursday = new Date(date.getFullYear(), date.getMonth(), date.getDate() - weekday + 3);
  return { year: thursday.getFullYear(), week: Math.floor(dayOfYear(thursday) / 7) + 1 };
}
