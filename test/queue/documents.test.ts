/** What travels over a queue is refused unless it is exactly what was meant; addresses, names and the choice of states. */
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/checkpoint/open.js";
import { packageRoot } from "../../src/common/package.js";
import { parseSource } from "../../src/models/source.js";
import { readBlock, type HostBlock } from "../../src/models/weights.js";
import { blockProgram } from "../../src/models/architectures/index.js";
import { readBlockFile, writeBlock } from "../../src/quantize/queue/block-files.js";
import {
  blockJobSchema,
  deviceClass,
  jobIdOf,
  opened,
  queueName,
  runIdOf,
  sealed,
  validated,
} from "../../src/quantize/queue/documents.js";
import { stride } from "../../src/quantize/queue/producer.js";
import { queueAddress } from "../../src/quantize/queue/redis.js";
import { deviceUnit, remoteBlocks } from "../../src/cli/commands/queue-flags.js";
import { z } from "zod";

const record = { bytes: 10, sha256: "0".repeat(64) };
const job = {
  run: "0123456789abcdef",
  layer: 3,
  description: record,
  states: record,
  from: 2,
  weights: [record, record],
};

describe("a job", () => {
  it("holds hashes and small numbers, and nothing else", () => {
    expect(validated(blockJobSchema, job, "job")).toEqual(job);
  });

  it.each([
    ["a path for a hash", { states: { bytes: 10, sha256: "../../etc/passwd" } }],
    ["a run that is a path", { run: "../../../../x" }],
    ["a further member", { device: "cuda" }],
    ["no weights", { weights: [] }],
    ["a layer beyond all models", { layer: 1e6 }],
    ["half a layer", { layer: 0.5 }],
    ["bytes that are none", { description: { ...record, bytes: -1 } }],
    ["a prototype", JSON.parse('{"__proto__":{"x":1},"y":1}') as object],
  ])("is refused with %s", (_, change) => {
    expect(() => validated(blockJobSchema, { ...job, ...change }, "job 1")).toThrow(/^job 1: /);
  });

  it("is refused whatever else stands in the queue", () => {
    fc.assert(
      fc.property(fc.anything(), (value) => {
        expect(() => validated(blockJobSchema, value, "job")).toThrow(/^job: /);
      }),
    );
  });
});

it("a record whose bits flipped is told from one that was written", () => {
  const text = sealed({ a: 12, b: "text" });
  const schema = z.strictObject({ a: z.number(), b: z.string() });
  expect(opened(schema, text, "record")).toEqual({ a: 12, b: "text" });
  for (let at = 0; at < text.length; at++) {
    const changed = Buffer.from(text);
    changed[at] ^= 1;
    expect(() => opened(schema, changed.toString("latin1"), "record")).toThrow();
  }
});

describe("names", () => {
  const cpu = { device: "cpu", level: "avx512", threads: 2 };

  it("of queues differ with all that decides on bits, with the label, and hold no colon", () => {
    const names = [
      queueName(cpu, undefined),
      queueName({ ...cpu, threads: 4 }, undefined),
      queueName({ ...cpu, level: "avx2" }, undefined),
      queueName({ device: "cuda", level: "NVIDIA H200: 141 GB" }, undefined),
      queueName(cpu, "night"),
      queueName("any", undefined),
      queueName("any", "night"),
    ];
    expect(new Set(names).size).toBe(names.length);
    expect(names.filter((name) => !/^[\w.-]{1,100}$/.test(name))).toEqual([]);
    expect(deviceClass(cpu)).toBe("cpu, avx512, 2 threads");
  });

  it("of runs follow from what makes two runs the same, and jobs from run and block", () => {
    const settings = {
      planishVersion: "1.0.0",
      method: "flatquant",
      scheme: "w4a4kv4",
      recipe: { epochs: 1 },
      seed: 0,
      source: { name: "m", format: "safetensors", hash: "h" },
      machine: cpu,
    };
    const id = runIdOf(settings, false);
    expect(id).toMatch(/^[0-9a-f]{16}$/);
    expect(runIdOf({ ...settings }, false)).toBe(id);
    expect(runIdOf({ ...settings, recipe: { epochs: 2 } }, false)).not.toBe(id);
    expect(runIdOf(settings, true)).not.toBe(id);
    expect(jobIdOf(id, 7)).toBe(`${id}-007`);
  });
});

