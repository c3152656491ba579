/** Every command, in the order of the help page. Adding one: a file beside this one, and a line here. */

import type { Register } from "../program.js";
import { register as inspect } from "./inspect.js";

export const commands: readonly Register[] = [inspect];
