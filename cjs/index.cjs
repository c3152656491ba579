"use strict";
// `require("planish")`: Node.js 20.19 and later load ES modules by require; earlier ones cannot, whatever is tried.
try {
  module.exports = require("../dist/index.js");
} catch (error) {
  if (error.code !== "ERR_REQUIRE_ESM") throw error;
  throw new Error(
    `planish: require() needs Node.js 20.19 or later (this is ${process.version}); write: const planish = await import("planish")`,
    { cause: error },
  );
}
