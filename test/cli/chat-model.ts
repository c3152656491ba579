/** tiny-llama with a chat template: it is a base model and has none of its own. */

import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "./run-program.js";

const TEMPLATE =
  "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}" +
  '"{{ m.content }}" he asked.\n\n{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}';

/** Copies the model to `directory`, which must not exist, and returns it. */
export function chatModel(directory: string): string {
  cpSync(join(root, "models/tiny-llama"), directory, { recursive: true });
  const file = join(directory, "tokenizer_config.json");
  const config = JSON.parse(readFileSync(file, "utf8")) as object;
  writeFileSync(file, JSON.stringify({ ...config, chat_template: TEMPLATE }));
  return directory;
}
