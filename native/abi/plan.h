// The operations of plans (plan.cpp): a call's kernel, with its parameters from the words. Made from src/backend/contract/abi.ts by `npm run generate:abi`; change that.
#pragma once
#include <cstring>

#include "../planish.h"
#include "../pool.h"

namespace planish {

constexpr int64_t PLAN_WORDS = 24;

template <class T>
inline T* pointer(int64_t word) {
  return reinterpret_cast<T*>(static_cast<intptr_t>(word));
}

inline double real(int64_t word) {
  double value;
  memcpy(&value, &word, sizeof value);
  return value;
}

inline int run_call(const int64_t* word, int64_t rows, int64_t chunks) {
  switch (word[0]) {
    case 0:
      return pl_packed_rows(
          static_cast<int32_t>(word[1]), word[2], word[3], pointer<const uint8_t>(word[4]),
          pointer<const int32_t>(word[5]), rows, pointer<float>(word[6]));
    case 1:
      return pl_gather_rows(
          pointer<const float>(word[1]), word[2], word[3], pointer<const int32_t>(word[4]), rows,
          pointer<float>(word[5]));
    case 2:
      return pl_site(
          static_cast<int32_t>(word[1]), static_cast<int32_t>(word[2]), pointer<const float>(word[3]),
          pointer<const float>(word[4]), rows, word[5], word[6], pointer<const float>(word[7]),
          pointer<const float>(word[8]), static_cast<float>(real(word[9])), pointer<const float>(word[10]),
          pointer<const float>(word[11]), static_cast<int32_t>(word[12]), word[13], word[14], word[15],
          pointer<const float>(word[16]), pointer<int8_t>(word[17]), pointer<float>(word[18]),
          pointer<float>(word[19]), pointer<float>(word[20]), static_cast<float>(real(word[21])),
          static_cast<float>(real(word[22])));
    case 3:
      return pl_packed_matmul_parts(
          static_cast<int32_t>(word[1]), rows, word[2], word[3], pointer<const int64_t>(word[4]),
          static_cast<int32_t>(word[5]));
    case 4:
      return pl_cache_write(
          chunks, pointer<const int32_t>(word[1]), pointer<const int32_t>(word[2]), word[3], word[4], word[5],
          pointer<float>(word[6]), pointer<float>(word[7]), pointer<float>(word[8]), pointer<const float>(word[9]),
          pointer<const float>(word[10]), static_cast<float>(real(word[11])), pointer<const float>(word[12]),
          pointer<const float>(word[13]), pointer<const float>(word[14]), pointer<const float>(word[15]),
          pointer<const float>(word[16]), pointer<const float>(word[17]), static_cast<int32_t>(word[18]),
          static_cast<int32_t>(word[19]), pointer<const float>(word[20]), pointer<uint8_t>(word[21]), word[22],
          pointer<const float>(word[23]));
    case 5:
      return pl_paged_attention(
          chunks, pointer<const int32_t>(word[1]), pointer<const int32_t>(word[2]), word[3], word[4], word[5],
          word[6], word[7], static_cast<float>(real(word[8])), static_cast<float>(real(word[9])),
          pointer<const float>(word[10]), static_cast<int32_t>(word[11]), pointer<const uint8_t>(word[12]), word[13],
          pointer<float>(word[14]), pointer<const float>(word[15]), pointer<const float>(word[16]));
    case 6:
      return pl_norm(
          static_cast<int32_t>(word[1]), pointer<const float>(word[2]), rows, word[3], word[4],
          pointer<const float>(word[5]), pointer<const float>(word[6]), static_cast<float>(real(word[7])),
          pointer<float>(word[8]));
    case 7:
      return pl_flatten_rows(
          pointer<const float>(word[1]), rows, word[2], static_cast<int32_t>(word[3]),
          static_cast<float>(real(word[4])), pointer<const float>(word[5]), word[6], pointer<const int32_t>(word[7]),
          pointer<const int32_t>(word[8]), word[9], pointer<const int32_t>(word[10]), pointer<int8_t>(word[11]),
          pointer<float>(word[12]), pointer<int32_t>(word[13]));
    case 8:
      return pl_binary(
          static_cast<int32_t>(word[1]), rows, word[2], pointer<const float>(word[3]), pointer<const float>(word[4]),
          static_cast<int32_t>(word[5]), pointer<float>(word[6]));
    case 9:
      return pl_scale(
          pointer<const float>(word[1]), rows * word[2], static_cast<float>(real(word[3])),
          static_cast<int32_t>(word[4]), pointer<float>(word[5]));
    case 10:
      return pl_unary(
          static_cast<int32_t>(word[1]), pointer<const float>(word[2]), rows * word[3], pointer<float>(word[4]));
    case 11:
      return pl_rope(
          pointer<const float>(word[1]), rows, word[2], word[3], word[4], pointer<const float>(word[5]),
          pointer<const float>(word[6]), static_cast<int32_t>(word[7]), pointer<float>(word[8]));
    case 12:
      return pl_route(
          pointer<const float>(word[1]), rows, word[2], pointer<const float>(word[3]), pointer<const float>(word[4]),
          pointer<const float>(word[5]), word[6], word[7], static_cast<int32_t>(word[8]),
          static_cast<int32_t>(word[9]), static_cast<float>(real(word[10])), word[11], word[12],
          pointer<float>(word[13]), pointer<int32_t>(word[14]));
    case 13:
      return pl_experts(
          pointer<const float>(word[1]), rows, word[2], word[3], word[4], pointer<const float>(word[5]),
          static_cast<int32_t>(word[6]), pointer<const int32_t>(word[7]), pointer<int32_t>(word[8]),
          pointer<const int64_t>(word[9]), pointer<float>(word[10]), word[11], static_cast<int32_t>(word[12]),
          pointer<float>(word[13]));
    case 14:
      return pl_arrange(
          pointer<const float>(word[1]), word[2], word[3], pointer<const float>(word[4]), word[5], word[6], rows,
          word[7], word[8], pointer<const int32_t>(word[9]), pointer<float>(word[10]));
    case 15:
      return pl_group_rows(
          static_cast<int32_t>(word[1]), word[2], word[3], word[4], word[5], pointer<const uint8_t>(word[6]),
          pointer<const int32_t>(word[7]), rows, pointer<float>(word[8]));
    case 16:
      return pl_group_matmul_parts(
          static_cast<int32_t>(word[1]), rows, word[2], word[3], word[4], word[5], pointer<const int64_t>(word[6]),
          static_cast<int32_t>(word[7]));
    case 17:
      return pl_columns(
          pointer<const float>(word[1]), rows, word[2], word[3], pointer<float>(word[4]), word[5]);
    case 18:
      return pl_grouped_norm(
          static_cast<int32_t>(word[1]), pointer<const float>(word[2]), rows, word[3], word[4],
          pointer<const float>(word[5]), word[6], static_cast<float>(real(word[7])), pointer<float>(word[8]));
    case 19:
      return pl_carry_conv(
          chunks, pointer<const int32_t>(word[1]), pointer<const int32_t>(word[2]), word[3], word[4],
          pointer<const float>(word[5]), pointer<const float>(word[6]), pointer<const float>(word[7]),
          pointer<float>(word[8]), word[9], pointer<float>(word[10]));
    case 20:
      return pl_carry_recurrence(
          chunks, pointer<const int32_t>(word[1]), pointer<const int32_t>(word[2]), word[3], word[4], word[5],
          word[6], word[7], word[8], word[9], word[10], static_cast<float>(real(word[11])),
          static_cast<float>(real(word[12])), static_cast<float>(real(word[13])), static_cast<float>(real(word[14])),
          pointer<const float>(word[15]), pointer<const float>(word[16]), pointer<const float>(word[17]),
          pointer<const float>(word[18]), pointer<const float>(word[19]), pointer<const float>(word[20]),
          pointer<float>(word[21]), word[22], pointer<float>(word[23]));
    default:
      return fail(PL_BAD_ARGUMENT, "plan: unknown operation %lld", static_cast<long long>(word[0]));
  }
}

}  // namespace planish
