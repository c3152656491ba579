/** Schemas of the kinds that the JSON-Schema-Test-Suite has and that clients send: each output must satisfy its own. */

const object = (properties: Record<string, unknown>, more: Record<string, unknown> = {}) => ({
  type: "object",
  properties,
  required: Object.keys(properties),
  additionalProperties: false,
  ...more,
});

const integers = [
  {},
  { minimum: 0 },
  { minimum: 1, maximum: 5 },
  { minimum: -3, maximum: 250 },
  { maximum: -1 },
  { exclusiveMinimum: 0, exclusiveMaximum: 10 },
  { minimum: 99, maximum: 1001 },
  { minimum: 1.1, maximum: 7.9 },
  { multipleOf: 7 },
  { multipleOf: 60, minimum: 1, maximum: 3600 },
  { minimum: -100, exclusiveMaximum: -10, multipleOf: 3 },
  { format: "int32" },
].map((bounds) => ({ type: "integer", ...bounds }));

const numbers = [
  {},
  { minimum: 0, maximum: 1 },
  { minimum: 0.5, maximum: 2.25 },
  { exclusiveMinimum: 0 },
  { exclusiveMaximum: 0 },
  { exclusiveMinimum: 0, exclusiveMaximum: 1 },
  { minimum: -1.5, maximum: 1.5 },
  { minimum: 1e6 },
  { minimum: 0.001, maximum: 0.002 },
  { multipleOf: 5, minimum: 10 },
  { minimum: 3, maximum: 3 },
  { exclusiveMinimum: 99.99, maximum: 100 },
].map((bounds) => ({ type: "number", ...bounds }));

const strings = [
  {},
  { minLength: 1 },
  { maxLength: 3 },
  { minLength: 2, maxLength: 4 },
  { minLength: 5, maxLength: 5 },
  { pattern: "^[a-z]+$" },
  { pattern: "b+c" },
  { pattern: "^\\d{3}-\\d{4}$" },
  { pattern: '^a"b/\\d{2}.$' },
  { pattern: "^(?:red|green|blue)$" },
  { pattern: "^(?!ab)[a-c]{2}$" },
  { pattern: "^(?=.*\\d)[a-z0-9]{1,4}$" },
  { pattern: "^[^\\s]{1,6}$" },
  { pattern: "^\\p{Lu}\\p{Ll}*$" },
  { pattern: "^[äöüß]+$" },
  { pattern: "^.{0,5}$" },
  { pattern: "^\\S+@\\S+$", maxLength: 12 },
  { pattern: "^x", minLength: 2, maxLength: 6 },
  { pattern: "\\\\$" },
  { pattern: "^[\\t\\n]$" },
  { format: "date" },
  { format: "time" },
  { format: "date-time" },
  { format: "duration" },
  { format: "email" },
  { format: "hostname" },
  { format: "ipv4" },
  { format: "ipv6" },
  { format: "uuid" },
  { format: "uri" },
  { format: "json-pointer" },
  { format: "date", pattern: "^20" },
].map((more) => ({ type: "string", ...more }));

const literals = [
  { const: null },
  { const: 'a"é\\\n' },
  { const: { x: [1, "2", { y: null }] } },
  { enum: ["a", 1, null, { b: 1 }, [1, 2], true] },
  { enum: [1, 2, "three", 4.5], type: "integer" },
  { enum: ["a", "bb", "ccc"], minLength: 2 },
  { enum: [1, 5, 10], minimum: 3 },
  { enum: [[1], [1, 2]], maxItems: 1 },
  { enum: [{ a: 1 }, { b: 1 }], required: ["b"] },
  { const: "b", enum: ["a", "b"] },
  { type: "boolean" },
  { type: "null" },
  { type: "boolean", const: false },
];

const arrays = [
  {},
  { items: { type: "integer" } },
  { items: { type: "boolean" }, minItems: 2 },
  { items: { enum: ["x", "y"] }, maxItems: 2 },
  { items: { type: "null" }, minItems: 3, maxItems: 3 },
  { prefixItems: [{ type: "string", maxLength: 2 }, { type: "number" }], items: false },
  { prefixItems: [{ const: 1 }, { const: 2 }], items: { const: 3 }, minItems: 3, maxItems: 5 },
  { prefixItems: [{ const: 1 }], minItems: 1, items: { type: "boolean" } },
  { prefixItems: [{ const: 1 }, { const: 2 }, { const: 3 }], minItems: 2, items: false },
  { items: [{ const: "a" }, { const: "b" }], additionalItems: { type: "integer" } },
  { items: { type: "array", items: { type: "boolean" }, maxItems: 2 }, maxItems: 2 },
  { items: false },
  { maxItems: 0 },
].map((more) => ({ type: "array", ...more }));

