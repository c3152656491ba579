import { Engine, setPaths } from "planish/engine";

// Started by name, so they are entries of their own, beside this one.
setPaths({
  engineThread: new URL("./engine-thread.js", import.meta.url),
  promptProcess: new URL("./prompt-process.js", import.meta.url),
});

const engine = await Engine.load(process.argv[2]);
process.stdout.write("The ship was");
for await (const event of engine.generate({ prompt: "The ship was", maxTokens: 16, seed: 1 }))
  if (event.type === "token") process.stdout.write(event.text);
process.stdout.write("\n");
await engine.close();
