/** Where results go, as the whole program treats it: odd paths, two processes at one place, stops and full disks. */
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { fileHashes, SMALL_RUN, temporaryDirectory } from "./artifacts.js";
import { planish, root } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

const MODEL = "models/tiny-llama";
const rtn = (out: string, ...more: string[]) =>
  planish(["quantize", MODEL, "--out", out, "--method", "rtn", "--no-verdict", ...more]);
/** Long enough per block for somebody to come in between. */
const slow = (out: string, ...more: string[]): string[] => [
  ...["quantize", MODEL, "--out", out, ...SMALL_RUN, "--epochs", "40"],
  ...more,
];
const lastLine = (text: string): string => text.trimEnd().split("\n").at(-1) ?? "";

describe("--out", () => {
  it.each(["plain/", "./dots/", "slashes//", "p/q/missing-parents"])("%s works", async (name) => {
    const at = directory.file("cwd");
    mkdirSync(at, { recursive: true });
    const run = await planish(["quantize", join(root, MODEL), "--out", name, "--method", "rtn"], {
      cwd: at,
    });
    expect(run.code).toBe(0);
    expect(existsSync(join(at, name, "quantization.json"))).toBe(true);
    expect(readdirSync(at).filter((entry) => /partial|run|lock/.test(entry))).toEqual([]);
  });

  it("that cannot be written is refused in one line before any work", async () => {
    writeFileSync(directory.file("file"), "mine");
    symlinkSync(directory.file("nowhere"), directory.file("dangling"));
    for (const out of ["", "dangling", "file", "file/x", "dangling/x"]) {
      const { code, stderr } = await rtn(out === "" ? "" : directory.file(out));
      expect({ out, code: code === 0 }).toEqual({ out, code: false });
      expect(stderr).toMatch(/^planish: [^\n]+\n$/);
    }
    expect(readFileSync(directory.file("file"), "utf8")).toBe("mine");
  });

  it("is not blamed for what a report cannot be of", async () => {
    for (const given of ["/dev/null", directory.file("none"), join(root, MODEL), ""]) {
      const { code, stderr } = await planish(["report", given]);
      expect(code).toBe(2);
      expect(stderr).toMatch(/^planish: "[^"]*" is neither an artifact [^\n]+\n$/);
    }
  });

  it("is not there, nor are its parents, when the work fails before it began", async () => {
    const at = directory.file("nothing-began");
    mkdirSync(at);
    const model = join(root, MODEL);
    for (const args of [
      ["quantize", "no-such-model"],
      ["quantize", model, "--method", "flatquant", "--calibration", "no-such-text"],
      ["compare", "no-such-model", "--methods", "rtn"],
      ["compare", model, "--methods", "rtn", "--text", "no-such-text"],
      ["compare", model, "--methods", "smoothquant", "--calibration", "no-such-text"],
      [
        "sweep",
        model,
        "--method",
        "smoothquant",
        "--grid",
        "alpha=0.5",
        "--calibration",
        "no-such-text",
      ],
    ]) {
      const { code, stderr } = await planish([...args, "--out", "p/q/out"], { cwd: at });
      expect(code, stderr).not.toBe(0);
      expect({ args, left: readdirSync(at) }).toEqual({ args, left: [] });
    }
  });

  it("leaves what others keep beside it", async () => {
    for (const name of ["kept.partial", "kept.partial-1-00000000"]) {
      mkdirSync(directory.file(name));
      writeFileSync(join(directory.file(name), "mine"), "mine");
    }
    expect((await rtn(directory.file("kept"))).code).toBe(0);
    for (const name of ["kept.partial", "kept.partial-1-00000000"])
      expect(readFileSync(join(directory.file(name), "mine"), "utf8")).toBe("mine");
    mkdirSync(directory.file("other.run"));
    writeFileSync(join(directory.file("other.run"), "mine"), "mine");
    const { code, stderr } = await rtn(directory.file("other"));
    expect(code).toBe(1);
    expect(stderr).toMatch(/other\.run is where this run would be kept, and it holds other files/);
    expect(readdirSync(directory.file("other.run"))).toEqual(["mine"]);
  });
});

