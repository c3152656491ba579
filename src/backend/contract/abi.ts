/**
 * The ABI between TypeScript and native/, once: kernels, their parameters, types and lengths. From it come the C
 * prototypes, the levels' tables, plans and codes (native/abi/, `npm run generate:abi`), the foreign calls with their
 * checks (cpu/native-kernels.ts) and the words of plans (cpu/infer/plan.ts).
 *
 * A parameter's type is one of
 * - `i32`, `i64`, `f32`, `f64`: a number;
 * - `flag`: a boolean, 0 or 1 in C;
 * - a name of CODES: one of its words, a number in C;
 * - `f32[rows*cols]`: memory of at least so many elements that the kernel writes, `const f32[…]` that it only reads. The
 *   length is a product or quotient of integers and other parameters' names; `reach(a:b, c:d)` is one past the last
 *   element of a strided view of `a` by `c` elements, nothing where one of them is 0; `*` leaves it to the caller.
 *   A question mark at the end: the memory may be absent (null).
 */

/** Words that are numbers in C; their order is their number. */
export const CODES = {
  /** What is done to each element. */
  UnaryOp: ["sigmoid", "silu", "relu", "gelu", "geluTanh", "reciprocal", "negate", "relu2"],
  BinaryOp: ["add", "sub", "mul"],
  /** How the smaller operand spreads over rows and columns, or which axis a sum keeps. */
  Broadcast: ["full", "row", "column", "scalar"],
  NormKind: ["rms", "layer"],
  /** What becomes of a router's logits. */
  RouterScores: ["softmax", "sigmoid"],
  /** What a site reads: x, a norm of x, op(x), op(x)·x2, (x2 + 1)·x·σ(alpha·x) with both within the limit. */
  SiteInput: ["plain", "rms", "layer", "activation", "gated", "clamped"],
  /**
   * What a packed matrix holds and what it is multiplied with: 4- or 8-bit codes by int8 codes, exact; codes by f32
   * activations; bf16 by activations rounded to bf16; halves or bf16 by f32 activations.
   */
  PackedKind: ["int4", "int8", "int4F32", "int8F32", "bf16Bf16", "halfF32", "bf16F32"],
} as const satisfies Readonly<Record<string, readonly string[]>>;

/** Numbers that both sides count with. */
export const CONSTANTS = {
  /** Rows of keys and values in a page of the cache. */
  pageTokens: 64,
  /** Products of up to so many rows sum in an order of their own (matmul_thin.h). */
  thinRowsLong: 48,
  /** Queries that attention treats together, with another exponential where a block's keys are partly hidden. */
  queryBlock: 48,
  /** Flags of a matrix product's operands and of the product. */
  operandTransposed: 1,
  operandCodes: 2,
  productAccumulates: 1,
  productBf16: 2,
  /** Form of weights in groups: halves instead of f32 for scales and offsets; offsets; from bit 8 on what is taken off codes. */
  groupHalves: 1,
  groupOffset: 2,
} as const;

export type CodeName = keyof typeof CODES;
type Element = "f32" | "f64" | "i8" | "u8" | "i32" | "i64" | "any";
type Memory = `${"" | "const "}${Element}[${string}]${"" | "?"}`;
export type ParameterType = "i32" | "i64" | "f32" | "f64" | "flag" | CodeName | Memory;
/** Parameters in C's order. */
export type Parameters = Readonly<Record<string, ParameterType>>;

const ATTENTION_SHAPE = {
  batch: "i64",
  heads: "i64",
  kvHeads: "i64",
  headDim: "i64",
  queryLength: "i64",
  keyLength: "i64",
  causal: "flag",
  window: "i64",
  chunk: "i64",
  scale: "f32",
  /** 0: scores are not capped. */
  softcap: "f32",
  slopes: "const f32[heads]?",
  q: "const f32[reach(batch:qBatch,queryLength:qTime,heads:qHead,headDim:1)]",
  qBatch: "i64",
  qTime: "i64",
  qHead: "i64",
  k: "const f32[reach(batch:kvBatch,keyLength:kvTime,kvHeads:kvHead,headDim:1)]",
  v: "const f32[reach(batch:kvBatch,keyLength:kvTime,kvHeads:kvHead,headDim:1)]",
  kvBatch: "i64",
  kvTime: "i64",
  kvHead: "i64",
} as const;

