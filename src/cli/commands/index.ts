/** Every command, in the order of the help page. Adding one: a file beside this one, and a line here. */

import type { Register } from "../program.js";
import { register as bench } from "./bench.js";
import { register as compare } from "./compare.js";
import { register as chat } from "./chat.js";
import { register as demo } from "./demo.js";
import { register as evaluate } from "./eval.js";
import { register as generate } from "./generate.js";
import { register as inspect } from "./inspect.js";
import { register as pull } from "./pull.js";
import { register as quantize } from "./quantize.js";
import { register as report } from "./report.js";
import { register as serve } from "./serve.js";
import { register as sweep } from "./sweep.js";

export const commands: readonly Register[] = [
  pull,
  quantize,
  evaluate,
  compare,
  sweep,
  report,
  generate,
  chat,
  serve,
  inspect,
  bench,
  demo,
];
