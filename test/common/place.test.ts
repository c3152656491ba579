import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { PlanishError, UsageError } from "../../src/common/errors.js";
import { acquireLock } from "../../src/common/lock.js";
import { lockedPlace, outputPlace, type PlaceOptions } from "../../src/common/place.js";
import { processState, thisProcess } from "../../src/common/process-identity.js";
import { makeWorkDirectory, writeAtomically } from "../../src/common/temporary.js";

const base = realpathSync(mkdtempSync(join(tmpdir(), "planish-place-")));
const before = process.cwd();
beforeAll(() => process.chdir(base));
afterAll(() => {
  process.chdir(before);
  rmSync(base, { recursive: true, force: true });
});
let d = "";
let serial = 0;
beforeEach(() => {
  d = join(base, String(serial++));
  mkdirSync(d);
});

function refusal(work: () => unknown): PlanishError {
  try {
    work();
  } catch (error) {
    if (error instanceof PlanishError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

const fresh = (given: string, more: Partial<PlaceOptions> = {}) =>
  outputPlace(given, { kind: "new directory", ...more });

describe("a path for output", () => {
  it("is the same however its slashes and dots are written", () => {
    const step = fc.constantFrom("/", "//", "/./", "/../x/", "///");
    fc.assert(
      fc.property(step, step, (between, end) => {
        expect(fresh(`${d}${between.replace("/../x/", "/y/../")}x${end}`)).toBe(join(d, "x"));
      }),
    );
    for (const given of ["x", "x/", "./x/", "x//", `./././x/.`])
      expect(fresh(given)).toBe(join(base, "x"));
    expect(readdirSync(d)).toEqual([]);
  });

  it.each(["", "a\0b"])("%j is bad usage", (given) => {
    expect(refusal(() => fresh(given))).toBeInstanceOf(UsageError);
  });

  it("may lack its parents when it is a directory, and none are left by the check", () => {
    mkdirSync(join(d, "p"));
    expect(fresh(join(d, "p/q/r/s/"))).toBe(join(d, "p/q/r/s"));
    expect(outputPlace(join(d, "p/q/r"), { kind: "directory" })).toBe(join(d, "p/q/r"));
    expect(readdirSync(join(d, "p"))).toEqual([]);
    const file = () => outputPlace(join(d, "s/file"), { kind: "file" });
    expect(refusal(file).message).toContain("there is no directory");
    expect(readdirSync(d)).toEqual(["p"]);
  });

  it("is refused behind a file, a dangling link and a circle of links, naming them", () => {
    writeFileSync(join(d, "file"), "");
    symlinkSync(join(d, "nowhere"), join(d, "dangling"));
    symlinkSync(join(d, "circle"), join(d, "circle"));
    for (const rest of ["/x", "/x/y/z"])
      expect(refusal(() => fresh(`${d}/file${rest}`)).message).toContain(
        `${d}/file is no directory`,
      );
    for (const rest of ["", "/", "/x"])
      expect(refusal(() => fresh(`${d}/dangling${rest}`)).message).toMatch(
        /is a link to ".*, which cannot be reached/,
      );
    for (const rest of ["", "/x"])
      expect(refusal(() => fresh(`${d}/circle${rest}`)).message).toMatch(/circle/);
    expect(readdirSync(d).sort()).toEqual(["circle", "dangling", "file"]);
  });

  it("is refused where something is, and nothing happens to it", () => {
    mkdirSync(join(d, "taken"));
    writeFileSync(join(d, "file"), "mine");
    for (const name of ["taken", "taken/", "file"])
      expect(refusal(() => fresh(join(d, name))).message).toMatch(/exists already; choose another/);
    expect(refusal(() => outputPlace(join(d, "file"), { kind: "directory" })).message).toContain(
      "is no directory",
    );
    expect(refusal(() => outputPlace(join(d, "taken"), { kind: "file" })).message).toContain(
      "is a directory",
    );
    expect(refusal(() => outputPlace(join(d, "new/"), { kind: "file" }))).toBeInstanceOf(
      UsageError,
    );
    expect(refusal(() => outputPlace("/dev/null", { kind: "file" })).message).toContain("a device");
    expect(outputPlace(join(d, "file"), { kind: "file" })).toBe(join(d, "file"));
    expect(readFileSync(join(d, "file"), "utf8")).toBe("mine");
  });

  it("is refused in the model that is read, by whatever way it leads there", () => {
    const source = join(d, "model");
    mkdirSync(join(source, "sub"), { recursive: true });
    symlinkSync(source, join(d, "link"));
    symlinkSync(join(source, "sub"), join(d, "deep"));
    for (const given of ["model/x", "model/../model/x", "link/x", "deep/x", "model/new/x", "deep/"])
      expect(
        refusal(() => outputPlace(join(d, given), { kind: "directory", source })).message,
      ).toContain("lies in the model that is read");
    expect(
      refusal(() => outputPlace(join(d, "link"), { kind: "directory", source })).message,
    ).toContain("is the model that is read");
    expect(fresh(join(d, "model2"), { source })).toBe(join(d, "model2"));
    expect(fresh(join(d, "beside"), { source: join(d, "missing") })).toBe(join(d, "beside"));
  });

  it("is refused when its name leaves no room for temporary names", () => {
    expect(refusal(() => fresh(join(d, "é".repeat(120)))).message).toContain("too long a name");
    expect(refusal(() => fresh(join(d, "a".repeat(5000)))).message).toContain("too long");
    expect(fresh(join(d, "a".repeat(215)))).toContain("aaa");
  });

  it("is refused when the disk has less room than is needed, with both numbers", () => {
    expect(refusal(() => fresh(join(d, "x"), { bytes: 1e30 })).message).toMatch(
      /needs about .* of disk, and [\d.]+ [KMGTP]?B are free/,
    );
  });

  it.skipIf(process.platform !== "linux")("is refused where nothing can be written", () => {
    expect(refusal(() => fresh("/proc/planish")).message).toMatch(/cannot be written: \/proc: /);
    if (process.getuid?.() === 0) return;
    mkdirSync(join(d, "locked"));
    chmodSync(join(d, "locked"), 0o555);
    expect(refusal(() => fresh(join(d, "locked/x"))).message).toContain("permission denied");
  });
});

/** A process that has ended: the pid may be used again, the start is another. */
const ended = { ...thisProcess(), start: "an earlier boot:1" };

describe("a lock", () => {
  const record = (owner: object) =>
    JSON.stringify({ lock: "planish lock", id: "0123456789abcdef", ...owner });

  it("is refused to a second owner with the pid of the first, and free when released", () => {
    const first = lockedPlace(join(d, "out/"), { kind: "new directory" });
    const { message } = refusal(() => lockedPlace(join(d, "out"), { kind: "new directory" }));
    expect(message).toContain(`this process works on ${join(d, "out")} already`);
    first.lock[Symbol.dispose]();
    first.lock[Symbol.dispose]();
    lockedPlace(join(d, "out"), { kind: "new directory" }).lock[Symbol.dispose]();
    expect(readdirSync(d)).toEqual([]);
  });

  it.each(["new directory", "directory"] as const)(
    "has the parents of a %s made, which go again unless something came of the work",
    (kind) => {
      mkdirSync(join(d, "p"));
      for (const leaves of [false, true]) {
        const { path, lock } = lockedPlace(join(d, "p/q/r/out"), { kind });
        expect(readdirSync(join(d, "p/q/r"))).toHaveLength(1);
        if (leaves) writeFileSync(kind === "directory" ? join(path, "result") : path, "");
        lock[Symbol.dispose]();
        expect(readdirSync(join(d, "p"))).toEqual(leaves ? ["q"] : []);
      }
      expect(readdirSync(join(d, "p/q/r"))).toEqual(["out"]);
      // What was there before stays, empty or not.
      mkdirSync(join(d, "mine"));
      lockedPlace(join(d, "mine/out"), { kind }).lock[Symbol.dispose]();
      expect(readdirSync(join(d, "mine"))).toEqual([]);
    },
  );

  it("leaves no parents when it is refused", () => {
    const { lock } = lockedPlace(join(d, "a/out"), { kind: "new directory" });
    refusal(() => lockedPlace(join(d, "a/out"), { kind: "new directory" }));
    lock[Symbol.dispose]();
    expect(readdirSync(d)).toEqual([]);
  });

  it.skipIf(process.platform === "win32")("of an ended process is taken over", () => {
    writeFileSync(join(d, "lock"), record(ended));
    // Killed between writing its record and taking the lock.
    writeFileSync(join(d, "lock.7-0123abcd"), record(ended));
    {
      using _lock = acquireLock(join(d, "lock"), "this");
      expect(JSON.parse(readFileSync(join(d, "lock"), "utf8"))).toMatchObject({ pid: process.pid });
      expect(readdirSync(d)).toEqual(["lock"]);
    }
    expect(readdirSync(d)).toEqual([]);
  });

  it("of an ended process is taken over although the one who began to has ended too", () => {
    const claim = join(d, "lock.0123456789abcdef");
    writeFileSync(join(d, "lock"), record({ ...ended, pid: 2 ** 22 + 1 }));
    writeFileSync(claim, record({ ...ended, pid: 2 ** 22 + 1, id: "fedcba9876543210" }));
    acquireLock(join(d, "lock"), "this")[Symbol.dispose]();
    expect(readdirSync(d)).toEqual([]);
  });

  it("leaves nothing of a process that was killed before it had written its record, and what is not that", () => {
    const gone = join(d, `lock.${2 ** 22 + 1}-0123abcd`);
    const kept = [`lock.${process.pid}-0123abcd`, "lock.7-notours", `lock.${2 ** 22 + 1}-89abcdef`];
    for (const name of kept) writeFileSync(join(d, name), name.endsWith("ef") ? "a user's" : "");
    writeFileSync(gone, "");
    acquireLock(join(d, "lock"), "this")[Symbol.dispose]();
    expect(readdirSync(d).sort()).toEqual(kept.sort());
  });

  it("of another machine is left alone", () => {
    const text = record({ ...ended, host: `not-${hostname()}` });
    writeFileSync(join(d, "lock"), text);
    expect(refusal(() => acquireLock(join(d, "lock"), "this")).message).toMatch(
      /pid \d+ on not-.*if it has ended, remove .*lock$/,
    );
    expect(readFileSync(join(d, "lock"), "utf8")).toBe(text);
  });

  it.each(["", "mine", "{}", "[", '{"lock":"planish lock"}', "x".repeat(1e5)])(
    "that is none (%#) is neither taken nor removed",
    (content) => {
      writeFileSync(join(d, "lock"), content);
      expect(refusal(() => acquireLock(join(d, "lock"), "this")).message).toContain("move it away");
      expect(readFileSync(join(d, "lock"), "utf8")).toBe(content);
    },
  );

  it("that is a directory or a dangling link is neither taken nor waited for", () => {
    mkdirSync(join(d, "directory"));
    symlinkSync(join(d, "nowhere"), join(d, "link"));
    for (const name of ["directory", "link"])
      expect(refusal(() => acquireLock(join(d, name), "this")).message).toContain("move it away");
    expect(existsSync(join(d, "nowhere"))).toBe(false);
  });

  it("is told by whether its owner runs", () => {
    expect(processState(thisProcess())).toBe("running");
    expect(processState({ ...thisProcess(), pid: 2 ** 22 + 1 })).toBe("ended");
    expect(processState({ ...thisProcess(), host: "elsewhere" })).toBe("unknown");
  });

  it.runIf(process.platform === "linux")("on a machine or in a container of one name", () => {
    const namesake = { ...thisProcess(), start: "another boot:1", machine: "another" };
    expect(processState(namesake)).toBe("unknown");
    expect(processState({ ...thisProcess(), machine: undefined })).toBe("running");
  });
});

describe("temporary names", () => {
  it("of ended processes are removed where they carry our mark, and left where they don't", () => {
    const marked = join(d, "out.partial-1-00000000");
    const living = join(d, "out.partial-2-00000000");
    for (const [path, owner] of [
      [marked, { ...ended, pid: 2 ** 22 + 1 }],
      [living, thisProcess()],
    ] as const) {
      mkdirSync(path);
      const marker = { temporary: "planish temporary directory", ...owner };
      writeFileSync(join(path, ".planish-temporary.json"), JSON.stringify(marker));
    }
    for (const name of ["out.partial", "out.partial-3-00000000", "out.partial-4"]) {
      mkdirSync(join(d, name));
      writeFileSync(join(d, name, "mine"), "");
    }
    writeFileSync(join(d, "out.partial-5-00000000"), "mine");
    symlinkSync(living, join(d, "out.partial-6-00000000"));
    {
      using work = makeWorkDirectory(join(d, "out"));
      writeFileSync(join(work.content, "part"), "");
    }
    expect(readdirSync(d).sort()).toEqual([
      "out.partial",
      ...[2, 3].map((n) => `out.partial-${n}-00000000`),
      "out.partial-4",
      ...[5, 6].map((n) => `out.partial-${n}-00000000`),
    ]);
  });

  it("leave nothing when a file cannot get its final name", () => {
    mkdirSync(join(d, "x"));
    expect(() => writeAtomically(join(d, "x"), "text")).toThrow();
    expect(readdirSync(d)).toEqual(["x"]);
  });
});