/** Sizes, places and inputs of a recurrence (recurrent.ts); epsilon below 0: queries and keys stay as they are. */
const RECURRENCE_SHAPE = {
  heads: "i64",
  keyHeads: "i64",
  keyDim: "i64",
  valueDim: "i64",
  width: "i64",
  qAt: "i64",
  kAt: "i64",
  vAt: "i64",
  scale: "f32",
  epsilon: "f32",
  least: "f32",
  most: "f32",
} as const;
const RECURRENCE_ROWS = {
  x: "const f32[batch*time*width]",
  step: "const f32[batch*time*heads]",
  beta: "const f32[batch*time*heads]?",
  rate: "const f32[heads]",
  bias: "const f32[heads]",
  skip: "const f32[heads]?",
} as const;

/** Kernels of every instruction-set level; each returns 0 or an error code. */
export const KERNELS = {
  // peaks.h. Measured ceilings: register-only loops on every thread; `operations`: multiply-adds times two.
  peakF32: { iterations: "i64", operations: "f64[1]" },
  peakBf16: { iterations: "i64", operations: "f64[1]" },
  peakI8: { iterations: "i64", operations: "f64[1]" },
  peakI4: { iterations: "i64", operations: "f64[1]" },
  readMemory: { x: "const f32[length]", length: "i64", sink: "f32[1]" },

  // matmul.h. Offsets, strides and batch strides count elements; flags are those of CONSTANTS.
  matmul: {
    m: "i64",
    n: "i64",
    k: "i64",
    batch: "i64",
    a: "const any[*]",
    aOffset: "i64",
    aStride: "i64",
    aBatch: "i64",
    aFlags: "i32",
    b: "const any[*]",
    bOffset: "i64",
    bStride: "i64",
    bBatch: "i64",
    bFlags: "i32",
    out: "f32[*]",
    outOffset: "i64",
    outStride: "i64",
    outBatch: "i64",
    kScale: "const f32[k]?",
    nScale: "const f32[n]?",
    bias: "const f32[n]?",
    alpha: "f64",
    flags: "i32",
  },
  /** out[m,n] = aScale[m]·bScale[n]·Σ a[m,k]·b[n,k] (+ bias[n]). */
  intMatmul: {
    m: "i64",
    n: "i64",
    k: "i64",
    a: "const i8[m*k]",
    aScale: "const f32[m]?",
    b: "const i8[n*k]",
    bScale: "const f32[n]?",
    bias: "const f32[n]?",
    out: "f32[m*n]",
  },

  // packed_weights.h, packed_matmul.h. Weights of the engine, in the kernels' own order.
  packedBytes: { kind: "PackedKind", n: "i64", k: "i64", bytes: "i64[1]" },
  packWeights: {
    kind: "PackedKind",
    n: "i64",
    k: "i64",
    source: "const any[n*k]",
    packed: "u8[*]",
  },
  packedRows: {
    kind: "PackedKind",
    n: "i64",
    k: "i64",
    packed: "const u8[*]",
    ids: "const i32[rows]",
    rows: "i64",
    out: "f32[rows*k]",
  },
  /** Several products of the same rows; `table`: a PackedPart each. */
  packedMatmulParts: {
    kind: "PackedKind",
    rows: "i64",
    k: "i64",
    parts: "i64",
    table: "const i64[8*parts]",
    accumulate: "flag",
  },
  packedMatmul: {
    kind: "PackedKind",
    m: "i64",
    n: "i64",
    k: "i64",
    a: "const any[m*k]",
    aScale: "const f32[m]?",
    packed: "const u8[*]",
    bScale: "const f32[n]?",
    bias: "const f32[n]?",
    out: "f32[m*n]",
    accumulate: "flag",
  },

  // group_weights.h, group_matmul.h. The same with a scale per `group` input channels; `form` as in CONSTANTS.
  groupBytes: {
    kind: "PackedKind",
    n: "i64",
    k: "i64",
    group: "i64",
    form: "i64",
    bytes: "i64[1]",
  },
  packGroups: {
    kind: "PackedKind",
    n: "i64",
    k: "i64",
    group: "i64",
    form: "i64",
    codes: "const i8[n*k]",
    scale: "const f32[n*k/group]",
    offset: "const f32[n*k/group]?",
    packed: "u8[*]",
  },
  groupRows: {
    kind: "PackedKind",
    n: "i64",
    k: "i64",
    group: "i64",
    form: "i64",
    packed: "const u8[*]",
    ids: "const i32[rows]",
    rows: "i64",
    out: "f32[rows*k]",
  },
  /** `table`: a GroupPart each; `span`: channels per scale of the activations. */
  groupMatmulParts: {
    kind: "PackedKind",
    rows: "i64",
    k: "i64",
    group: "i64",
    span: "i64",
    parts: "i64",
    table: "const i64[9*parts]",
    accumulate: "flag",
  },
  groupMatmul: {
    kind: "PackedKind",
    m: "i64",
    n: "i64",
    k: "i64",
    group: "i64",
    form: "i64",
    span: "i64",
    a: "const i8[m*k]",
    aScale: "const f32[m*k/span]",
    aOffset: "const f32[m*k/span]?",
    packed: "const u8[*]",
    bias: "const f32[n]?",
    out: "f32[m*n]",
    accumulate: "flag",
  },

  // quantize.h
  quantizeRows: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    bits: "i32",
    clipMax: "const f32[1]?",
    clipMin: "const f32[1]?",
    scaleFloor: "f32",
    offset: "const f32[rows*cols]?",
    codes: "i8[rows*cols]",
    scale: "f32[rows]",
  },
  quantizeRowsBackward: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    bits: "i32",
    clipMax: "const f32[1]?",
    clipMin: "const f32[1]?",
    scaleFloor: "f32",
    offset: "const f32[rows*cols]?",
    codes: "const i8[rows*cols]",
    scale: "const f32[rows]",
    grad: "const f32[rows*cols]",
    gradX: "f32[rows*cols]?",
    gradClipMax: "f32[1]?",
    gradClipMin: "f32[1]?",
    gradOffset: "f32[rows*cols]?",
  },
  dequantizeRows: {
    codes: "const i8[rows*cols]",
    scale: "const f32[rows]",
    rows: "i64",
    cols: "i64",
    out: "f32[rows*cols]",
  },
  fakeQuantizeAsym: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    bits: "i32",
    clipMax: "const f32[1]?",
    clipMin: "const f32[1]?",
    out: "f32[rows*cols]",
  },
  fakeQuantizeAsymBackward: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    bits: "i32",
    clipMax: "const f32[1]?",
    clipMin: "const f32[1]?",
    grad: "const f32[rows*cols]",
    gradX: "f32[rows*cols]",
    gradClipMax: "f32[1]?",
    gradClipMin: "f32[1]?",
  },
  fakeQuantizeOffset: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    bits: "i32",
    clipMax: "const f32[1]?",
    clipMin: "const f32[1]?",
    shift: "const f32[rows*cols]?",
    out: "f32[rows*cols]",
  },
  fakeQuantizeOffsetBackward: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    bits: "i32",
    clipMax: "const f32[1]?",
    clipMin: "const f32[1]?",
    shift: "const f32[rows*cols]?",
    grad: "const f32[rows*cols]",
    gradX: "f32[rows*cols]",
    gradClipMax: "f32[1]?",
    gradClipMin: "f32[1]?",
    gradShift: "f32[rows*cols]?",
  },
  clipRows: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    clipMax: "const f32[rows]",
    clipMin: "const f32[rows]",
    out: "f32[rows*cols]",
  },
  clipRowsBackward: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    clipMax: "const f32[rows]",
    clipMin: "const f32[rows]",
    grad: "const f32[rows*cols]",
    gradX: "f32[rows*cols]",
    gradClipMax: "f32[rows]?",
    gradClipMin: "f32[rows]?",
  },

  // flatten.h
  flattenRows: {
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    bits: "i32",
    step: "f32",
    factor: "const f32[cols]?",
    extras: "i64",
    channel: "const i32[extras]?",
    part: "const i32[extras]?",
    stride: "i64",
    copies: "const i32[cols]?",
    codes: "i8[rows*stride]",
    scale: "f32[rows]?",
    clipped: "i32[rows]?",
  },

  // kronecker.h
  kronecker: {
    x: "const f32[rows*nLeft*nRight]",
    rows: "i64",
    nLeft: "i64",
    nRight: "i64",
    left: "const f32[nLeft*nLeft]?",
    right: "const f32[nRight*nRight]?",
    diag: "const f32[nLeft*nRight]?",
    out: "f32[rows*nLeft*nRight]",
  },
  kroneckerBackward: {
    x: "const f32[rows*nLeft*nRight]",
    rows: "i64",
    nLeft: "i64",
    nRight: "i64",
    left: "const f32[nLeft*nLeft]?",
    right: "const f32[nRight*nRight]?",
    diag: "const f32[nLeft*nRight]?",
    grad: "const f32[rows*nLeft*nRight]",
    gradX: "f32[rows*nLeft*nRight]?",
    gradLeft: "f32[nLeft*nLeft]?",
    gradRight: "f32[nRight*nRight]?",
    gradDiag: "f32[nLeft*nRight]?",
  },

  // norm.h
  /** Every row is `groups` times `cols` long, and each group is normalized by itself. */
  norm: {
    kind: "NormKind",
    x: "const f32[rows*groups*cols]",
    rows: "i64",
    groups: "i64",
    cols: "i64",
    gain: "const f32[cols]",
    bias: "const f32[cols]?",
    epsilon: "f32",
    out: "f32[rows*groups*cols]",
  },
  normBackward: {
    kind: "NormKind",
    x: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    gain: "const f32[cols]",
    epsilon: "f32",
    grad: "const f32[rows*cols]",
    gradX: "f32[rows*cols]?",
    gradGain: "f32[cols]?",
    gradBias: "f32[cols]?",
  },
  /** The same of groups of `cols` channels of a row; `gains`: 1, or as many as groups where each has its own. */
  groupedNorm: {
    kind: "NormKind",
    x: "const f32[rows*groups*cols]",
    rows: "i64",
    groups: "i64",
    cols: "i64",
    gain: "const f32[gains*cols]",
    gains: "i64",
    epsilon: "f32",
    out: "f32[rows*groups*cols]",
  },
  /** Row r turns by the angles of row r mod `period` of cos and sin [period, headDim/2]. */
  rope: {
    x: "const f32[rows*heads*headDim]",
    rows: "i64",
    heads: "i64",
    headDim: "i64",
    period: "i64",
    cos: "const f32[period*headDim/2]",
    sin: "const f32[period*headDim/2]",
    inverse: "flag",
    out: "f32[rows*heads*headDim]",
  },
  gatherRows: {
    table: "const f32[tableRows*cols]",
    tableRows: "i64",
    cols: "i64",
    ids: "const i32[rows]",
    rows: "i64",
    out: "f32[rows*cols]",
  },

  arrange: {
    a: "const f32[rows*aHeads*aDim]",
    aHeads: "i64",
    aDim: "i64",
    b: "const f32[rows*bHeads*bDim]?",
    bHeads: "i64",
    bDim: "i64",
    rows: "i64",
    heads: "i64",
    headDim: "i64",
    order: "const i32[headDim]",
    out: "f32[rows*heads*headDim]",
  },
  /** `cols` columns of rows `xStride` apart into rows `outStride` apart. */
  columns: {
    x: "const f32[reach(rows:xStride,cols:1)]",
    rows: "i64",
    cols: "i64",
    xStride: "i64",
    out: "f32[reach(rows:outStride,cols:1)]",
    outStride: "i64",
  },

  // recurrent.h. `carry…`: chunks of sequences, whose states stand in slots `stride` floats apart.
  causalConv: {
    batch: "i64",
    time: "i64",
    channels: "i64",
    taps: "i64",
    x: "const f32[batch*time*channels]",
    weight: "const f32[channels*taps]",
    bias: "const f32[channels]?",
    state: "f32[*]?",
    out: "f32[batch*time*channels]",
  },
  causalConvBackward: {
    batch: "i64",
    time: "i64",
    channels: "i64",
    taps: "i64",
    weight: "const f32[channels*taps]",
    grad: "const f32[batch*time*channels]",
    gradX: "f32[batch*time*channels]",
  },
  carryConv: {
    chunks: "i64",
    table: "const i32[4*chunks]",
    slots: "const i32[chunks]",
    channels: "i64",
    taps: "i64",
    x: "const f32[*]",
    weight: "const f32[channels*taps]",
    bias: "const f32[channels]?",
    state: "f32[*]",
    stride: "i64",
    out: "f32[*]",
  },
  recurrence: {
    batch: "i64",
    time: "i64",
    ...RECURRENCE_SHAPE,
    ...RECURRENCE_ROWS,
    state: "f32[batch*heads*keyDim*valueDim]?",
    out: "f32[batch*time*heads*valueDim]",
  },
  recurrenceBackward: {
    batch: "i64",
    time: "i64",
    ...RECURRENCE_SHAPE,
    ...RECURRENCE_ROWS,
    grad: "const f32[batch*time*heads*valueDim]",
    gradX: "f32[batch*time*width]",
    gradStep: "f32[batch*time*heads]",
    gradBeta: "f32[batch*time*heads]?",
  },
  carryRecurrence: {
    chunks: "i64",
    table: "const i32[4*chunks]",
    slots: "const i32[chunks]",
    ...RECURRENCE_SHAPE,
    x: "const f32[*]",
    step: "const f32[*]",
    beta: "const f32[*]?",
    rate: "const f32[heads]",
    bias: "const f32[heads]",
    skip: "const f32[heads]?",
    state: "f32[*]",
    stride: "i64",
    out: "f32[*]",
  },

  // attention.h, attention_backward.h
  attention: {
    ...ATTENTION_SHAPE,
    out: "f32[reach(batch:outBatch,queryLength:outTime,heads:outHead,headDim:1)]",
    outBatch: "i64",
    outTime: "i64",
    outHead: "i64",
    logSumExp: "f32[batch*heads*queryLength]?",
    half: "flag",
  },
  attentionBackward: {
    ...ATTENTION_SHAPE,
    out: "const f32[reach(batch:outBatch,queryLength:outTime,heads:outHead,headDim:1)]",
    grad: "const f32[reach(batch:outBatch,queryLength:outTime,heads:outHead,headDim:1)]",
    outBatch: "i64",
    outTime: "i64",
    outHead: "i64",
    logSumExp: "const f32[batch*heads*queryLength]",
    gradQ: "f32[reach(batch:qBatch,queryLength:qTime,heads:qHead,headDim:1)]",
    gradK: "f32[reach(batch:kvBatch,keyLength:kvTime,kvHeads:kvHead,headDim:1)]",
    gradV: "f32[reach(batch:kvBatch,keyLength:kvTime,kvHeads:kvHead,headDim:1)]",
    half: "flag",
  },

  // elementwise.h
  unary: { op: "UnaryOp", x: "const f32[length]", length: "i64", out: "f32[length]" },
  unaryBackward: {
    op: "UnaryOp",
    x: "const f32[length]",
    length: "i64",
    grad: "const f32[length]",
    gradX: "f32[length]",
  },
  /** `b` has rows·cols, cols, rows or 1 elements. */
  binary: {
    op: "BinaryOp",
    rows: "i64",
    cols: "i64",
    a: "const f32[rows*cols]",
    b: "const f32[*]",
    broadcast: "Broadcast",
    out: "f32[rows*cols]",
  },
  /** `out` has cols, rows or 1 elements. */
  reduce: {
    rows: "i64",
    cols: "i64",
    x: "const f32[rows*cols]",
    y: "const f32[rows*cols]?",
    keep: "Broadcast",
    alpha: "f64",
    out: "f32[*]",
  },
  scale: {
    x: "const f32[length]",
    length: "i64",
    alpha: "f32",
    accumulate: "flag",
    out: "f32[length]",
  },
  siluMul: {
    gate: "const f32[length]",
    up: "const f32[length]",
    length: "i64",
    out: "f32[length]",
  },
  siluMulBackward: {
    gate: "const f32[length]",
    up: "const f32[length]",
    length: "i64",
    grad: "const f32[length]",
    gradGate: "f32[length]",
    gradUp: "f32[length]",
  },
  mse: { a: "const f32[length]", b: "const f32[length]", length: "i64", loss: "f32[1]" },
  nll: {
    logits: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    targets: "const i32[rows]",
    nll: "f32[rows]",
  },
  softmaxKl: {
    teacher: "const f32[rows*cols]",
    student: "const f32[rows*cols]",
    rows: "i64",
    cols: "i64",
    kl: "f32[rows]",
    gradStudent: "f32[rows*cols]?",
    gradScale: "f32",
  },
  /** `bound` below zero: none. */
  adamW: {
    param: "f32[length]",
    grad: "const f32[length]",
    moment1: "f32[length]",
    moment2: "f32[length]",
    length: "i64",
    step: "i64",
    learningRate: "f64",
    beta1: "f64",
    beta2: "f64",
    epsilon: "f64",
    weightDecay: "f64",
    gradScale: "f64",
    bound: "f64",
  },

  // linalg.h
  inverse: { x: "const f32[n*n]", n: "i64", out: "f32[n*n]" },
  cayley: { seed: "const f32[n*n]", n: "i64", out: "f32[n*n]" },
  cayleyBackward: {
    seed: "const f32[n*n]",
    n: "i64",
    out: "const f32[n*n]",
    grad: "const f32[n*n]",
    gradSeed: "f32[n*n]",
  },

  // gptq.h
  gptqFactor: {
    n: "i64",
    moment: "const f64[n*n]",
    order: "const i32[n]?",
    damp: "f64",
    factor: "f64[n*n]",
    factored: "i32[1]",
  },
  gptqRound: {
    rows: "i64",
    cols: "i64",
    weight: "const f64[rows*cols]",
    scale: "const f64[scales]",
    scales: "i64",
    group: "i64",
    offset: "const f64[scales]?",
    bits: "i32",
    factor: "const f64[cols*cols]",
    order: "const i32[cols]?",
    codes: "i8[rows*cols]",
  },

  // site.h. Sets of codes are `capacity` rows apart; a scale (and offset) stands for `span` channels.
  site: {
    input: "SiteInput",
    op: "UnaryOp",
    x: "const f32[rows*nLeft*nRight]",
    x2: "const f32[rows*nLeft*nRight]?",
    rows: "i64",
    nLeft: "i64",
    nRight: "i64",
    gain: "const f32[nLeft*nRight]?",
    bias: "const f32[nLeft*nRight]?",
    epsilon: "f32",
    left: "const f32[nLeft*nLeft]?",
    right: "const f32[nRight*nRight]?",
    bits: "i32",
    span: "i64",
    sets: "i64",
    capacity: "i64",
    clips: "const f32[2*sets]?",
    codes: "i8[sets*capacity*nLeft*nRight]?",
    scale: "f32[sets*capacity*nLeft*nRight/span]?",
    offset: "f32[sets*capacity*nLeft*nRight/span]?",
    out: "f32[rows*nLeft*nRight]?",
    alpha: "f32",
    limit: "f32",
  },

  // experts.h. One group: experts are in none. `table`: of each expert its plan, the plan's calls and its result's address.
  route: {
    x: "const f32[rows*width]",
    rows: "i64",
    width: "i64",
    router: "const f32[experts*width]",
    bias: "const f32[experts]?",
    correction: "const f32[experts]?",
    experts: "i64",
    chosen: "i64",
    scores: "RouterScores",
    normalize: "flag",
    factor: "f32",
    groups: "i64",
    openGroups: "i64",
    weights: "f32[rows*chosen]",
    ids: "i32[rows*chosen]",
  },
  experts: {
    x: "const f32[rows*width]",
    rows: "i64",
    width: "i64",
    experts: "i64",
    chosen: "i64",
    weights: "const f32[rows*chosen]",
    /** Weights multiply what experts read instead of what they give. */
    weighInputs: "flag",
    ids: "const i32[rows*chosen]",
    order: "i32[*]",
    table: "const i64[3*experts]",
    gathered: "f32[*]",
    outWidth: "i64",
    accumulate: "flag",
    out: "f32[rows*outWidth]",
  },

  // cache.h, paged_attention.h. `table`: row, rows, start and first page of each chunk of a sequence.
  cacheHeadBytes: { headDim: "i64", bits: "i32", bytes: "i64[1]" },
  cacheWrite: {
    chunks: "i64",
    table: "const i32[4*chunks]",
    pages: "const i32[*]",
    heads: "i64",
    kvHeads: "i64",
    headDim: "i64",
    q: "f32[*]",
    k: "f32[*]",
    v: "f32[*]",
    qGain: "const f32[headDim]?",
    kGain: "const f32[headDim]?",
    epsilon: "f32",
    cosine: "const f32[*]?",
    sine: "const f32[*]?",
    qMatrix: "const f32[headDim*headDim]?",
    kMatrix: "const f32[headDim*headDim]?",
    kDiag: "const f32[kvHeads*headDim]?",
    kShift: "const f32[kvHeads*headDim]?",
    queryBits: "i32",
    bits: "i32",
    clips: "const f32[4]",
    cache: "u8[*]",
    pageBytes: "i64",
    qScale: "const f32[*]?",
  },
  pagedAttention: {
    chunks: "i64",
    table: "const i32[4*chunks]",
    pages: "const i32[*]",
    heads: "i64",
    kvHeads: "i64",
    headDim: "i64",
    window: "i64",
    chunk: "i64",
    scale: "f32",
    softcap: "f32",
    q: "const f32[*]",
    bits: "i32",
    cache: "const u8[*]",
    pageBytes: "i64",
    out: "f32[*]",
    sinks: "const f32[heads]?",
    slopes: "const f32[heads]?",
  },
} as const satisfies Readonly<Record<string, Parameters>>;

