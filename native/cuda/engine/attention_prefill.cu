// Attention of many queries over the paged cache, which holds their own keys and values already. A page at a time is
// unpacked to halves in shared memory (codes less their zero point, exact) while the one before is multiplied.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1.
//
// Queries and weights are single halves: a score errs by at most 2⁻¹¹·Σ|q·k|, as in FP16 attention.
//
// Macros: DIM (a multiple of 32), BITS 4 or 16, OUT16.
#include "engine/attention_pages.cuh"

// A block has 16 queries per warp: 128 (src/backend/cuda/infer/kernels.ts cuts them so).
constexpr int THREADS = PAGE_THREADS;
constexpr int KEY_STRIDE = DIM + 8, VALUE_STRIDE = PAGE_TOKENS + 8;
constexpr int KEY_TILE = PAGE_TOKENS * KEY_STRIDE, VALUE_TILE = DIM * VALUE_STRIDE;
constexpr int BUFFER = KEY_TILE + VALUE_TILE;

struct Padded {
  static __device__ __forceinline__ int key(int token, int piece) { return token * KEY_STRIDE + piece * 8; }
  static __device__ __forceinline__ int value(int row, int piece) { return row * VALUE_STRIDE + piece * 8; }
};

// q: halves [row][heads·DIM]. blocks: {first row, rows, position of the first, offset into pages} per block of at most
// 128 queries; those of a sequence share its pages. blockIdx: head, block (longest first). out: [row][heads·DIM].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_prefill(const u16* q, const int* blocks, const int* pages, i64 num_heads, i64 kv_heads, i64 window,
                      double scale, const u8* cache, i64 page_bytes, void* out) {
  extern __shared__ __align__(16) u16 memory[];
  __shared__ float scales[2][SCALES];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  release_next();
  wait_for_earlier();
  const i64 row0 = blocks[4 * blockIdx.y];
  const int rows = blocks[4 * blockIdx.y + 1], position0 = blocks[4 * blockIdx.y + 2];
  const int* const list = pages + blocks[4 * blockIdx.y + 3];
  const i64 head = blockIdx.x, kv_head = head / (num_heads / kv_heads);
  const int m = 16 * warp, length = position0 + rows;
  const float unit = (float)scale * LOG2E;
  u32 a[DIM / 16][4];
#pragma unroll
  for (int s = 0; s < DIM / 16; s++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int row = m + g + c % 2 * 8;
      a[s][c] =
          row < rows ? *(const u32*)(q + ((row0 + row) * num_heads + head) * DIM + 16 * s + c / 2 * 8 + 2 * t4) : 0;
    }
  float o[DIM / 8][4] = {};
  float top[2] = {-INFINITE, -INFINITE}, total[2] = {0.f, 0.f};
  const int first_visible = window > 0 && position0 >= window ? position0 - (int)window + 1 : 0;
  const int begin = first_visible / PAGE_TOKENS, end = (length + PAGE_TOKENS - 1) / PAGE_TOKENS;
  Packed packed;
  const auto bring = [&](int index, int buffer) {
    const u8* const page = cache + list[index] * page_bytes + kv_head * Page::BYTES;
    fetch<Padded>(packed, page, length - index * PAGE_TOKENS, memory + buffer * BUFFER);
  };
  const auto place = [&](int index, int buffer) {
    u16* const tile = memory + buffer * BUFFER;
    unpack<Padded>(packed, tile, tile + KEY_TILE, scales[buffer], unit, length - index * PAGE_TOKENS);
  };
  bring(begin, 0);
  place(begin, 0);
  __syncthreads();
  for (int index = begin; index < end; index++) {
    const int now = (index - begin) % 2;
    if (index + 1 < end) bring(index + 1, 1 - now);
    const u16* const keys = memory + now * BUFFER;
    const u16* const values = keys + KEY_TILE;
    const int last_row = m + 15 < rows ? m + 15 : rows - 1;
    // Warps whose queries all come before this page, or whose rows do not exist, have nothing to do.
    if (m < rows && index * PAGE_TOKENS <= position0 + last_row) {
      float scores[8][4] = {};
#pragma unroll
      for (int s = 0; s < DIM / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          u32 b[4];
          piece_b<true>(b, keys, KEY_STRIDE, 16 * s, 16 * i);
          mma_half(scores[2 * i], a[s], b[0], b[1]);
          mma_half(scores[2 * i + 1], a[s], b[2], b[3]);
        }
      const bool edge = index * PAGE_TOKENS + PAGE_TOKENS > position0 + m + 1 || window > 0;
      float highest[2] = {-INFINITE, -INFINITE};
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const int token = 8 * i + 2 * t4 + c % 2, position = position0 + m + g + c / 2 * 8,
                    at = index * PAGE_TOKENS + token;
          if (BITS == 4) scores[i][c] = scores[i][c] * scales[now][token] + scales[now][PAGE_TOKENS + token];
          else scores[i][c] *= unit;
          if (edge && (at > position || (window > 0 && at + window <= position))) scores[i][c] = -INFINITE;
          highest[c / 2] = fmaxf(highest[c / 2], scores[i][c]);
        }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        highest[h] = fmaxf(highest[h], __shfl_xor_sync(FULL_MASK, highest[h], 1));
        highest[h] = fmaxf(highest[h], __shfl_xor_sync(FULL_MASK, highest[h], 2));
        const float before = top[h];
        top[h] = fmaxf(before, highest[h]);
        const float shrink = before == -INFINITE ? 0.f : power_of2(before - top[h]);
        total[h] *= shrink;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) o[n][2 * h] *= shrink, o[n][2 * h + 1] *= shrink;
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const float level = top[c / 2] == -INFINITE ? 0.f : top[c / 2];
          scores[i][c] = power_of2(scores[i][c] - level);
          total[c / 2] +=
              BITS == 4 ? scores[i][c] * scales[now][2 * PAGE_TOKENS + 8 * i + 2 * t4 + c % 2] : scores[i][c];
        }
#pragma unroll
      for (int u = 0; u < 4; u++) {
        const u32 p[4] = {pack_small(scores[2 * u][0], scores[2 * u][1]),
                          pack_small(scores[2 * u][2], scores[2 * u][3]),
                          pack_small(scores[2 * u + 1][0], scores[2 * u + 1][1]),
                          pack_small(scores[2 * u + 1][2], scores[2 * u + 1][3])};
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
          u32 b[4];
          piece_b<true>(b, values, VALUE_STRIDE, 16 * u, 16 * n);
          mma_half(o[2 * n], p, b[0], b[1]);
          mma_half(o[2 * n + 1], p, b[2], b[3]);
        }
      }
    }
    if (index + 1 < end) place(index + 1, 1 - now);
    __syncthreads();
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    total[h] += __shfl_xor_sync(FULL_MASK, total[h], 1);
    total[h] += __shfl_xor_sync(FULL_MASK, total[h], 2);
    const int row = m + g + 8 * h;
    if (row >= rows) continue;
    const float inverse = total[h] == 0.f ? 0.f : 1.f / total[h];
    const i64 to = ((row0 + row) * num_heads + head) * DIM;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      const float v0 = o[n][2 * h] * inverse, v1 = o[n][2 * h + 1] * inverse;
      if (OUT16) *(u32*)((u16*)out + to + 8 * n + 2 * t4) = pack_half(v0, v1);
      else *(float2*)((float*)out + to + 8 * n + 2 * t4) = make_float2(v0, v1);
    }
  }
}
