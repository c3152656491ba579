/** What `/metrics` shows, in Prometheus' text form. */
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Engine } from "../engine/engine.js";
import type { EngineStats } from "../engine/protocol.js";

/** Seconds; from a cached prompt to a long one that waits its turn. */
const WAIT_BUCKETS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100];

const VLLM = "vllm:";

export class Metrics {
  private readonly registry = new Registry();
  private readonly requests: Counter<"route" | "status">;
  private readonly duration: Histogram<"route">;
  private readonly firstToken: Histogram;
  private readonly open: Gauge;

  constructor(engine: Engine) {
    const registers = [this.registry];
    collectDefaultMetrics({ register: this.registry });
    this.requests = new Counter({
      name: "planish_http_requests_total",
      help: "HTTP requests by route and status",
      labelNames: ["route", "status"],
      registers,
    });
    this.duration = new Histogram({
      name: "planish_http_request_seconds",
      help: "Time until a request's answer was complete",
      labelNames: ["route"],
      buckets: WAIT_BUCKETS,
      registers,
    });
    this.firstToken = new Histogram({
      name: "planish_time_to_first_token_seconds",
      help: "Time from a request's arrival to its first token",
      buckets: WAIT_BUCKETS,
      registers,
    });
    this.open = new Gauge({
      name: "planish_generations_open",
      help: "Generations whose answers are not complete",
      registers,
    });
    const counter = (name: string, help: string, value: (stats: EngineStats) => number): void => {
      new Counter({
        name: `planish_${name}_total`,
        help,
        registers,
        collect() {
          this.reset();
          this.inc(value(engine.stats));
        },
      });
    };
    const gauge = (
      name: string,
      help: string,
      value: (stats: EngineStats) => number,
      prefix = "planish_",
    ): void => {
      new Gauge({
        name: prefix + name,
        help,
        registers,
        collect() {
          this.set(value(engine.stats));
        },
      });
    };
    counter("prompt_tokens", "Tokens of accepted prompts", (s) => s.promptTokens);
    counter("prompt_tokens_cached", "Of them, found in the prefix cache", (s) => s.cachedTokens);
    counter("generated_tokens", "Tokens of finished generations", (s) => s.generatedTokens);
    counter("steps", "Steps of the engine", (s) => s.steps);
    counter("preemptions", "Sequences that had to give their pages back", (s) => s.preemptions);
    gauge("sequences_running", "Sequences that take part in steps", (s) => s.running);
    gauge("sequences_waiting", "Sequences that wait for a place", (s) => s.waiting);
    gauge("cache_pages", "Pages of the KV cache", (s) => s.pagesTotal);
    gauge("cache_pages_used", "Pages that sequences hold", (s) => s.pagesUsed);
    gauge("cache_pages_reusable", "Pages kept for prompts to come", (s) => s.pagesCached);
    // What gateways choose a server by, under the names that they look for unless they are told others (docs/serve.md).
    gauge("num_requests_running", "Sequences that take part in steps", (s) => s.running, VLLM);
    gauge("num_requests_waiting", "Sequences that wait for a place", (s) => s.waiting, VLLM);
    gauge(
      "kv_cache_usage_perc",
      "Share of the KV cache's pages that sequences hold, 0 to 1",
      (s) => s.pagesUsed / s.pagesTotal,
      VLLM,
    );
  }

  get contentType(): string {
    return this.registry.contentType;
  }

  text(): Promise<string> {
    return this.registry.metrics();
  }

  answered(route: string, status: number, seconds: number): void {
    this.requests.inc({ route, status });
    this.duration.observe({ route }, seconds);
  }

  gotFirstToken(seconds: number): void {
    this.firstToken.observe(seconds);
  }

  generations(change: 1 | -1): void {
    this.open.inc(change);
  }

  dispose(): void {
    this.registry.clear();
  }
}