describe("addresses of queues", () => {
  it("are read with passwords from the environment, which messages leave out", () => {
    const { options, shown } = queueAddress("rediss://head:7000/2", {
      PLANISH_QUEUE_USER: "u",
      PLANISH_QUEUE_PASSWORD: "secret",
    });
    expect(options).toMatchObject({ host: "head", port: 7000, db: 2, username: "u" });
    expect(options.password).toBe("secret");
    expect(options.tls).toEqual({ servername: "head" });
    expect(shown).toBe("rediss://head:7000/2");
    // No server name goes with an address: RFC 6066.
    expect(queueAddress("rediss://[::1]", {}).options.tls).toEqual({});
    const whole = queueAddress(undefined, { PLANISH_QUEUE: "redis://u:p%40ss@[::1]" });
    expect(whole.options).toMatchObject({ host: "::1", port: 6379, password: "p@ss" });
    expect(whole.shown).toBe("redis://[::1]:6379");
  });

  it.each(["head:6379", "http://head", "redis://", "redis://head/x", "", "redis://head/12345"])(
    "%s is refused",
    (text) => {
      expect(() => queueAddress(text, {})).toThrow(/no (address of a )?queue/);
    },
  );

  it("with a password among the arguments are refused without repeating it", () => {
    const refuse = () => queueAddress("redis://u:hunter2@head", {});
    expect(refuse).toThrow(/PLANISH_QUEUE_PASSWORD/);
    expect(refuse).not.toThrow(/hunter2/);
  });
});

it("flags of a queue need one another", () => {
  const url = "redis://127.0.0.1:1";
  expect(remoteBlocks({})).toBeUndefined();
  expect(() => remoteBlocks({ store: "s" })).toThrow(/--store belongs to a run on a queue/);
  expect(() => remoteBlocks({ statesEvery: 2 })).toThrow(/--states-every belongs/);
  expect(() => remoteBlocks({ queue: url })).toThrow(/--queue needs --store/);
  expect(() => remoteBlocks({ queue: url, store: "s", workers: 2 })).toThrow(/--workers/);
  expect(deviceUnit("cuda:1")).toEqual({ device: "cuda", unit: 1 });
  expect(deviceUnit("cpu")).toEqual({ device: "cpu" });
  for (const text of ["cpu:1", "gpu", "cuda:", "cuda:100", "cuda:-1"])
    expect(() => deviceUnit(text)).toThrow(/the devices are/);
});

it("states are kept as rarely as keeping them is dear", () => {
  expect(stride(0.001, 1)).toBe(1);
  expect(stride(8, 1)).toBe(4);
  expect(stride(1000, 0)).toBe(8);
  // The choice is the least of the cost that it is derived from.
  const cost = (k: number, keep: number, compute: number) => keep / k + ((k - 1) / 2) * compute;
  fc.assert(
    fc.property(fc.double({ min: 0.5, max: 30, noNaN: true }), (keep) => {
      const k = stride(keep, 1);
      for (const other of [k - 1, k + 1].filter((each) => each >= 1 && each <= 8))
        // Rounding to a whole number may miss by the difference to the neighbour at the middle.
        expect(cost(k, keep, 1)).toBeLessThanOrEqual(cost(other, keep, 1) + 0.13);
    }),
  );
});

/** Everything in a block, numbers by their bytes. */
function digest(block: HostBlock): string {
  return JSON.stringify(block, (_key, value: unknown) =>
    value instanceof Float32Array
      ? createHash("sha256")
          .update(new Uint8Array(value.buffer, value.byteOffset, value.byteLength))
          .digest("hex")
      : value,
  );
}

describe("a block in a file", () => {
  const directory = mkdtempSync(join(tmpdir(), "planish-block-"));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  it.each(["tiny-llama", "tiny-opt"])("of %s comes back as it was", async (name) => {
    using source = openCheckpoint(join(packageRoot, "models", name));
    const { architecture, config } = parseSource(source);
    const block = readBlock(source, architecture, config, 1);
    const path = join(directory, `${name}.safetensors`);
    await writeBlock(path, block);
    expect(digest(readBlockFile(path, blockProgram(config, 1)))).toBe(digest(block));
  });

  it("keeps values that no 16-bit type holds, and is refused where it does not fit", async () => {
    using source = openCheckpoint(join(packageRoot, "models", "tiny-llama"));
    const { architecture, config } = parseSource(source);
    const block = readBlock(source, architecture, config, 0);
    const norms = Object.entries(block.norms);
    norms[0][1].gain.data[0] = Math.fround(1 / 3);
    norms[1][1].gain.data[0] = 1 + 2 ** -10;
    const path = join(directory, "third.safetensors");
    await writeBlock(path, block);
    const program = blockProgram(config, 0);
    expect(digest(readBlockFile(path, program))).toBe(digest(block));
    const [name] = Object.keys(program.linears);
    const wider = { ...program.linears[name], shape: [1, 2] as const };
    expect(() =>
      readBlockFile(path, { ...program, linears: { ...program.linears, [name]: wider } }),
    ).toThrow(/configuration implies \[1, 2\]/);
    expect(() =>
      readBlockFile(path, { ...program, kept: { router: { path: "r", shape: [1] } } }),
    ).toThrow(/"kept\/router" is missing/);
  });
});
