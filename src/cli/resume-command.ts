/** The command that goes on with stopped work: this process's own, with `--resume`, to be pasted into a shell. */

import { basename, relative } from "node:path";

/**
 * @param args What follows the program's name.
 * @param program The script that runs, as Node.js names it.
 */
export function resumeCommand(
  args: readonly string[] = process.argv.slice(2),
  program: string = process.argv[1],
  env: NodeJS.ProcessEnv = process.env,
): string {
  const end = args.includes("--") ? args.indexOf("--") : args.length;
  const flags = args.slice(0, end);
  const all = [...flags, ...(flags.includes("--resume") ? [] : ["--resume"]), ...args.slice(end)];
  return [...programName(program, env), ...all]
    .map((argument) => quoteForShell(argument))
    .join(" ");
}

/** How the program was started: installed, by npx, or as a script. */
function programName(program: string, env: NodeJS.ProcessEnv): string[] {
  if (!/^planish(\.cmd)?$/.test(basename(program)))
    return ["node", relative(process.cwd(), program)];
  return env["npm_command"] === "exec" ? ["npx", "planish"] : ["planish"];
}

/** One argument, as a POSIX shell (on Windows, cmd) reads it back. */
export function quoteForShell(argument: string, platform: string = process.platform): string {
  if (/^[\w@%+=:,./-]+$/.test(argument) && !(platform === "win32" && argument.includes("%")))
    return argument;
  if (platform === "win32") return `"${argument.replaceAll('"', '""')}"`;
  return `'${argument.replaceAll("'", "'\\''")}'`;
}
