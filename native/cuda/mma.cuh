// bf16 tensor-core products of matrices in shared memory (mma.sync m16n8k16, f32 accumulation).
#pragma once
#include "common.cuh"

__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void ldmatrix4_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The 16×16 piece of A at (m, k): A stored [m][k], or [k][m] when TRANSPOSED. Strides count bf16 elements, multiples
// of 8.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_a(u32 (&a)[4], const u16* base, int stride, int m, int k) {
  const int lane = threadIdx.x % 32;
  if (!TRANSPOSED) {
    ldmatrix4(a, shared_address(base + (m + lane % 16) * stride + k + lane / 16 * 8));
  } else {
    ldmatrix4_transposed(a, shared_address(base + (k + lane % 8 + lane / 16 * 8) * stride + m + lane / 8 % 2 * 8));
  }
}

// The 16×16 piece of B at (k, n), for two mma of 8 columns: B stored [k][n], or [n][k] when TRANSPOSED.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_b(u32 (&b)[4], const u16* base, int stride, int k, int n) {
  const int lane = threadIdx.x % 32;
  if (TRANSPOSED) {
    ldmatrix4(b, shared_address(base + (n + lane % 8 + lane / 16 * 8) * stride + k + lane / 8 % 2 * 8));
  } else {
    ldmatrix4_transposed(b, shared_address(base + (k + lane % 8 + lane / 8 % 2 * 8) * stride + n + lane / 16 * 8));
  }
}

// C (M16·16 × N16·16) += A·B. Its 16×16 tiles are dealt to WARPS warps; acc holds this warp's: squares of four where sixteen warps
// have up to 8×8 tiles, so that each piece of A and of B is read for two of them; else in turn.
template <int M16, int N16, int K16, bool TA, bool TB, int WARPS>
struct TileProduct {
  static constexpr bool SQUARES = WARPS == 16 && M16 > 4 && M16 <= 8 && N16 > 4 && N16 <= 8;
  static constexpr int TILES = M16 * N16;
  static constexpr int PER_WARP = SQUARES ? 4 : (TILES + WARPS - 1) / WARPS;

  // The warp's tile `s` is at (m, n), if there is one.
  static __device__ __forceinline__ bool place(int s, int& m, int& n) {
    const int warp = threadIdx.x / 32;
    if (SQUARES) {
      m = warp / 4 * 2 + s / 2, n = warp % 4 * 2 + s % 2;
      return m < M16 && n < N16;
    }
    m = (warp + s * WARPS) / N16, n = (warp + s * WARPS) % N16;
    return warp + s * WARPS < TILES;
  }

  static __device__ __forceinline__ void run(const u16* a, int a_stride, const u16* b, int b_stride,
                                             float (&acc)[PER_WARP][8]) {
    multiply<false>(a, nullptr, a_stride, b, nullptr, b_stride, acc);
  }

  // The same of pairs of parts; the product of the low parts is below what f32 sums keep.
  static __device__ __forceinline__ void run_parts(const u16* a, const u16* a_low, int a_stride, const u16* b,
                                                   const u16* b_low, int b_stride, float (&acc)[PER_WARP][8]) {
    multiply<true>(a, a_low, a_stride, b, b_low, b_stride, acc);
  }

  template <bool PARTS>
  static __device__ __forceinline__ void multiply(const u16* a, const u16* a_low, int a_stride, const u16* b,
                                                  const u16* b_low, int b_stride, float (&acc)[PER_WARP][8]) {
    // Where the warps are a multiple of a row of tiles, a warp's tiles lie in one column and share B.
    constexpr bool ONE_COLUMN = !SQUARES && WARPS % N16 == 0;
    constexpr int COLUMNS = SQUARES ? 2 : 1, PIECES = PARTS ? 2 : 1;
#pragma unroll
    for (int k = 0; k < K16; k++) {
      u32 fa[PIECES][4], fb[COLUMNS][PIECES][4];
#pragma unroll
      for (int s = 0; s < PER_WARP; s++) {
        int m, n;
        const bool there = place(s, m, n);
        const int column = SQUARES ? s % 2 : 0;
        if (SQUARES ? s < 2 && n < N16 : ONE_COLUMN ? s == 0 : there) {
          load_b<TB>(fb[column][0], b, b_stride, k * 16, n * 16);
          if (PARTS) load_b<TB>(fb[column][PIECES - 1], b_low, b_stride, k * 16, n * 16);
        }
        if (SQUARES ? s % 2 == 0 && m < M16 : there) {
          load_a<TA>(fa[0], a, a_stride, m * 16, k * 16);
          if (PARTS) load_a<TA>(fa[PIECES - 1], a_low, a_stride, m * 16, k * 16);
        }
        if (!there) continue;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          if (PARTS) {
            mma(acc[s] + 4 * half, fa[PIECES - 1], fb[column][0][2 * half], fb[column][0][2 * half + 1]);
            mma(acc[s] + 4 * half, fa[0], fb[column][PIECES - 1][2 * half], fb[column][PIECES - 1][2 * half + 1]);
          }
          mma(acc[s] + 4 * half, fa[0], fb[column][0][2 * half], fb[column][0][2 * half + 1]);
        }
      }
    }
  }

  // visit(i, j, v0, v1) for this thread's elements, two neighbours of a row at a time.
  template <class Visit>
  static __device__ __forceinline__ void each(float (&acc)[PER_WARP][8], Visit visit) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < PER_WARP; s++) {
      int m, n;
      if (!place(s, m, n)) continue;
      m = m * 16 + lane / 4, n = n * 16 + lane % 4 * 2;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        visit(m, n + half * 8, acc[s][half * 4 + 0], acc[s][half * 4 + 1]);
        visit(m + 8, n + half * 8, acc[s][half * 4 + 2], acc[s][half * 4 + 3]);
      }
    }
  }

  static __device__ __forceinline__ void clear(float (&acc)[PER_WARP][8]) {
#pragma unroll
    for (int s = 0; s < PER_WARP; s++)
#pragma unroll
      for (int i = 0; i < 8; i++) acc[s][i] = 0.f;
  }
};