const objects = [
  object({ a: { type: "string" }, b: { type: "integer" } }),
  object({ a: { type: "boolean" }, b: { type: "boolean" } }, { required: ["b"] }),
  object({ a: { type: "boolean" }, b: { type: "boolean" }, c: { type: "null" } }, { required: [] }),
  { type: "object", properties: { a: { type: "integer" } } },
  { type: "object", properties: { a: { type: "integer" } }, required: ["a", "zz"] },
  { type: "object", additionalProperties: { type: "boolean" } },
  { type: "object", additionalProperties: false },
  { type: "object", additionalProperties: { type: "integer" }, minProperties: 1 },
  { type: "object", additionalProperties: { type: "integer" }, maxProperties: 2 },
  object(
    { a: { type: "null" }, b: { type: "null" }, c: { type: "null" } },
    { required: [], minProperties: 2 },
  ),
  object(
    { a: { type: "null" }, b: { type: "null" }, c: { type: "null" } },
    { required: ["c"], maxProperties: 2 },
  ),
  object(
    { a: { type: "integer" }, ab: { type: "integer" } },
    { additionalProperties: { type: "string" } },
  ),
  {
    type: "object",
    patternProperties: { "^n": { type: "integer" }, "^b": { type: "boolean" } },
    additionalProperties: false,
  },
  {
    type: "object",
    patternProperties: { "^a": { type: "integer" }, z$: { minimum: 5, type: "integer" } },
    additionalProperties: false,
  },
  {
    type: "object",
    properties: { na: { type: "integer", maximum: 9 } },
    patternProperties: { "^n": { type: "integer", minimum: 3 } },
    additionalProperties: { type: "null" },
    required: ["na"],
  },
  {
    type: "object",
    propertyNames: { pattern: "^[a-z]{1,3}$" },
    additionalProperties: { type: "integer" },
  },
  {
    type: "object",
    propertyNames: { enum: ["x", "y"] },
    additionalProperties: { type: "integer" },
  },
  object({
    'q"uote': { type: "null" },
    "back\\slash": { type: "null" },
    "tab\t": { type: "null" },
    "": { type: "null" },
  }),
  object({
    __proto: { type: "null" },
    constructor: { type: "null" },
    toString: { type: "integer" },
  }),
  object({
    deep: object({
      er: object({ st: { type: "array", items: { type: "integer" }, maxItems: 2 } }),
    }),
  }),
  { properties: { a: { type: "integer" } }, required: ["a"] },
  { required: ["k"] },
  { minProperties: 1 },
];

const combined = [
  { anyOf: [{ type: "integer" }, { type: "null" }] },
  { anyOf: [{ type: "string", maxLength: 2 }, { type: "boolean" }] },
  { type: ["integer", "null"] },
  { type: ["boolean", "array"], items: { type: "null" }, maxItems: 1 },
  { anyOf: [object({ a: { type: "integer" } }), object({ b: { type: "integer" } })] },
  {
    oneOf: [
      object({ k: { const: "a" }, v: { type: "integer" } }),
      object({ k: { const: "b" }, v: { type: "boolean" } }),
    ],
  },
  { oneOf: [{ type: "integer" }, { type: "boolean" }] },
  {
    oneOf: [
      { type: "integer", maximum: 0 },
      { type: "integer", minimum: 1 },
    ],
  },
  {
    oneOf: [
      { type: "string", pattern: "^a" },
      { type: "string", pattern: "^b" },
    ],
  },
  {
    oneOf: [
      { type: "object", properties: { a: { type: "integer" } }, required: ["a"] },
      { type: "object", properties: { b: { type: "integer" } }, required: ["b"] },
    ],
  },
  { allOf: [{ type: "integer", minimum: 3 }, { maximum: 9 }] },
  {
    allOf: [
      { type: "object", properties: { a: { type: "integer" } }, required: ["a"] },
      { type: "object", properties: { b: { type: "boolean" } }, required: ["b"] },
    ],
  },
  { allOf: [{ type: "string", pattern: "^[ab]+$" }, { pattern: "b" }, { maxLength: 5 }] },
  { allOf: [{ anyOf: [{ const: 1 }, { const: 2 }] }, { anyOf: [{ const: 2 }, { const: 3 }] }] },
  {
    type: "object",
    properties: { c: { type: "null" } },
    anyOf: [
      { properties: { a: { type: "integer" } }, required: ["a"] },
      { properties: { b: { type: "integer" } }, required: ["b"] },
    ],
  },
  { $ref: "#/$defs/x", $defs: { x: { type: "integer", minimum: 1, maximum: 3 } } },
  { $defs: { x: { type: "integer" } }, type: "array", items: { $ref: "#/$defs/x" }, maxItems: 2 },
  { $ref: "#/$defs/x", maximum: 5, $defs: { x: { type: "integer", minimum: 1 } } },
  { $ref: "#/definitions/a~1b", definitions: { "a/b": { const: "slash" } } },
  { $ref: "#/$defs/a%20b", $defs: { "a b": { const: "blank" } } },
  {
    $ref: "#/$defs/node",
    $defs: {
      node: object({
        value: { type: "integer", maximum: 9, minimum: 0 },
        next: { anyOf: [{ $ref: "#/$defs/node" }, { type: "null" }] },
      }),
    },
  },
  { type: "object", properties: { self: { $ref: "#" } }, additionalProperties: false },
  {
    $ref: "#/$defs/tree",
    $defs: {
      tree: object({ kids: { type: "array", items: { $ref: "#/$defs/tree" }, maxItems: 2 } }),
    },
  },
  {
    $defs: {
      a: { anyOf: [{ $ref: "#/$defs/b" }, { type: "null" }] },
      b: { type: "array", items: { $ref: "#/$defs/a" }, maxItems: 1 },
    },
    $ref: "#/$defs/b",
  },
  true,
  {},
  { title: "T", description: "d", default: 1, examples: [1], $comment: "c", type: "boolean" },
  { "x-order": 1, type: "boolean", readOnly: true, deprecated: true },
  { uniqueItems: false, type: "array", items: { type: "null" }, maxItems: 2 },
];

