// The engine's integer product: out[token][feature] = codes · weights, times the token's and the feature's scales.
//
// Weights are the A operand and stay in registers: 4-bit codes are widened there (code·16 in a byte: one AND, and one
// shift more for the other nibble; the sum is divided by 16 in the scales, which is exact). Tokens are the columns. A
// block computes 256 features: two warpgroups, each two tiles of 64. This file holds what prefill (gemm_prefill.cu: 128
// tokens per tile, limited by the matrix units) and decode (gemm.cu: 8 … 64 tokens, limited by reading weights) share.
//
// Macros: WBITS 4 or 8; TOKENS 8 … 128; EPILOGUE 0 store, 1 add to out (f32), 2 SiLU(gate)·up (the first tile of a
// warpgroup holds gate, the second up); OUT16 1: halves.
//
// Weights: [tile of 256][block of 128 columns][warpgroup][tile of 64][half block][thread][16·WBITS/4 bytes], what a
// thread of mma holds as A; src/backend/cuda/infer/weights.ts packs them. Codes: engine.cuh, codeOffset.
#pragma once
#include "engine/bulk.cuh"
#include "engine/wgmma.cuh"

#ifndef WBITS
#define WBITS 4
#endif
#ifndef TOKENS
#define TOKENS 128
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef EPILOGUE
#define EPILOGUE 0
#endif
#ifndef OUT16
#define OUT16 0
#endif
#ifndef NIBBLES
#define NIBBLES 0
#endif

#define STORE 0
#define ADD 1
#define GATED 2

constexpr int FEATURES = 256;
constexpr int WEIGHT_BYTES = FEATURES * 128 * WBITS / 8;
constexpr int CODE_BYTES = TOKENS * 128;
[[maybe_unused]] constexpr int STAGE_BYTES = WEIGHT_BYTES + CODE_BYTES;
constexpr int SUMS = TOKENS / 2;  // per thread and tile of 64
constexpr int CONSUMERS = 256;
// Of a sum: 4-bit weights are widened to sixteen times the code, unless nibbles are multiplied as they are.
constexpr float UNIT = WBITS == 4 && !NIBBLES ? 1.f / 16 : 1.f;

struct Problem {
  const u8* weights;
  const i8* codes;
  const float* token_scale;
  const float* feature_scale;
  const float* bias;
  void* out;
  i64 tokens, capacity, blocks, features, out_stride, first_of_set1, first_of_set2;
};

// Codes and scales of the set that a tile of features reads.
__device__ __forceinline__ int set_of(const Problem& p, i64 tile) {
  return tile >= p.first_of_set2 ? 2 : tile >= p.first_of_set1 ? 1 : 0;
}

// Feature of a thread's row 8h + g of tile `t` (of 64) in this warp, relative to the block of features.
__device__ __forceinline__ int feature_of(int warpgroup, int warp, int t, int h, int g) {
  if (EPILOGUE == GATED) return warpgroup * 64 + warp * 16 + 4 * (g / 2) + 2 * h + g % 2;
  return warpgroup * 128 + warp * 32 + 8 * (g / 2) + 4 * t + 2 * h + g % 2;
}

// To some 2⁻²¹ of itself; 0 where e^-x is infinite.
__device__ __forceinline__ float silu(float x) { return x * reciprocal(1.f + power_of2(x * -1.4426950408889634f)); }

// Values of one feature (two tiles for GATED) and one token.
__device__ __forceinline__ void put(const Problem& p, i64 token, i64 feature, float value) {
  if (token >= p.tokens || feature >= p.features) return;
  const i64 at = token * p.out_stride + feature;
  if (OUT16) ((u16*)p.out)[at] = to_half(value);
  else if (EPILOGUE == ADD) ((float*)p.out)[at] += value;
  else ((float*)p.out)[at] = value;
}

