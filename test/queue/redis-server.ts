/** A Redis server of a test's own: Debian's `redis-server` or `valkey-server`, in a directory and on a port of its own. */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { createServer, type AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const PROGRAMS = [process.env.PLANISH_REDIS_SERVER, "redis-server", "valkey-server"];

const program = PROGRAMS.find(
  (name) => name !== undefined && spawnSync(name, ["--version"]).status === 0,
);

/** Why tests of queues do not run here; undefined where they do. */
export const noRedis =
  program === undefined
    ? "no Redis here (apt-get install redis-server, or set PLANISH_REDIS_SERVER)"
    : undefined;

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export class RedisServer {
  private child: ChildProcess | undefined;

  private constructor(
    readonly port: number,
    private readonly directory: string,
    private readonly flags: readonly string[],
  ) {}

  /** With an append-only file, so that a restart loses nothing. */
  static async start(directory: string, flags: readonly string[] = []): Promise<RedisServer> {
    const server = new RedisServer(await freePort(), directory, flags);
    await server.start();
    return server;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  async start(): Promise<void> {
    if (program === undefined) throw new Error(noRedis);
    const child = spawn(
      program,
      // Every command is on disk before it is answered.
      ["--port", String(this.port), "--dir", this.directory, "--save", ""].concat(
        ["--appendonly", "yes", "--appendfsync", "always"],
        this.flags,
      ),
      { stdio: ["ignore", "pipe", "ignore"] },
    );
    this.child = child;
    await new Promise<void>((resolve, reject) => {
      let said = "";
      child.stdout.setEncoding("utf8").on("data", (text: string) => {
        said += text;
        if (/ready to accept connections/i.test(said)) resolve();
      });
      child.once("exit", (code) => reject(new Error(`Redis ended with code ${code}: ${said}`)));
    });
  }

  /** Ends it as a power cut would. */
  async kill(): Promise<void> {
    const { child } = this;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  }

  async restart(downMilliseconds = 0): Promise<void> {
    await this.kill();
    await sleep(downMilliseconds);
    await this.start();
  }
}
