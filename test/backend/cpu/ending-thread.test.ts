/** A thread of Node.js that ends unloads what it loaded; the pool's threads are then still in the library. */
import { spawnSync } from "node:child_process";
import { expect, test } from "vitest";
import { nativeLibrary } from "../../../src/backend/cpu/library-path.js";
import { packageRoot } from "../../../src/common/package.js";

/** Threads that start a pool and end before its threads have begun, one after the other. */
const PROGRAM = `
const { Worker } = require("node:worker_threads");
const thread = 'require("koffi").load(process.argv[2]).func("int pl_set_threads(int)")(16)';
const again = (left) => {
  if (left > 0) new Worker(thread, { eval: true, argv: [process.argv[1]] }).on("exit", () => again(left - 1));
};
again(20);
`;

test("the program outlives threads that used the native kernels", () => {
  const { path = "" } = nativeLibrary() ?? {};
  const { status, signal, stderr } = spawnSync(process.execPath, ["-e", PROGRAM, path], {
    cwd: packageRoot,
    encoding: "utf8",
  });
  expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: "" });
});