// A warp's results to memory: GROUPS times eight tokens from token0 on, features of `tile`. value(t, h, j, e) is what this
// lane has of row 8h + g of its tile `t` and of token 8j + 2·(lane % 4) + e. After exchanging rows and columns among the
// lanes, a lane has 8 (GATED: 4) consecutive features of one token.
template <int GROUPS, class Value>
__device__ __forceinline__ void store_values(const Problem& p, const Value& value, int warpgroup, int warp, i64 tile,
                                             i64 token0) {
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const i64 base = tile * (EPILOGUE == GATED ? FEATURES / 2 : FEATURES);
  constexpr int width = EPILOGUE == GATED ? 4 : 8;
  const i64 first =
      base + (EPILOGUE == GATED ? warpgroup * 64 + warp * 16 + 4 * t4 : warpgroup * 128 + warp * 32 + 8 * t4);
  const bool wide = first + width <= p.features && p.out_stride % 8 == 0;
  // Of this lane's rows, which are 8 tokens apart.
  const int left = (int)(p.tokens - token0 < 8 * GROUPS ? p.tokens - token0 : 8 * GROUPS) - g;
  constexpr int ELEMENT = OUT16 ? 2 : 4;
  u8* to = (u8*)p.out + ((token0 + g) * p.out_stride + first) * ELEMENT;
  const i64 step = 8 * p.out_stride * ELEMENT;
  // What is added to is read for AHEAD rows at a time.
  constexpr int AHEAD = EPILOGUE != ADD || GROUPS == 1 ? 1 : GROUPS < 16 ? 2 : 4;
#pragma unroll
  for (int j0 = 0; j0 < GROUPS; j0 += AHEAD) {
    f4 old[AHEAD][2];
    if (EPILOGUE == ADD && wide) {
#pragma unroll
      for (int a = 0; a < AHEAD; a++)
        if (8 * (j0 + a) < left) {
          old[a][0] = *(const f4*)(to + a * step);
          old[a][1] = *(const f4*)(to + a * step + 16);
        }
    }
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      const int j = j0 + a;
      float v[2][2][2];  // tile, h, e
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int e = 0; e < 2; e++) v[t][h][e] = value(t, h, j, e);
      if (OUT16) {
        u32 word[4];
        if (EPILOGUE == GATED) {
#pragma unroll
          for (int h = 0; h < 2; h++)
            word[h] = transposed(pack_half(silu(v[0][h][0]) * v[1][h][0], silu(v[0][h][1]) * v[1][h][1]));
        } else {
#pragma unroll
          for (int t = 0; t < 2; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) word[2 * t + h] = transposed(pack_half(v[t][h][0], v[t][h][1]));
        }
        if (8 * j < left) {
          if (wide) {
            if (EPILOGUE == GATED) *(uint2*)to = make_uint2(word[0], word[1]);
            else *(uint4*)to = make_uint4(word[0], word[1], word[2], word[3]);
          } else {
#pragma unroll
            for (int i = 0; i < width; i++)
              if (first + i < p.features) ((u16*)to)[i] = (u16)(word[i / 2] >> (16 * (i % 2)));
          }
        }
      } else {
        float r[8];
#pragma unroll
        for (int i = 0; i < width / 2; i++) {
          const int t = EPILOGUE == GATED ? 0 : i / 2, h = i % 2;
          float x = v[t][h][0], y = v[t][h][1];
          if (EPILOGUE == GATED) x = silu(v[0][h][0]) * v[1][h][0], y = silu(v[0][h][1]) * v[1][h][1];
          const u32 low = transposed(__byte_perm(__float_as_uint(x), __float_as_uint(y), 0x5410));
          const u32 high = transposed(__byte_perm(__float_as_uint(x), __float_as_uint(y), 0x7632));
          r[2 * i] = __uint_as_float(__byte_perm(low, high, 0x5410));
          r[2 * i + 1] = __uint_as_float(__byte_perm(low, high, 0x7632));
        }
        if (8 * j < left) {
          if (wide) {
#pragma unroll
            for (int q = 0; q < width / 4; q++) {
              f4 word = {r[4 * q], r[4 * q + 1], r[4 * q + 2], r[4 * q + 3]};
              if (EPILOGUE == ADD) {
                const f4 x = old[a][q];
                word.x += x.x, word.y += x.y, word.z += x.z, word.w += x.w;
              }
              *(f4*)(to + 16 * q) = word;
            }
          } else {
#pragma unroll
            for (int i = 0; i < width; i++)
              if (first + i < p.features) ((float*)to)[i] = EPILOGUE == ADD ? ((float*)to)[i] + r[i] : r[i];
          }
        }
      }
      to += step;
    }
  }
}

// A warp's sums of products to memory (store_values). The scales and biases are those of the tile: of its tokens, and of
// its features in the order of rows as they are packed (gate's, then up's, for GATED). Scales beyond the last token may be
// anything.
template <int GROUPS>
__device__ __forceinline__ void store_sums(const Problem& p, int (&sums)[2][4 * GROUPS], int warpgroup, int warp,
                                           i64 tile, i64 token0, const float* token_scale, const float* feature_scale,
                                           const float* bias) {
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  float scale[2][2], add[2][2];
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int f = (EPILOGUE == GATED ? t * (FEATURES / 2) : 0) + feature_of(warpgroup, warp, t, h, g);
      scale[t][h] = feature_scale[f] * UNIT;
      add[t][h] = bias ? bias[f] : 0.f;
    }
  const auto value = [&](int t, int h, int j, int e) {
    const float2 s = *(const float2*)(token_scale + 8 * j + 2 * t4);
    return (float)sums[t][4 * j + 2 * h + e] * (scale[t][h] * (e ? s.y : s.x)) + add[t][h];
  };
  store_values<GROUPS>(p, value, warpgroup, warp, tile, token0);
}

// A thread's A operand for 32 columns from its packed bytes.
__device__ __forceinline__ void widen(const uint4& words, u32 (&a)[2][4]) {
  const u32 w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int s = 0; s < 2; s++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      a[s][2 * i] = (w[2 * s + i] << 4) & 0xf0f0f0f0u;
      a[s][2 * i + 1] = w[2 * s + i] & 0xf0f0f0f0u;
    }
}

__device__ __forceinline__ void operand_a(const u8* from, u32 (&a)[2][4]) {
  if (WBITS == 4) {
    widen(*(const uint4*)from, a);
  } else {
#pragma unroll
    for (int s = 0; s < 2; s++) {
      const uint4 w = *(const uint4*)(from + 16 * s);
      a[s][0] = w.x, a[s][1] = w.y, a[s][2] = w.z, a[s][3] = w.w;
    }
  }
}

#define PARAMETERS                                                                                             \
  const u8 *weights, const i8 *codes, const float *token_scale, const float *feature_scale, const float *bias, \
      void *out, i64 tokens, i64 capacity, i64 blocks, i64 features, i64 out_stride, i64 first_of_set1,        \
      i64 first_of_set2
#define PROBLEM                                                                       \
  {weights,  codes,  token_scale, feature_scale, bias,          out,          tokens, \
   capacity, blocks, features,    out_stride,    first_of_set1, first_of_set2}
