/** Zero-shot tasks: what they ask, and where their items come from. */
export * from "./definitions.js";
export * from "./read.js";
