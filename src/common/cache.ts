/** Where Planish keeps what it fetched or built for this user. */
import { homedir } from "node:os";
import { join } from "node:path";

/** `$XDG_CACHE_HOME/planish`, else ~/.cache/planish; on Windows %LOCALAPPDATA%\planish. */
export function planishCacheDir(environment: NodeJS.ProcessEnv = process.env): string {
  const { XDG_CACHE_HOME: named, LOCALAPPDATA: local } = environment;
  if (named) return join(named, "planish");
  if (process.platform === "win32" && local) return join(local, "planish");
  return join(homedir(), ".cache", "planish");
}