describe("two processes at one place", () => {
  it("the second run is refused with the pid of the first, which is unharmed", async () => {
    const out = directory.file("twice");
    let second: ReturnType<typeof planish> | undefined;
    let pid: number | undefined;
    const first = await planish(slow(out), {
      onStderr: (child, text) => {
        if (!text.includes("block 0:")) return;
        pid = child.pid;
        second ??= planish(slow(`${out}/`, "--resume"));
      },
    });
    const loser = await second;
    expect(loser?.code).toBe(1);
    expect(loser?.stderr).toContain(`planish: another planish (pid ${pid}) works on ${out}; `);
    expect(loser?.stderr.trimEnd()).not.toContain("\n");
    expect(first.code).toBe(0);
    expect(Object.keys(fileHashes(out))).toContain("model.safetensors");
    expect(existsSync(`${out}.lock`)).toBe(false);
  });

  it("of many that resume a killed run at once, one does and the others say who", async () => {
    const out = directory.file("race");
    let sent = false;
    await planish(slow(out), {
      onStderr: (child, text) => {
        if (!sent && text.includes("block 4:")) sent = child.kill("SIGKILL");
      },
    });
    expect(existsSync(`${out}.lock`)).toBe(true);
    const runs = await Promise.all(Array.from({ length: 5 }, () => planish(slow(out, "--resume"))));
    // One that comes when the winner has ended already finds the artifact.
    for (const { stderr } of runs.filter(({ code }) => code !== 0))
      expect(lastLine(stderr)).toMatch(/another planish \(pid \d+\) works on|exists already/);
    expect(runs.filter(({ code }) => code === 0)).toHaveLength(1);
    expect(Object.keys(fileHashes(out))).toContain("config.json");
    expect(readdirSync(directory.path).filter((name) => name.startsWith("race"))).toEqual(["race"]);
  });

  it.each([
    ["compare", ["--methods", "fp16,rtn", "--windows", "1", "--window-tokens", "32"]],
    [
      "sweep",
      ["--method", "smoothquant", "--grid", "alpha=0.4,0.6", "--windows", "1", "--samples", "2"],
    ],
  ])("%s: one clear line for the second", async (command, flags) => {
    const out = directory.file(command);
    const args = [command, MODEL, "--out", out, ...flags];
    let second: ReturnType<typeof planish> | undefined;
    const first = await planish(args, {
      onStderr: () => {
        // Its first line comes with the lock taken or about to be.
        if (existsSync(join(out, "planish.lock"))) second ??= planish([...args, "--resume"]);
      },
    });
    expect(first.code).toBe(0);
    const loser = await second;
    expect(loser?.code).toBe(1);
    expect(loser?.stderr).toMatch(/^planish: another planish \(pid \d+\) works on [^\n]*\n$/);
    expect(existsSync(join(out, "planish.lock"))).toBe(false);
  });
});

describe("a stop", () => {
  it.each(["SIGINT", "SIGTERM"] as const)(
    "by %s in block 0 says that nothing is finished, and the command that goes on works",
    async (signal) => {
      const out = directory.file(`it's ${signal} $HOME`);
      let sent = false;
      const stopped = await planish(slow(out), {
        onStderr: (child, text) => {
          if (!sent && text.includes("calibrating …")) sent = child.kill(signal);
        },
      });
      expect(stopped.code).toBe(130);
      const line = lastLine(stopped.stderr);
      expect(line).toMatch(/^planish: stopped .*; nothing is finished yet; go on with: node .*/);
      expect(existsSync(`${out}.lock`)).toBe(false);
      const command = line.replace(/^.*; go on with: /, "");
      const again = spawnSync("sh", ["-c", command], { cwd: root, encoding: "utf8" });
      expect(again.status).toBe(0);
      expect(existsSync(join(out, "quantization.json"))).toBe(true);
    },
  );

  it("later says how many blocks are kept", async () => {
    const out = directory.file("later");
    let sent = false;
    const { stderr } = await planish(slow(out), {
      onStderr: (child, text) => {
        if (!sent && text.includes("block 1:")) sent = child.kill("SIGINT");
      },
    });
    expect(lastLine(stderr)).toMatch(
      /^planish: stopped .*; [2-7] of 8 blocks are kept; go on with: node .* --resume$/,
    );
  });
});

