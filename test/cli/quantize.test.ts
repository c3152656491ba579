import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import { fileHashes, SMALL_RUN, temporaryDirectory } from "./artifacts.js";
import { planish } from "./run-program.js";

const directory = temporaryDirectory();
afterAll(() => directory[Symbol.dispose]());

const MODEL = "models/tiny-llama";

const run = (out: string, ...more: string[]): string[] => [
  "quantize",
  MODEL,
  ...["--out", out, "--no-verdict", ...SMALL_RUN, ...more],
];

interface WholeRun {
  readonly stdout: string;
  readonly hashes: Readonly<Record<string, string>>;
}

let whole: Promise<WholeRun> | undefined;

/** A run that nothing disturbs, once for all tests that compare with it. */
function wholeRun(): Promise<WholeRun> {
  whole ??= (async () => {
    const out = directory.file("whole");
    const { code, stdout, stderr } = await planish(run(out));
    if (code !== 0) throw new Error(stderr);
    return { stdout, hashes: fileHashes(out) };
  })();
  return whole;
}

describe("planish quantize", () => {
  it("leaves a complete artifact and says what it is", async () => {
    const out = directory.file("rtn");
    const { code, stdout } = await planish(["quantize", MODEL, "--out", out, "--method", "rtn"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/rtn: w4a4kv4 by rtn, 5\.\d+ MB \(37% of 13\.9 MB\), in .+$/m);
    // And what it is worth, last.
    expect(stdout).toMatch(
      /\n\non 10 held-back windows of 512 tokens: KL to the original \d+\.\d{3} nats a token, the same likeliest token for .+, perplexity .+\noriginal: {2}"The capital .+"\nquantized: "The capital .+"\n$/,
    );
    expect(readdirSync(directory.path)).toEqual(["rtn"]);
    expect(readdirSync(out).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "model.safetensors",
      "quantization.json",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
  });

  it("prints one JSON document with --json, and its progress on stderr", async () => {
    const out = directory.file("json");
    const args = run(out, "--scheme", "w3a8", "--seed", "7", "--json");
    const { code, stdout, stderr } = await planish(args);
    expect(code).toBe(0);
    const document = JSON.parse(stdout) as {
      info: { scheme: string; seed: number; recipe: Record<string, unknown> };
      layers: { errorRounded: number; errorFinal: number }[];
      estimate: { trainingOperations: number };
      trainingSeconds: number;
      trainingRate: number;
      peakMemoryBytes: number;
      moved: { group: string; parameter: string; change: number }[][];
    };
    expect(document.info).toMatchObject({ scheme: "w3a8kv16", seed: 7 });
    expect(document.info.recipe).toMatchObject({ samples: 4, seqLen: 64, epochs: 1, batch: 2 });
    expect(document.layers).toHaveLength(8);
    const { trainingRate, trainingSeconds, estimate } = document;
    expect(trainingRate).toBe(estimate.trainingOperations / trainingSeconds);
    // The model alone is 14 MB, and no machine that runs this has a terabyte.
    expect(document.peakMemoryBytes).toBeGreaterThan(14e6);
    expect(document.peakMemoryBytes).toBeLessThan(1e12);
    expect(document.moved).toHaveLength(8);
    const groups = document.moved[7].map(({ group }) => group);
    expect([...groups].sort()).toEqual(
      ["attn_in", "attn_out", "clip", "mlp_down", "mlp_in", "round", "v_head"].sort(),
    );
    expect(groups[groups.length - 1]).toBe("round");
    for (const { group, parameter, change } of document.moved[7]) {
      expect(parameter.startsWith(`${group}.`)).toBe(true);
      expect(change).toBeGreaterThan(0);
    }
    // Offsets are bounded by half a step, so their root mean square is too.
    expect(document.moved[7][groups.length - 1].change).toBeLessThanOrEqual(0.5);
    expect(stderr).toMatch(/^estimate: about .* of memory, .* of disk$/m);
    expect(stderr).toMatch(/^block 7: error .* rounded to nearest, .* calibrated$/m);
  });

  it("stops on Ctrl-C, resumes, and ends in the bytes of a run that was not stopped", async () => {
    const stopped = directory.file("stopped");
    const whole = await wholeRun();
    expect(whole.stdout).toMatch(/^ *7( +\d\S*){3} +\w+ \d+%, \w+ \d+%, round 0\.\d\d steps$/m);
    expect(whole.stdout).toMatch(
      /^calibrated in .+ at \d+ GFLOP\/s \(two operations per multiply-add\), peak memory \d.* [MG]B$/m,
    );

    let sent = false;
    const interrupted = await planish(run(stopped), {
      onStderr: (child, text) => {
        if (!sent && text.includes("block 2:")) sent = child.kill("SIGINT");
      },
    });
    expect(interrupted.code).toBe(130);
    expect(interrupted.stdout).toBe("");
    expect(interrupted.stderr).toContain("stopping after the current step");
    expect(existsSync(stopped)).toBe(false);

    const again = await planish(run(stopped, "--resume"));
    expect(again.code).toBe(0);
    expect(again.stderr).toMatch(/^resuming: [3-7] of 8 blocks are finished$/m);
    // Its seconds are not those of the whole work, so there is no rate.
    expect(again.stdout).toMatch(/^calibrated in [^,/]+, peak memory [^,]+$/m);
    expect(again.stderr).not.toContain("block 0:");
    expect(fileHashes(stopped)).toEqual(whole.hashes);
  });

  it("survives kill -9", async () => {
    const killed = directory.file("killed");
    let sent = false;
    const first = await planish(run(killed), {
      onStderr: (child, text) => {
        if (!sent && text.includes("block 3:")) sent = child.kill("SIGKILL");
      },
    });
    expect({ sent, code: first.code }).toEqual({ sent: true, code: null });
    expect(existsSync(killed)).toBe(false);
    expect((await planish(run(killed, "--resume"))).code).toBe(0);
    expect(fileHashes(killed)).toEqual((await wholeRun()).hashes);
  });

  it("calibrates blocks side by side, to the bytes of one process with a worker's threads", async () => {
    const together = directory.file("together");
    const { code, stderr } = await planish(run(together, "--workers", "2", "--threads", "2"));
    expect(code).toBe(0);
    for (let layer = 0; layer < 8; layer++) expect(stderr).toContain(`block ${layer}: error`);
    expect(fileHashes(together)).toEqual((await wholeRun()).hashes);
  });

  it("stops its workers on Ctrl-C and resumes", async () => {
    const stopped = directory.file("together-stopped");
    const together = run(stopped, "--workers", "2", "--threads", "2");
    let sent = false;
    const first = await planish(together, {
      onStderr: (child, text) => {
        if (!sent && /block \d:/.test(text)) sent = child.kill("SIGINT");
      },
    });
    expect({ sent, code: first.code }).toEqual({ sent: true, code: 130 });
    expect((await planish([...together, "--resume"])).code).toBe(0);
    expect(fileHashes(stopped)).toEqual((await wholeRun()).hashes);
  });
});

describe("planish quantize refuses", () => {
  const refused = async (
    args: readonly string[],
  ): Promise<{ code: number | null; line: string }> => {
    const out = directory.file("refused");
    const { code, stdout, stderr } = await planish(["quantize", MODEL, "--out", out, ...args]);
    expect(stdout).toBe("");
    expect(existsSync(out)).toBe(false);
    const lines = stderr.trimEnd().split("\n");
    return { code, line: lines[lines.length - 1] };
  };

  it("a missing --out", async () => {
    const { code, stderr } = await planish(["quantize", MODEL]);
    expect(code).toBe(2);
    expect(stderr).toBe(
      "planish: required option '--out <dir>' not specified; see `planish quantize --help`\n",
    );
  });

  it("an output directory that exists", async () => {
    const out = directory.file("taken");
    mkdirSync(out);
    const { code, stderr } = await planish(["quantize", MODEL, "--out", out, "--method", "rtn"]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^planish: output directory .*taken exists already; [^\n]+\n$/);
  });

  it.each([
    [["--scheme", "w5a4kv4"], /5-bit weights; legal widths are 2, 3, 4, 6, 8, 16/],
    [["--method", "magic"], /'magic' is invalid\. Allowed choices are .*flatquant.*rtn/],
    [["--preset", "slow"], /"slow"; accepted: .*paper.*fast.*best/],
    [["--samples", "0"], /'0' is invalid\. Give a whole number from 1 to 1,000,000/],
    [["--method", "rtn", "--epochs", "3"], /recipe key "epochs" is unknown to method "rtn"/],
  ])("%j as bad usage", async (args, message) => {
    const { code, line } = await refused(args);
    expect(line).toMatch(message);
    expect(line).toMatch(/^planish: .*; see `planish quantize --help`$/);
    expect(code).toBe(2);
  });

  it("recipes with unknown keys, and files that are none", async () => {
    const recipe = directory.file("recipe.json");
    writeFileSync(recipe, JSON.stringify({ epocs: 3 }));
    const unknown = await refused(["--recipe", recipe]);
    expect(unknown.code).toBe(2);
    expect(unknown.line).toMatch(/"epocs" is unknown to method "flatquant"; accepted: .*epochs/);
    writeFileSync(recipe, '{"__proto__": {"epochs": 1}}');
    expect((await refused(["--recipe", recipe])).line).toContain('"__proto__" is unknown');
    writeFileSync(recipe, "[1]");
    expect((await refused(["--recipe", recipe])).line).toContain("holds no JSON object");
    writeFileSync(recipe, "{");
    expect((await refused(["--recipe", recipe])).line).toContain("is not valid JSON");
  });

  it("windows that are longer than the model's positions", async () => {
    const long = await refused(["--seq-len", "1025"]);
    expect(long.code).toBe(1);
    expect(long.line).toMatch(/windows of 1025 tokens are longer than the model's 1024 positions/);
  });

  it("calibration text that is too short, empty or missing", async () => {
    const text = directory.file("short.txt");
    writeFileSync(text, "Too short to learn from.\n");
    const short = await refused(["--calibration", text]);
    expect(short).toMatchObject({ code: 1 });
    expect(short.line).toMatch(/calibration text is too short: \d+ tokens/);
    const remote = await refused(["--calibration", "hf:org/name/path"]);
    expect(remote).toMatchObject({ code: 2 });
    expect(remote.line).toMatch(/"hf:org\/name\/path" .* accepted: .*wikipedia .*or the path of a/);
    writeFileSync(text, "");
    expect((await refused(["--calibration", text])).code).toBe(1);
    expect((await refused(["--calibration", directory.file("none.txt")])).line).toContain(
      "none.txt",
    );
  });
});