export type KernelName = keyof typeof KERNELS;

/** What a level of its own multiply-add unit brings; it takes the others from the level below. */
export const PRODUCT_KERNELS: readonly KernelName[] = [
  "peakF32",
  "peakBf16",
  "peakI8",
  "peakI4",
  "readMemory",
  "matmul",
  "intMatmul",
  "packedBytes",
  "packWeights",
  "packedRows",
  "packedMatmulParts",
  "packedMatmul",
  "groupBytes",
  "packGroups",
  "groupRows",
  "groupMatmulParts",
  "groupMatmul",
];

/**
 * Parameters that a plan (native/plan.cpp) fills in when it runs: rows and chunks of the step. A `length` counts the
 * elements of all rows; the plan holds those of one.
 */
export type StepParameter = "rows" | "chunks" | "length";

type Plannable = {
  [K in KernelName]: StepParameter & keyof (typeof KERNELS)[K] extends never ? never : K;
}[KernelName];

/** Kernels that plans call; any other with a StepParameter can join. Their order is their number. */
export const PLAN_OPERATIONS = [
  "packedRows",
  "gatherRows",
  "site",
  "packedMatmulParts",
  "cacheWrite",
  "pagedAttention",
  "norm",
  "flattenRows",
  "binary",
  "scale",
  "unary",
  "rope",
  "route",
  "experts",
  "arrange",
  "groupRows",
  "groupMatmulParts",
  "columns",
  "groupedNorm",
  "carryConv",
  "carryRecurrence",
] as const satisfies readonly Plannable[];
export type PlanOperation = (typeof PLAN_OPERATIONS)[number];

