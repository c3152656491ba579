// What the kernels of a site share (site.cu: a block of threads per token; site_cluster.cu: several): macros, the row's
// geometry, products. The macros are explained in site.cu.
#pragma once
#include "engine/engine.cuh"

#ifndef LEFT
#define LEFT 64
#endif
#ifndef RIGHT
#define RIGHT 64
#endif
#ifndef HAS_LEFT
#define HAS_LEFT 1
#endif
#ifndef HAS_RIGHT
#define HAS_RIGHT 1
#endif
#ifndef INPUT
#define INPUT 1
#endif
#ifndef IN16
#define IN16 0
#endif
#ifndef TAIL
#define TAIL 1
#endif
#ifndef QMAX
#define QMAX 7
#endif

#ifndef SPAN
#define SPAN 0
#endif
#ifndef ZERO
#define ZERO 0
#endif
#ifndef SUMS
#define SUMS 0
#endif

#ifndef HEIGHT
#define HEIGHT (LEFT * RIGHT > 8192 ? 32 : 16)
#endif
#ifndef BM
#define BM HEIGHT
#endif

#define PLAIN 0
#define RMS 1
#define SILU_UP 2
#define SPLITS 3

constexpr int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Padded sizes of the row and of its matrices, in halves.
constexpr int ROWS = up_to(LEFT, HEIGHT), COLS = up_to(RIGHT, 32);
constexpr int TILE_STRIDE = COLS + 8, LEFT_STRIDE = ROWS + 8, RIGHT_STRIDE = COLS + 8;
constexpr int WIDTH = LEFT * RIGHT, BLOCKS = up_to(WIDTH, 128) / 128;
constexpr int TILE = ROWS * TILE_STRIDE;

// The largest over a warp of floats that are not negative, which order as integers do.
__device__ __forceinline__ float warp_largest(float x) {
  return __uint_as_float(__reduce_max_sync(FULL_MASK, __float_as_uint(x)));
}

// acc (BM×32 of this warp) = A · B: A at row m, B at column n, DEPTH/16 steps.
template <bool TRANSPOSED_A, int DEPTH>
__device__ __forceinline__ void product(float (&acc)[BM / 16][4][4], const u16* a, int a_stride, int a_tail,
                                        const u16* b, int b_stride, int b_tail, int m, int n) {
#pragma unroll 2
  for (int k = 0; k < DEPTH; k += 16) {
    u32 fb[2][4], ft[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      piece_b<false>(fb[i], b, b_stride, k, n + 16 * i);
      if (b_tail) piece_b<false>(ft[i], b + b_tail, b_stride, k, n + 16 * i);
    }
#pragma unroll
    for (int i = 0; i < BM / 16; i++) {
      u32 fa[4];
      piece_a<TRANSPOSED_A>(fa, a, a_stride, m + 16 * i, k);
#pragma unroll
      for (int j = 0; j < 4; j++) mma_half(acc[i][j], fa, fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      if (b_tail) {
#pragma unroll
        for (int j = 0; j < 4; j++) mma_half(acc[i][j], fa, ft[j / 2][j % 2 * 2], ft[j / 2][j % 2 * 2 + 1]);
      }
      if (a_tail) {
        piece_a<TRANSPOSED_A>(fa, a + a_tail, a_stride, m + 16 * i, k);
#pragma unroll
        for (int j = 0; j < 4; j++) mma_half(acc[i][j], fa, fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

// The exponent of a power of two whose inverse brings the largest value into [1, 2), or, among values that stay halves (RANGE
// 15), at least as near as a half can express.
template <int RANGE>
__device__ __forceinline__ int range_of(float top) {
  const int exponent = top == 0.f ? 0 : (int)((__float_as_uint(top) >> 23) & 255) - 127;
  return exponent < -RANGE ? -RANGE : exponent > RANGE ? RANGE : exponent;
}
