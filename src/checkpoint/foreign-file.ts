/** Well-known things that lie where weights should be, told by their first bytes. */

/* eslint-disable no-control-regex -- signatures of binary formats hold such characters */
const KINDS: readonly (readonly [RegExp, string])[] = [
  [/^version /, "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"],
  [/^\s*<(!doc|html|\?xml|head|body)/i, "a web page, not the file itself; download it again"],
  [
    /^\s*\{\s*"(err|mess|stat|deta)/i,
    "a server's error in JSON, not the file itself; download it again",
  ],
  [
    /^PK\u0003\u0004/,
    "a zip archive or a PyTorch pickle (.pt, .bin); save the model as safetensors",
  ],
  [/^\u0080[\u0002-\u0005]/, "a Python pickle (.pt, .bin); save the model as safetensors"],
  [/^\u001f\u008b/, "compressed with gzip; unpack it first"],
  [/^GGUF/, "a GGUF file; give it an ending of .gguf"],
  [/^gg(ml|mf|jt|la)|^lmgg|^fmgg|^tjgg/, "an old GGML file; convert it to GGUF"],
];

/** What a file with these first bytes (8 or more) is, and what to do; undefined when it is none of the known things. */
export function foreignKind(start: Uint8Array): string | undefined {
  const text = Buffer.from(start).toString("latin1");
  return KINDS.find(([pattern]) => pattern.test(text))?.[1];
}
