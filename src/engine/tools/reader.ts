/**
 * Takes an answer apart, as it comes, into text and calls of functions. The answer is held to its syntax by the grammar
 * (constraint/calls.ts), so that nothing but the end of what was generated can be amiss.
 */
import { randomUUID } from "node:crypto";
import type { CallSyntax } from "./syntax.js";

/** What a token adds to a call: its first piece has id and name, those that follow more of the arguments' JSON. */
export interface CallPiece {
  /** The call's number within the answer. */
  readonly index: number;
  readonly id?: string;
  readonly name?: string;
  readonly arguments: string;
}

export interface Spoken {
  /** What is no call. */
  readonly text: string;
  readonly calls: readonly CallPiece[];
}

type State = "text" | "literal" | "name" | "arguments" | "after";

export class CallReader {
  private state: State = "text";
  /** Text has been seen that is no call, where calls stand at the start only. */
  private decided = false;
  /** What must come next, and how much of it has come. */
  private literal = "";
  private next: State = "name";
  private seen = 0;
  private index = -1;
  private name = "";
  private depth = 0;
  private inString = false;
  private escaped = false;

  /** @param startOnly calls can stand at the start only, whatever the syntax says */
  constructor(
    private readonly syntax: CallSyntax,
    private readonly startOnly = syntax.place === "start",
  ) {}

  /**
   * Takes what has become certain at once: of a mark that is spread over several pieces, all of them. Special tokens of
   * the syntax are written out.
   */
  push(pieces: readonly string[]): Spoken[] {
    const markAt = this.state === "text" ? this.find(pieces.join("")) : 0;
    let at = 0;
    return pieces.map((piece) => {
      const text = piece.slice(0, Math.max(0, markAt - at));
      const calls = this.read(piece.slice(text.length));
      at += piece.length;
      return { text, calls };
    });
  }

  /** Where calls begin in what has come; Infinity: not there. */
  private find(text: string): number {
    if (this.decided || text === "") return Infinity;
    const { mark, begin, open } = this.syntax;
    const at = this.startOnly ? (text.startsWith(mark) ? 0 : -1) : text.indexOf(mark);
    if (at < 0) {
      this.decided = this.startOnly;
      return Infinity;
    }
    this.expect(begin + open, "name");
    return at;
  }

  private expect(literal: string, next: State): void {
    this.literal = literal;
    this.seen = 0;
    this.next = next;
    this.state = literal === "" ? next : "literal";
    if (next === "name") this.name = "";
  }

  private read(text: string): CallPiece[] {
    const pieces: CallPiece[] = [];
    let json = "";
    const flush = (): void => {
      if (json !== "") pieces.push({ index: this.index, arguments: json });
      json = "";
    };
    for (const char of text) {
      switch (this.state) {
        case "text":
          break;
        case "literal":
          this.seen += char.length;
          if (this.seen >= this.literal.length) this.state = this.next;
          break;
        case "name":
          if (this.syntax.middle.startsWith(char)) {
            this.index += 1;
            const { index, name } = this;
            pieces.push({ index, id: callId(), name, arguments: "" });
            this.expect(this.syntax.middle.slice(1), "arguments");
          } else this.name += char;
          break;
        case "arguments":
          json += char;
          if (!this.isWhole(char)) break;
          flush();
          this.expect(this.syntax.close, "after");
          break;
        case "after":
          this.follow(char);
          break;
      }
    }
    flush();
    return pieces;
  }

  /** Between calls, or at the end: the character tells which. */
  private follow(char: string): void {
    const { between, open, end } = this.syntax;
    const another = between === undefined ? undefined : between + open;
    if (another?.startsWith(char)) this.expect(another.slice(1), "name");
    else if (end.startsWith(char)) this.expect(end.slice(1), "after");
  }

  /** Whether a character ends the arguments' object. */
  private isWhole(char: string): boolean {
    if (this.inString) {
      if (this.escaped) this.escaped = false;
      else if (char === "\\") this.escaped = true;
      else if (char === '"') this.inString = false;
    } else if (char === '"') this.inString = true;
    else if (char === "{" || char === "[") this.depth += 1;
    else if (char === "}" || char === "]") {
      this.depth -= 1;
      return this.depth === 0;
    }
    return false;
  }
}

function callId(): string {
  return `call_${randomUUID().replaceAll("-", "").slice(0, 24)}`;
}
