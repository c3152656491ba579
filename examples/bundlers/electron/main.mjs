// Runs a model in Electron's main process (its engine has a thread of its own) and prints what it writes.
import { app } from "electron";
import { Engine } from "planish/engine";

await app.whenReady();
const engine = await Engine.load(process.env.MODEL);
process.stdout.write("The ship was");
for await (const event of engine.generate({ prompt: "The ship was", maxTokens: 16, seed: 1 }))
  if (event.type === "token") process.stdout.write(event.text);
process.stdout.write("\n");
await engine.close();
app.quit();