/** Everything else that the library exports; `text` is a C string, `address` a void*, `status` as a kernel's. */
export const FUNCTIONS = {
  /** A number of this table, so that a library built from another one is not called. */
  abi: { returns: "i64", parameters: {} },
  /** Why this thread's last call failed, in one line. */
  lastError: { returns: "text", parameters: {} },
  /** Chooses the instruction-set level by name, or the best one that this machine runs for null or "". */
  select: { returns: "status", parameters: { level: "text" } },
  /** The chosen level's name. */
  level: { returns: "text", parameters: {} },
  /** One line on the processor: "AMD EPYC, avx512 (vnni, bf16)". */
  description: { returns: "text", parameters: {} },
  /** Comma-separated names of the levels that this machine runs and this build has, best last. */
  levels: { returns: "text", parameters: {} },
  /** Threads of the pool, the calling one included; 0 asks for one per hardware core. Returns what was set, or 0. */
  setThreads: { returns: "i32", parameters: { count: "i32" } },
  threads: { returns: "i32", parameters: {} },
  /** Zero-filled memory aligned to 64 bytes at least (2 MiB for big blocks, which ask for huge pages), or null. */
  alloc: { returns: "address", parameters: { bytes: "i64" } },
  free: { returns: "void", parameters: { pointer: "address", bytes: "i64" } },
  /** Gives the physical pages back at once; the range stays mapped, reads as zeros and may be written again. */
  discard: { returns: "void", parameters: { pointer: "address", bytes: "i64" } },
  /**
   * Runs `calls` prepared kernel calls on `rows` rows of `chunks` sequences. `seconds`, where not null, receives the time
   * spent per operation, added up.
   */
  runPlan: {
    returns: "status",
    parameters: {
      plan: "const i64[*]",
      calls: "i64",
      rows: "i64",
      chunks: "i64",
      seconds: "f64[*]?",
    },
  },
} as const satisfies Readonly<
  Record<
    string,
    {
      readonly returns: "i32" | "i64" | "text" | "address" | "status" | "void";
      readonly parameters: Readonly<Record<string, ParameterType | "text" | "address">>;
    }
  >