/** The same forms inside objects and lists, where commas, blanks and neighbours come into play. */
const nested = [...integers, ...numbers, ...strings, ...literals].map((schema, i) =>
  i % 2 === 0
    ? object({ before: { type: "boolean" }, it: schema, after: { type: "null" } })
    : { type: "array", items: schema, minItems: 1, maxItems: 2 },
);

export const SCHEMAS: readonly (boolean | Record<string, unknown>)[] = [
  ...integers,
  ...numbers,
  ...strings,
  ...literals,
  ...arrays,
  ...objects,
  ...combined,
  ...nested,
];

/** Keywords and forms that are refused, with what the error must name. */
export const REFUSED: readonly (readonly [schema: Record<string, unknown>, names: string])[] = [
  [{ not: { type: "string" } }, '"not"'],
  [{ if: { type: "string" }, then: { minLength: 1 } }, '"if"'],
  [{ type: "array", uniqueItems: true }, '"uniqueItems"'],
  [{ type: "array", contains: { type: "null" } }, '"contains"'],
  [{ type: "object", dependentRequired: { a: ["b"] } }, '"dependentRequired"'],
  [{ type: "object", dependentSchemas: {} }, '"dependentSchemas"'],
  [{ type: "object", unevaluatedProperties: false }, '"unevaluatedProperties"'],
  [{ $dynamicRef: "#x" }, '"$dynamicRef"'],
  [{ type: "object", properties: { a: { requred: [] } } }, '"requred"'],
  [{ type: "string", format: "unheard-of" }, '"unheard-of"'],
  [{ type: "string", pattern: "(a)\\1" }, "back reference"],
  [{ type: "string", pattern: "(?<=a)b" }, "lookbehind"],
  [{ type: "string", pattern: "\\bword\\b" }, "word boundary"],
  [{ type: "string", pattern: "(" }, "pattern"],
  [{ type: "strin" }, '"type"'],
  [{ type: "integer", minimum: "1" }, '"minimum"'],
  [{ type: "integer", exclusiveMinimum: true }, '"exclusiveMinimum"'],
  [{ type: "number", multipleOf: 0.1 }, "multipleOf"],
  [{ type: "number", multipleOf: 0 }, '"multipleOf"'],
  [{ $ref: "https://example.org/schema" }, "$ref"],
  [{ $ref: "#/$defs/none" }, "$ref"],
  [{ oneOf: [{ type: "integer" }, { type: "number" }] }, "oneOf"],
  [
    {
      oneOf: [
        { type: "object", properties: { a: {} } },
        { type: "object", properties: { b: {} } },
      ],
    },
    "oneOf",
  ],
  [{ type: "integer", minimum: 5, maximum: 4 }, "no value"],
  [{ type: "string", pattern: "^a$", minLength: 2 }, "no value"],
  [{ $ref: "#/$defs/n", $defs: { n: object({ next: { $ref: "#/$defs/n" } }) } }, "no value"],
  [{ allOf: [{ type: "string" }, { type: "integer" }] }, "no value"],
  [{ enum: [1, 2], type: "string" }, "no value"],
  [{ type: "object", additionalProperties: { type: "null" }, minProperties: 3 }, "no value"],
];
