import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/train/backend.js";
import { openSafetensors } from "../../src/checkpoint/safetensors.js";
import { loadTokenizer } from "../../src/checkpoint/tokenizer.js";
import { packageRoot } from "../../src/common/package.js";
import { generate } from "../../src/engine/generate.js";
import { loadModel } from "../../src/quantize/artifact/load.js";

const backend = createReferenceBackend({ realType: "f32" });
const loaded = loadModel(backend, join(packageRoot, "models/tiny-llama"));
const tokenizer = loadTokenizer(loaded.checkpoint);
const { model } = loaded;
afterAll(() => {
  loaded[Symbol.dispose]();
  backend[Symbol.dispose]();
});

describe("generate", () => {
  it("continues greedily as Hugging Face transformers does", async () => {
    const { store } = openSafetensors(join(packageRoot, "test/golden/tiny-logits.safetensors"));
    const prompt = Array.from(store.read("input_ids"));
    const whole = Array.from(store.read("tiny-llama.greedy"));
    const text = tokenizer.decode(prompt, { skipSpecialTokens: false });
    expect(tokenizer.encode(text)).toEqual(prompt);
    const pieces: string[] = [];
    const result = await generate(model, tokenizer, {
      prompt: text,
      maxTokens: whole.length - prompt.length,
      onText: (piece) => pieces.push(piece),
    });
    expect(result.tokens).toEqual(whole.slice(prompt.length));
    expect(result.finishReason).toBe("length");
    expect(result.promptTokens).toBe(prompt.length);
    expect(text + result.text).toBe(tokenizer.decode(whole));
    expect(pieces.join("")).toBe(result.text);
    expect(pieces.length).toBeGreaterThan(10);
  });

  it("repeats itself for a seed, and differs for another", async () => {
    const run = async (seed: number): Promise<readonly number[]> => {
      const options = { prompt: "The ship", maxTokens: 12, temperature: 1, seed };
      return (await generate(model, tokenizer, options)).tokens;
    };
    const first = await run(1);
    expect(await run(1)).toEqual(first);
    expect(await run(2)).not.toEqual(first);
  });

  it("ends where the model ends its text", async () => {
    const first = (await generate(model, tokenizer, { prompt: "The ship", maxTokens: 3 })).tokens;
    const ending = { ...tokenizer, eosTokenIds: [first[2]] };
    const result = await generate(model, ending, { prompt: "The ship", maxTokens: 9 });
    expect(result.finishReason).toBe("stop");
    expect(result.tokens).toEqual(first.slice(0, 2));
  });

  it("ends at the model's last position, and refuses prompts that fill it", async () => {
    // The same model, made for fewer positions.
    const config = { ...model.config, maxPositions: 8 };
    const short = Object.create(model, { config: { value: config } }) as typeof model;
    const result = await generate(short, tokenizer, { prompt: "The ship was", maxTokens: 100 });
    expect(result.finishReason).toBe("context");
    expect(result.promptTokens).toBe(3);
    // The last token's position is never computed: nothing follows it.
    expect(result.tokens).toHaveLength(8 - 3 + 1);
    await expect(generate(short, tokenizer, { prompt: "The ship was ".repeat(4) })).rejects.toThrow(
      /prompt has \d+ tokens, and the model's context is 8; shorten it/,
    );
  });

  it("returns what there is when it is interrupted", async () => {
    const controller = new AbortController();
    let pieces = 0;
    const result = await generate(model, tokenizer, {
      prompt: "The ship",
      maxTokens: 100,
      signal: controller.signal,
      onText: () => {
        pieces += 1;
        if (pieces === 3) controller.abort();
      },
    });
    expect(result.finishReason).toBe("interrupted");
    expect(pieces).toBe(3);
    expect(result.tokens.length).toBeLessThan(10);
  });

  it("refuses an empty prompt", async () => {
    await expect(generate(model, tokenizer, { prompt: "" })).rejects.toThrow("no tokens");
  });
});
