// Words and numbers that both sides of the ABI know. Made from src/backend/contract/abi.ts by `npm run generate:abi`; change that.
#pragma once
#include <cstdint>

namespace planish {

constexpr int64_t PAGE_TOKENS = 64;
constexpr int64_t THIN_ROWS_LONG = 48;
constexpr int64_t QUERY_BLOCK = 48;
constexpr int64_t OPERAND_TRANSPOSED = 1;
constexpr int64_t OPERAND_CODES = 2;
constexpr int64_t PRODUCT_ACCUMULATES = 1;
constexpr int64_t PRODUCT_BF16 = 2;
constexpr int64_t GROUP_HALVES = 1;
constexpr int64_t GROUP_OFFSET = 2;

enum UnaryOp : int32_t {
  UNARY_OP_SIGMOID,
  UNARY_OP_SILU,
  UNARY_OP_RELU,
  UNARY_OP_GELU,
  UNARY_OP_GELU_TANH,
  UNARY_OP_RECIPROCAL,
  UNARY_OP_NEGATE,
  UNARY_OP_RELU2,
  UNARY_OP_COUNT,
};

enum BinaryOp : int32_t {
  BINARY_OP_ADD,
  BINARY_OP_SUB,
  BINARY_OP_MUL,
  BINARY_OP_COUNT,
};

enum Broadcast : int32_t {
  BROADCAST_FULL,
  BROADCAST_ROW,
  BROADCAST_COLUMN,
  BROADCAST_SCALAR,
  BROADCAST_COUNT,
};

enum NormKind : int32_t {
  NORM_KIND_RMS,
  NORM_KIND_LAYER,
  NORM_KIND_COUNT,
};

enum RouterScores : int32_t {
  ROUTER_SCORES_SOFTMAX,
  ROUTER_SCORES_SIGMOID,
  ROUTER_SCORES_COUNT,
};

enum SiteInput : int32_t {
  SITE_INPUT_PLAIN,
  SITE_INPUT_RMS,
  SITE_INPUT_LAYER,
  SITE_INPUT_ACTIVATION,
  SITE_INPUT_GATED,
  SITE_INPUT_CLAMPED,
  SITE_INPUT_COUNT,
};

enum PackedKind : int32_t {
  PACKED_KIND_INT4,
  PACKED_KIND_INT8,
  PACKED_KIND_INT4_F32,
  PACKED_KIND_INT8_F32,
  PACKED_KIND_BF16_BF16,
  PACKED_KIND_HALF_F32,
  PACKED_KIND_BF16_F32,
  PACKED_KIND_COUNT,
};

}  // namespace planish
