/** The program as a whole: global flags, help, and what happens to command lines that do not parse. */

import { Command, CommanderError, Option } from "commander";
import { packageVersion } from "../common/package.js";
import { commandPath, oneLine, reportFailure } from "./action.js";
import { Reporter } from "./output.js";

/** Adds one command to the program. */
export type Register = (program: Command) => void;

/** A command by name, and how to get at what adds it. */
export interface CommandSource {
  readonly name: string;
  load(): Promise<Register>;
}

function buildProgram(registers: readonly Register[]): Command {
  const program = new Command("planish")
    .description(
      "Quantize large language models to 4 bits and run them, from TypeScript, without Python.",
    )
    .version(packageVersion(), "-V, --version", "print the version and exit")
    .helpOption("-h, --help", "print this help and exit")
    .addOption(new Option("--json", "print one JSON document on stdout; everything else on stderr"))
    .addOption(new Option("--quiet", "print results, warnings and errors only"))
    .addOption(
      new Option("--verbose", "print internals, and the stack of failures").conflicts("quiet"),
    )
    .configureHelp({ showGlobalOptions: true })
    // `run` prints every parse error itself, as one line.
    .configureOutput({ outputError: () => undefined })
    .exitOverride();
  for (const register of registers) register(program);
  return program;
}

/** Adds an "Examples" section to a command's help; every command has one. */
export function addExamples(command: Command, examples: readonly string[]): Command {
  return command.addHelpText(
    "after",
    `\nExamples:\n${examples.map((example) => `  $ ${example}`).join("\n")}`,
  );
}

/** Runs one command line (without node and script) and returns its exit code. */
export async function run(
  args: readonly string[],
  sources: readonly CommandSource[],
): Promise<number> {
  const registers = await Promise.all(neededSources(args, sources).map((source) => source.load()));
  const program = buildProgram(registers);
  try {
    await program.parseAsync(args, { from: "user" });
    return typeof process.exitCode === "number" ? process.exitCode : 0;
  } catch (error) {
    // Where the line did not parse, its flags are known only as words.
    const reporter = new Reporter({
      json: args.includes("--json"),
      verbose: args.includes("--verbose"),
    });
    const named = program.commands.find((command) => args.includes(command.name())) ?? program;
    return error instanceof CommanderError
      ? reportParseFailure(error, reporter, program, named)
      : reportFailure(error, reporter, false, named);
  }
}

/** The command that a line names; all of them where it names none, for the help page and for what was meant. */
function neededSources(
  args: readonly string[],
  sources: readonly CommandSource[],
): readonly CommandSource[] {
  const at = args.findIndex((arg) => !arg.startsWith("-"));
  const before = at < 0 ? args : args.slice(0, at);
  if (before.some((flag) => flag === "-V" || flag === "--version")) return [];
  // Global flags take no values, so the first word is the command, unless help about the program comes before it.
  const named = before.some((flag) => flag === "-h" || flag === "--help")
    ? undefined
    : sources.find(({ name }) => name === args[at]);
  return named ? [named] : sources;
}

function reportParseFailure(
  error: CommanderError,
  reporter: Reporter,
  program: Command,
  named: Command,
): number {
  if (error.code === "commander.helpDisplayed" || error.code === "commander.version") return 0;
  // Of `planish help`; or help that nobody asked for, on stderr, because the command is missing.
  if (error.code === "commander.help") return error.exitCode === 0 ? 0 : 2;
  let message = oneLine(error.message.replace(/^error: /, "")).replace(/\.$/, "");
  if (error.code === "commander.unknownCommand" && !message.includes("Did you mean")) {
    message += ` (commands: ${program.commands.map((command) => command.name()).join(", ")})`;
  }
  message += `; see \`${commandPath(named)} --help\``;
  reporter.error(message);
  if (reporter.json) reporter.result({ error: { message, exitCode: 2 } }, () => "");
  return 2;
}
