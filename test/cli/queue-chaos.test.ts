/** Runs on a queue to which things happen; `npm run test:queue` does many. */
import { join } from "node:path";
import { expect, it } from "vitest";
import { writeFirstBlocks } from "../models/first-blocks.js";
import { chaos } from "../queue/chaos.js";
import { noRedis } from "../queue/redis-server.js";
import { temporaryDirectory } from "./artifacts.js";
import { root } from "./run-program.js";

it.skipIf(noRedis !== undefined)(
  `killed workers, a Redis that dies, flipped bits and doubled jobs change no byte${noRedis ? ` (${noRedis})` : ""}`,
  async () => {
    using directory = temporaryDirectory();
    const model = directory.file("model");
    await writeFirstBlocks(join(root, "models/tiny-llama"), model, 3);
    const place = directory.file("store");
    const { happened } = await chaos({
      directory: directory.path,
      model,
      store: { address: place, env: {}, files: join(place, "blobs") },
      faults: ["worker", "redis", "blob", "twice"],
      each: 4,
      runs: 1,
      seed: 11,
      away: 2000,
    });
    // That the run ended in the same bytes was seen to; which of the four came in time depends on how fast it was.
    expect(Object.keys(happened)).not.toEqual([]);
  },
);
