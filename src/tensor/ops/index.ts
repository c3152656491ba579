/** All differentiable operations. */
export * from "./arrange.js";
export * from "./attention.js";
export * from "./columns.js";
export * from "./elementwise.js";
export * from "./flatten.js";
export * from "./gather.js";
export * from "./kronecker.js";
export * from "./loss.js";
export * from "./matmul.js";
export * from "./norm.js";
export * from "./orthogonal.js";
export * from "./quantize.js";
export * from "./recurrent.js";
export * from "./rope.js";
export * from "./route.js";
