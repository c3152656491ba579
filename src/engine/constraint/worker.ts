/**
 * A thread that holds texts to their forms (pool.ts starts it): reads forms, makes grammars ready, and works out the
 * tokens that may come next while the model computes. Forms are strangers' work, so it may be ended at any time.
 */
import { parentPort, workerData, type MessagePort } from "node:worker_threads";
import { openCheckpoint } from "../../checkpoint/open.js";
import { loadTokenizer } from "../../checkpoint/tokenizer.js";
import { oneLine } from "../../common/bounds.js";
import { PlanishError } from "../../common/errors.js";
import { byteCharacter } from "../token-texts.js";
import { grammarOf } from "./grammar.js";
import {
  loadXGrammar,
  type Complaints,
  type XCompiler,
  type XForm,
  type XGrammar,
  type XMatcher,
} from "./library.js";
import {
  Activity,
  Doing,
  GuideState,
  type FromGuideWorker,
  type GuideWorkerInput,
  type ToGuideWorker,
} from "./protocol.js";
import { vocabularyOf, type Vocabulary } from "./vocabulary.js";
import { specialToken, spellBytes, type WrittenGrammar } from "./write.js";

/** What is needed to match tokens, loaded for the first grammar. */
interface Matching {
  readonly library: XGrammar;
  readonly complaints: Complaints;
  /** Makes grammars ready for tokens as a grammar spells them. */
  readonly compiler: (grammar: Spelling) => Promise<XCompiler>;
  readonly tokens: number;
  /** Words of a mask with the bits of tokens that end a text. */
  readonly ends: ReadonlyMap<number, number>;
}

type Spelling = Pick<WrittenGrammar, "alphabet" | "specials">;

interface OwnGuide {
  readonly matcher: XMatcher;
  readonly state: Int32Array;
  version: number;
}

class GuideThread {
  private readonly activity: Int32Array;
  private readonly forms = new Map<number, XForm>();
  private readonly guides = new Map<number, OwnGuide>();
  private matching: Matching | undefined;
  private last = Promise.resolve();

  constructor(
    private readonly port: MessagePort,
    private readonly input: GuideWorkerInput,
  ) {
    this.activity = new Int32Array(input.activity);
    // One after the other: the library's calls are promises, and another message must not come in between.
    port.on("message", (message: ToGuideWorker) => {
      this.last = this.last.then(() => this.receive(message));
      this.last.catch((error: unknown) => {
        throw error;
      });
    });
  }

  private send(message: FromGuideWorker): void {
    this.port.postMessage(message);
  }

  private begin(doing: number, subject: number): void {
    Atomics.store(this.activity, Activity.subject, subject);
    Atomics.store(this.activity, Activity.doing, doing);
    Atomics.add(this.activity, Activity.turn, 1);
  }

  private async receive(message: ToGuideWorker): Promise<void> {
    switch (message.type) {
      case "read":
        this.begin(Doing.job, message.job);
        await this.answer(message.job, () => {
          const grammar = grammarOf(message.constraint);
          this.send({ type: "grammar", job: message.job, grammar });
        });
        break;
      case "compile":
        this.begin(Doing.job, message.job);
        await this.answer(message.job, () => this.compile(message));
        break;
      case "guide":
        this.begin(Doing.guide, message.guide);
        await this.guide(message);
        break;
      case "accept":
        this.begin(Doing.guide, message.guide);
        await this.accept(message.guide, message.token);
        break;
      case "drop":
        this.guides.get(message.guide)?.matcher.dispose();
        this.guides.delete(message.guide);
        break;
      case "forget":
        this.forms.get(message.form)?.dispose();
        this.forms.delete(message.form);
        break;
    }
    Atomics.store(this.activity, Activity.doing, Doing.nothing);
  }

