/**
 * Requests whose prompt is being written down, or whose form is being made ready, in processes and threads beside the
 * engine's. They count among those that wait.
 */
import { ConstraintError, type CompiledConstraint, type Form } from "./constraint/contract.js";
import type { ConstraintCompiler } from "./constraint/contract.js";
import type { Prompt, PromptWriter } from "./prompt.js";
import type { PromptPool } from "./prompt-pool.js";
import { EngineError } from "./request.js";

/** What the engine needs of a pool. */
export type Prompts = Pick<PromptPool, "write" | typeof Symbol.dispose>;

export interface PreparingParts {
  readonly writer: PromptWriter;
  /** Writes down the prompts that are not quick (default: all are written in this thread). */
  readonly prompts?: Prompts;
  /** Makes ready what texts are held to (default: no request may ask for that). */
  readonly constraints?: ConstraintCompiler;
  readonly contextTokens: number;
}

export interface Work {
  readonly prompt: Prompt;
  readonly form: Form | undefined;
  readonly client: string;
}

/** What comes of it; exactly one is called, unless the request leaves before. */
export interface WorkSink {
  done(prompt: readonly number[], form: CompiledConstraint | undefined): void;
  failed(error: unknown): void;
}

export class Preparing {
  private readonly under = new Map<number, { client: string; leaving: AbortController }>();

  constructor(private readonly parts: PreparingParts) {}

  get size(): number {
    return this.under.size;
  }

  get ids(): readonly number[] {
    return [...this.under.keys()];
  }

  /** Whether a request can go on at once, by `write`. */
  isQuick({ prompt, form }: Work): boolean {
    const { prompts, writer } = this.parts;
    return form === undefined && (prompts === undefined || writer.isQuick(prompt));
  }

  /** @throws EngineError as the writer. */
  write(prompt: Prompt): readonly number[] {
    return this.parts.writer.write(prompt, this.parts.contextTokens);
  }

  /** Has done elsewhere what takes long. */
  begin(id: number, { prompt, form, client }: Work, sink: WorkSink): void {
    const { prompts, writer, contextTokens } = this.parts;
    const leaving = new AbortController();
    const { signal } = leaving;
    this.under.set(id, { client, leaving });
    const compiling = this.compile(form, client, signal);
    // Told with the prompt's, unless that fails first.
    compiling.catch(() => undefined);
    const writing =
      prompts === undefined || writer.isQuick(prompt)
        ? (async () => Promise.resolve(this.write(prompt)))()
        : prompts.write(prompt, { client, contextTokens }, signal);
    Promise.all([writing, compiling])
      .then(([tokens, compiled]) => {
        if (this.under.delete(id)) sink.done(tokens, compiled);
      })
      .catch((error: unknown) => {
        if (signal.aborted) return;
        this.leave(id);
        sink.failed(error);
      })
      .finally(() => {
        // Its texts keep the form.
        compiling.then((compiled) => compiled?.[Symbol.dispose]()).catch(() => undefined);
      });
  }

  leave(id: number): void {
    this.under.get(id)?.leaving.abort();
    this.under.delete(id);
  }

  /** Of a full line, whoever has most here gives up the latest to one who has fewer: its id, if there is one. */
  whoGivesWay(client: string): number | undefined {
    const latest = new Map<string, { count: number; id: number }>();
    for (const [id, each] of this.under)
      latest.set(each.client, { count: (latest.get(each.client)?.count ?? 0) + 1, id });
    const own = latest.get(client)?.count ?? 0;
    const [most] = [...latest.values()].sort((a, b) => b.count - a.count);
    return most === undefined || most.count <= own + 1 ? undefined : most.id;
  }

  private async compile(
    form: Form | undefined,
    client: string,
    signal: AbortSignal,
  ): Promise<CompiledConstraint | undefined> {
    if (form === undefined) return undefined;
    const { constraints } = this.parts;
    if (!constraints) throw new EngineError("this engine holds no text to a form", "failed");
    try {
      return await constraints.compile(form, client, signal);
    } catch (error) {
      if (form.type === "calls" && error instanceof ConstraintError)
        throw new EngineError(`tools: ${error.message}`, "invalid", { cause: error });
      throw error;
    }
  }
}