>;
export type FunctionName = keyof typeof FUNCTIONS;

interface Arrays {
  readonly f32: Float32Array;
  readonly f64: Float64Array;
  readonly i8: Int8Array;
  readonly u8: Uint8Array;
  readonly i32: Int32Array;
  readonly i64: BigInt64Array;
  readonly any: Int8Array | Float32Array;
}

/** What a caller gives for memory: a typed array, a device's buffer, or an address that nobody checks. */
type MemoryValue<P, Handle> = P extends `const ${infer Written}`
  ? MemoryValue<Written, Handle>
  : P extends `${infer E extends keyof Arrays}[${string}`
    ? Arrays[E] | bigint | Handle
    : never;

type Value<P, Handle> = P extends "i32" | "i64" | "f32" | "f64"
  ? number
  : P extends "flag"
    ? boolean
    : P extends CodeName
      ? (typeof CODES)[P][number]
      : MemoryValue<P, Handle>;

type OptionalKeys<S> = { [N in keyof S]: S[N] extends `${string}?` ? N : never }[keyof S];

/** One object type, so that a name too many is refused. */
type Flat<T> = { [N in keyof T]: T[N] };

/** Arguments by name. `Handle`: what the device calls a buffer. */
export type Arguments<S, Handle = never> = Flat<
  {
    readonly [N in Exclude<keyof S, OptionalKeys<S>>]: Value<S[N], Handle>;
  } & {
    readonly [N in OptionalKeys<S>]?: Value<S[N], Handle> | null;
  }
>;

/** Every kernel, called by names. */
export type NativeKernels<Handle> = {
  readonly [K in KernelName]: (args: Arguments<(typeof KERNELS)[K], Handle>) => void;
};

/** A plan's call: addresses, and nothing that the step fills in but a row's part of a `length`. */
export type PlanArguments<K extends PlanOperation> = Arguments<
  Omit<(typeof KERNELS)[K], "rows" | "chunks">
>;