  private async answer(job: number, work: () => void | Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof PlanishError)) throw error;
      this.send({ type: "refused", job, message: error.message });
    }
  }

  private async compile({
    job,
    form,
    grammar,
  }: ToGuideWorker & { type: "compile" }): Promise<void> {
    const { compiler, complaints, tokens } = (this.matching ??= this.load());
    try {
      const own = await compiler(grammar);
      this.forms.set(form, await own.compileGrammar(grammar.ebnf));
    } catch (error) {
      // Whoever hears of it ends this thread: the library cannot be used after it has given up.
      const said = complaints.take() || (error as Error).message;
      throw new PlanishError(oneLine(said, 200), { cause: error });
    }
    this.send({ type: "compiled", job, tokens });
  }

  private async guide({
    guide,
    form,
    state,
    tokens,
  }: ToGuideWorker & { type: "guide" }): Promise<void> {
    const compiled = this.forms.get(form);
    if (!compiled) throw new Error(`form ${form} is not known`);
    const { library } = (this.matching ??= this.load());
    const matcher = await library.GrammarMatcher.createGrammarMatcher(compiled);
    for (const token of tokens) matcher.acceptToken(token);
    const own = { matcher, state: new Int32Array(state), version: tokens.length };
    this.guides.set(guide, own);
    await this.publish(guide, own);
  }

  private async accept(guide: number, token: number): Promise<void> {
    const own = this.guides.get(guide);
    // It may have been dropped by then.
    if (!own) return;
    if (!own.matcher.acceptToken(token)) throw new Error(`token ${token} is not in the mask`);
    own.version += 1;
    await this.publish(guide, own);
  }

  /** Puts the next token's mask where the engine's thread sees it. */
  private async publish(guide: number, { matcher, state, version }: OwnGuide): Promise<void> {
    const { ends } = (this.matching ??= this.load());
    const mask = matcher.isTerminated() ? undefined : await matcher.getNextTokenBitmask();
    let complete = true;
    if (mask) {
      state.set(mask, GuideState.mask);
      for (let word = 0; word < mask.length && complete; word++)
        if (mask[word] !== 0) complete = (mask[word] & ~(ends.get(word) ?? 0)) === 0;
    }
    Atomics.store(state, GuideState.complete, complete ? 1 : 0);
    Atomics.store(state, GuideState.version, version + 1);
    if (Atomics.exchange(state, GuideState.awaited, 0) === 1) this.send({ type: "mask", guide });
  }

  private load(): Matching {
    const { library, complaints } = loadXGrammar(this.input.memory);
    const { bytes, ends } = this.vocabulary();
    const words = new Map<number, number>();
    for (const end of ends) words.set(end >> 5, (words.get(end >> 5) ?? 0) | (1 << (end & 31)));
    const compilers = new Map<string, Promise<XCompiler>>();
    const compiler = ({ alphabet, specials = [] }: Spelling): Promise<XCompiler> => {
      const key = `${alphabet} ${specials.join()}`;
      let found = compilers.get(key);
      if (!found) {
        const named = new Set(specials);
        const spelled = bytes.map((own, token) => (named.has(token) ? specialToken(token) : own));
        compilers.set(key, (found = makeCompiler(library, alphabet, spelled, ends)));
      }
      return found;
    };
    return { library, complaints, compiler, tokens: bytes.length, ends: words };
  }

  private vocabulary(): Vocabulary {
    const { tokens } = this.input;
    if ("vocabulary" in tokens) return tokens.vocabulary;
    using checkpoint = openCheckpoint(tokens.path);
    return vocabularyOf(loadTokenizer(checkpoint));
  }
}

async function makeCompiler(
  library: XGrammar,
  alphabet: Spelling["alphabet"],
  bytes: readonly string[],
  ends: readonly number[],
): Promise<XCompiler> {
  const info = await library.TokenizerInfo.createTokenizerInfo(
    bytes.map((own) =>
      Array.from(alphabet === "native" ? own : spellBytes(own), (byte) =>
        byteCharacter(byte.charCodeAt(0)),
      ).join(""),
    ),
    "byte_level",
    false,
    bytes.length,
    ends,
  );
  return library.GrammarCompiler.createGrammarCompiler(info, false);
}

if (parentPort) new GuideThread(parentPort, workerData as GuideWorkerInput);