/** A small file system of its own needs the right to mount one. */
const mounted = directory.file("full");
mkdirSync(mounted);
const mount = spawnSync("mount", ["-t", "tmpfs", "-o", "size=40m", "tmpfs", mounted]);
afterAll(() => {
  if (mount.status === 0) spawnSync("umount", [mounted]);
});

describe.skipIf(mount.status !== 0)("a full disk", () => {
  it("is told in one line with what is kept, and the run goes on when there is room", async () => {
    const out = join(mounted, "out");
    const ballast = join(mounted, "ballast");
    let filled = false;
    const { code, stderr } = await planish(slow(out), {
      onStderr: (_child, text) => {
        if (filled || !text.includes("block 2:")) return;
        filled = true;
        spawnSync("dd", ["if=/dev/zero", `of=${ballast}`, "bs=64k"]);
      },
    });
    expect({ code, filled }).toEqual({ code: 1, filled: true });
    expect(lastLine(stderr)).toMatch(
      /^planish: (disk full|cannot write).*; [3-8] of 8 blocks are kept.*; go on with: node .* --resume$/,
    );
    expect(stderr).not.toMatch(/^ +at /m);
    rmSync(ballast);
    expect((await planish(slow(out, "--resume"))).code).toBe(0);
    expect(readdirSync(mounted)).toEqual(["out"]);
  });

  it("is told before any work when the estimate does not fit", async () => {
    const ballast = join(mounted, "ballast");
    spawnSync("dd", ["if=/dev/zero", `of=${ballast}`, "bs=1M", "count=30"]);
    const { code, stderr } = await rtn(join(mounted, "more"));
    expect(code).toBe(1);
    expect(lastLine(stderr)).toMatch(/of disk .* are free/);
    expect(readdirSync(mounted).sort()).toEqual(["ballast", "out"]);
    rmSync(ballast);
  });
});

describe.skipIf(process.platform === "win32")("a device where a file belongs", () => {
  it.each([
    ["quantize", ["--calibration", "/dev/zero", "--out", "zero-1"]],
    ["quantize", ["--recipe", "/dev/zero", "--out", "zero-2"]],
    ["eval", ["--ppl", "/dev/zero"]],
    ["eval", ["--tasks", "piqa=/dev/zero"]],
    ["serve", ["--api-key-file", "/dev/zero"]],
    ["serve", ["--chat-template", "/dev/zero"]],
  ])("%s %j is refused at once", async (command, args) => {
    const { code, stderr } = await planish([command, MODEL, ...args]);
    expect(code).not.toBe(0);
    expect(lastLine(stderr)).toMatch(/^planish: .*\/dev\/zero.*device/);
    for (const name of ["zero-1", "zero-2"])
      for (const suffix of ["", ".run", ".lock"])
        expect(existsSync(join(root, name + suffix))).toBe(false);
  });

  it.each(["quantization.json", "config.json", "tokenizer.json", "tokenizer_config.json"])(
    "%s of an artifact is refused at once",
    async (name) => {
      const out = directory.file(`device-${name}`);
      expect((await rtn(out)).code).toBe(0);
      rmSync(join(out, name));
      symlinkSync("/dev/zero", join(out, name));
      const { code, stderr } = await planish(["generate", out, "--prompt", "Hi"]);
      expect(code).toBe(1);
      expect(stderr).toMatch(/^planish: [^\n]*device[^\n]*\n$/);
    },
  );

  it("a journal's and a comparison's settings are refused at once", async () => {
    const run = directory.file("devices.run");
    mkdirSync(run);
    symlinkSync("/dev/zero", join(run, "settings.json"));
    const resumed = await rtn(directory.file("devices"), "--resume");
    expect(lastLine(resumed.stderr)).toMatch(/^planish: .*settings\.json: it is a device/);
    const out = directory.file("device-comparison");
    mkdirSync(out);
    symlinkSync("/dev/zero", join(out, "settings.json"));
    const args = ["compare", MODEL, "--out", out, "--resume", "--windows", "1"];
    expect(lastLine((await planish(args)).stderr)).toMatch(/settings\.json: it is a device/);
  });
});
