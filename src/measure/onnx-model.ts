/**
 * Writes the ONNX model of one matrix product, y = x·w, as protobuf bytes, so that a benchmark against an ONNX runtime
 * needs no exporter. Field numbers are those of onnx.proto3 (ModelProto, GraphProto, NodeProto, TensorProto).
 */

const VARINT = 0;
const LENGTH_DELIMITED = 2;
/** TensorProto.DataType.FLOAT. */
const FLOAT = 1;
const IR_VERSION = 8;
/** MatMul has not changed since operator set 13. */
const OPERATOR_SET = 13;

type Bytes = Uint8Array;

function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 128) {
    bytes.push((rest % 128) | 128);
    rest = Math.floor(rest / 128);
  }
  bytes.push(rest);
  return bytes;
}

function integer(field: number, value: number): Bytes {
  return Uint8Array.from([...varint(field * 8 + VARINT), ...varint(value)]);
}

function nested(field: number, ...parts: (Bytes | string)[]): Bytes {
  const bodies = parts.map((part) =>
    typeof part === "string" ? new TextEncoder().encode(part) : part,
  );
  const length = bodies.reduce((sum, body) => sum + body.length, 0);
  const head = Uint8Array.from([...varint(field * 8 + LENGTH_DELIMITED), ...varint(length)]);
  const bytes = new Uint8Array(head.length + length);
  bytes.set(head);
  let at = head.length;
  for (const body of bodies) {
    bytes.set(body, at);
    at += body.length;
  }
  return bytes;
}

/** ValueInfoProto: a float matrix. */
function matrixValue(field: number, name: string, rows: number, cols: number): Bytes {
  const shape = nested(2, nested(1, integer(1, rows)), nested(1, integer(1, cols)));
  return nested(field, nested(1, name), nested(2, nested(1, integer(1, FLOAT), shape)));
}

/**
 * The model of y[m,n] = x[m,k]·w[k,n] in float32, with w inside as a constant, as an exported network would have it
 * (which lets a runtime pack it once).
 */
export function matmulModel(m: number, k: number, n: number, weights: Float32Array): Uint8Array {
  if (weights.length !== k * n)
    throw new Error(`weights have ${weights.length} elements, not ${k}·${n}`);
  const raw = new Uint8Array(weights.buffer, weights.byteOffset, weights.byteLength);
  const node = nested(1, nested(1, "x"), nested(1, "w"), nested(2, "y"), nested(4, "MatMul"));
  const initializer = nested(
    5,
    integer(1, k),
    integer(1, n),
    integer(2, FLOAT),
    nested(8, "w"),
    nested(9, raw),
  );
  const graph = nested(
    7,
    node,
    nested(2, "matmul"),
    initializer,
    matrixValue(11, "x", m, k),
    matrixValue(12, "y", m, n),
  );
  const operators = nested(8, integer(2, OPERATOR_SET));
  const parts = [integer(1, IR_VERSION), graph, operators];
  const model = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    model.set(part, at);
    at += part.length;
  }
  return model;
}
