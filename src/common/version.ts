/**
 * The version that results record. A constant, not read from package.json, so that it is right in a bundle too; a test holds
 * it to package.json, and `npm run release -- --version X` changes both.
 */
export const VERSION = "0.1.0";
