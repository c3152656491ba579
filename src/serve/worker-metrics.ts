/** What a worker of a queue shows to Prometheus, and whether it is well, over HTTP. */
import Fastify, { type FastifyInstance } from "fastify";
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
import { deviceClass } from "../quantize/queue/documents.js";
import type { WorkerEvent } from "../quantize/queue/worker.js";

/** Seconds: from a block of a tiny model to one of the largest. */
const BLOCK_BUCKETS = [0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000];

export class WorkerMetrics {
  private readonly registry = new Registry();
  private readonly blocks: Counter<"outcome">;
  private readonly seconds: Histogram;
  private readonly moving: Counter;
  private readonly bytes: Gauge<"direction">;
  private readonly busy: Gauge;
  private readonly connected: Gauge;
  private readonly device: Gauge<"device">;
  private isConnected = false;

  constructor() {
    const registers = [this.registry];
    collectDefaultMetrics({ register: this.registry });
    this.blocks = new Counter({
      name: "planish_worker_blocks_total",
      help: "Blocks by what came of them: done, failed, returned to the queue, or damaged data",
      labelNames: ["outcome"],
      registers,
    });
    this.seconds = new Histogram({
      name: "planish_worker_block_seconds",
      help: "Time from taking a block to having its result in the store",
      buckets: BLOCK_BUCKETS,
      registers,
    });
    this.moving = new Counter({
      name: "planish_worker_moving_seconds_total",
      help: "Of that time, fetching and keeping data",
      registers,
    });
    this.bytes = new Gauge({
      name: "planish_worker_store_bytes",
      help: "Bytes read from the store and written to it since the worker began",
      labelNames: ["direction"],
      registers,
    });
    this.busy = new Gauge({
      name: "planish_worker_busy",
      help: "1 while a block is at hand",
      registers,
    });
    this.connected = new Gauge({
      name: "planish_worker_queue_connected",
      help: "1 while the queue can be reached",
      registers,
    });
    this.device = new Gauge({
      name: "planish_worker_info",
      help: "What the worker computes on",
      labelNames: ["device"],
      registers,
    });
  }

  observe(event: WorkerEvent): void {
    switch (event.type) {
      case "ready":
        this.device.set({ device: deviceClass(event.machine) }, 1);
        break;
      case "connected":
        this.isConnected = event.connected;
        this.connected.set(event.connected ? 1 : 0);
        break;
      case "traffic":
        this.bytes.set({ direction: "read" }, event.traffic.read);
        this.bytes.set({ direction: "written" }, event.traffic.written);
        break;
      case "taken":
        this.busy.set(1);
        break;
      default:
        this.busy.set(0);
        this.blocks.inc({ outcome: event.type });
        this.seconds.observe(event.seconds);
        this.moving.inc(event.movingSeconds);
    }
  }

  text(): Promise<string> {
    return this.registry.metrics();
  }

  /** Serves `/metrics` and `/health` (503 while the queue cannot be reached) until it is closed. */
  async listen(port: number, host: string): Promise<FastifyInstance> {
    const app = Fastify({ forceCloseConnections: true });
    app.get("/metrics", async (_request, reply) =>
      reply.type(this.registry.contentType).send(await this.text()),
    );
    app.get("/health", (_request, reply) =>
      reply
        .code(this.isConnected ? 200 : 503)
        .send({ status: this.isConnected ? "ok" : "the queue cannot be reached" }),
    );
    await app.listen({ port, host });
    return app;
  }
}
