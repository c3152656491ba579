// Attention of many queries over the paged cache, which holds their own keys and values already. A page at a time is
// unpacked to halves in shared memory (codes less their zero point, exact) while the one before is multiplied.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1.
//
// Queries and weights are single halves: a score errs by at most 2⁻¹¹·Σ|q·k|, as in FP16 attention.
//
// Macros: DIM (a multiple of 32), BITS 4 or 16, OUT16.
#include "engine/attention.cuh"

// A block has 16 queries per warp: 128 (src/engine/cuda/kernels.ts cuts them so).
constexpr int WARPS = 8, THREADS = WARPS * 32;
constexpr int KEY_STRIDE = DIM + 8, VALUE_STRIDE = PAGE_TOKENS + 8;
constexpr int KEY_TILE = PAGE_TOKENS * KEY_STRIDE, VALUE_TILE = DIM * VALUE_STRIDE;
constexpr int BUFFER = KEY_TILE + VALUE_TILE;
// 16-byte groups of packed keys (and as many of values) per thread.
constexpr int GROUPS = PAGE_TOKENS * DIM * BITS / 8 / 16;
constexpr int PER_THREAD = (GROUPS + THREADS - 1) / THREADS;

struct Packed {
  uint4 keys[PER_THREAD], values[PER_THREAD];
  u16 keyZero[PER_THREAD];
  u32 valueZero[BITS == 4 ? 8 : 1];
  float keyScale, valueScale;
};

__device__ __forceinline__ void fetch(Packed& p, const u8* page, int here) {
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int group = threadIdx.x + i * THREADS;
    if (group >= GROUPS) break;
    p.keys[i] = *(const uint4*)(page + Page::KEYS + group * 16);
    p.values[i] = *(const uint4*)(page + Page::VALUES + group * 16);
    if (BITS == 4) p.keyZero[i] = *(const u16*)(page + Page::KEY_ZERO + group * 32 / DIM * 2);
  }
  if (BITS == 4) {
#pragma unroll
    for (int j = 0; j < 8; j++) p.valueZero[BITS == 4 ? j : 0] = *(const u32*)(page + Page::VALUE_ZERO + (8 * j + 2 * (threadIdx.x % 4)) * 2);
    if (threadIdx.x < PAGE_TOKENS) {
      const bool written = threadIdx.x < here;
      p.keyScale = written ? ((const float*)(page + Page::KEY_SCALE))[threadIdx.x] : 1.f;
      p.valueScale = written ? ((const float*)(page + Page::VALUE_SCALE))[threadIdx.x] : 1.f;
    }
  }
}

__device__ __forceinline__ void unpack(const Packed& p, u16* tile, float* scales, float scale, int here) {
  u16* const keys = tile;
  u16* const values = tile + KEY_TILE;
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int group = threadIdx.x + i * THREADS;
    if (group >= GROUPS) break;
    const u32 k[4] = {p.keys[i].x, p.keys[i].y, p.keys[i].z, p.keys[i].w};
    const u32 v[4] = {p.values[i].x, p.values[i].y, p.values[i].z, p.values[i].w};
    if (BITS == 4) {
      const int token = group * 32 / DIM, column = group * 32 % DIM;
      u32 zero, zero16;
      zeroForms(p.keyZero[i] | (u32)p.keyZero[i] << 16, zero, zero16);
#pragma unroll
      for (int w = 0; w < 4; w++)
        *(uint4*)(keys + token * KEY_STRIDE + column + 8 * w) =
            make_uint4(nibblePair(k[w], 0, zero, zero16), nibblePair(k[w], 1, zero, zero16), nibblePair(k[w], 2, zero, zero16),
                       nibblePair(k[w], 3, zero, zero16));
      const int t = group % 4, first = group / 32 * 16 + group / 4 % 8;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        u32 less, less16;
        zeroForms(p.valueZero[BITS == 4 ? j : 0], less, less16);
#pragma unroll
        for (int half = 0; half < 2; half++)
          *(u32*)(values + (first + 8 * half) * VALUE_STRIDE + 8 * j + 2 * t) = nibblePair(v[2 * half + j / 4], j % 4, less, less16);
      }
    } else {
      const int token = group * 8 / DIM, column = group * 8 % DIM;
      *(uint4*)(keys + token * KEY_STRIDE + column) = p.keys[i];
      const int j0 = group / 32 % 2 * 4, t = group % 4, g = group / 4 % 8, n = group / 64;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int at = 8 * (j0 + j) + 2 * t;
        u32 pair = v[j];
        if (at >= here) pair = 0;
        else if (at + 1 >= here) pair &= 0xffffu;
        *(u32*)(values + (8 * n + g) * VALUE_STRIDE + at) = pair;
      }
    }
  }
  if (BITS == 4 && threadIdx.x < PAGE_TOKENS) {
    scales[threadIdx.x] = p.keyScale * scale;
    scales[PAGE_TOKENS + threadIdx.x] = log2f(p.valueScale);
    scales[2 * PAGE_TOKENS + threadIdx.x] = 1.f / p.valueScale;
  }
}

// q: halves [row][heads·DIM]. blocks: {first row, rows, position of the first, offset into pages} per block of at most
// 128 queries; those of a sequence share its pages. blockIdx: head, block (longest first). out: [row][heads·DIM].
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_prefill(const u16* q, const int* blocks, const int* pages, i64 numHeads, i64 kvHeads, i64 window, double scale,
                      const u8* cache, i64 pageBytes, void* out) {
  extern __shared__ __align__(16) u16 memory[];
  __shared__ float scales[2][3 * PAGE_TOKENS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  releaseNext();
  waitForEarlier();
  const i64 row0 = blocks[4 * blockIdx.y];
  const int rows = blocks[4 * blockIdx.y + 1], position0 = blocks[4 * blockIdx.y + 2];
  const int* const list = pages + blocks[4 * blockIdx.y + 3];
  const i64 head = blockIdx.x, kvHead = head / (numHeads / kvHeads);
  const int m = 16 * warp, length = position0 + rows;
  const float unit = (float)scale * LOG2E;
  u32 a[DIM / 16][4];
#pragma unroll
  for (int s = 0; s < DIM / 16; s++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int row = m + g + c % 2 * 8;
      a[s][c] = row < rows ? *(const u32*)(q + ((row0 + row) * numHeads + head) * DIM + 16 * s + c / 2 * 8 + 2 * t4) : 0;
    }
  float o[DIM / 8][4] = {};
  float top[2] = {-INFINITE, -INFINITE}, total[2] = {0.f, 0.f};
  const int firstVisible = window > 0 && position0 >= window ? position0 - (int)window + 1 : 0;
  const int begin = firstVisible / PAGE_TOKENS, end = (length + PAGE_TOKENS - 1) / PAGE_TOKENS;
  const auto pageAt = [&](int index) { return cache + list[index] * pageBytes + kvHead * Page::BYTES; };
  Packed packed;
  fetch(packed, pageAt(begin), length - begin * PAGE_TOKENS);
  unpack(packed, memory, scales[0], unit, length - begin * PAGE_TOKENS);
  __syncthreads();
  for (int index = begin; index < end; index++) {
    const int now = (index - begin) % 2;
    if (index + 1 < end) fetch(packed, pageAt(index + 1), length - (index + 1) * PAGE_TOKENS);
    const u16* const keys = memory + now * BUFFER;
    const u16* const values = keys + KEY_TILE;
    const int lastRow = m + 15 < rows ? m + 15 : rows - 1;
    // Warps whose queries all come before this page, or whose rows do not exist, have nothing to do.
    if (m < rows && index * PAGE_TOKENS <= position0 + lastRow) {
      float scores[8][4] = {};
#pragma unroll
      for (int s = 0; s < DIM / 16; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          u32 b[4];
          pieceB<true>(b, keys, KEY_STRIDE, 16 * s, 16 * i);
          mmaHalf(scores[2 * i], a[s], b[0], b[1]);
          mmaHalf(scores[2 * i + 1], a[s], b[2], b[3]);
        }
      const bool edge = index * PAGE_TOKENS + PAGE_TOKENS > position0 + m + 1 || window > 0;
      float highest[2] = {-INFINITE, -INFINITE};
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const int token = 8 * i + 2 * t4 + c % 2, position = position0 + m + g + c / 2 * 8, at = index * PAGE_TOKENS + token;
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
        const float shrink = before == -INFINITE ? 0.f : powerOf2(before - top[h]);
        total[h] *= shrink;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) o[n][2 * h] *= shrink, o[n][2 * h + 1] *= shrink;
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const float level = top[c / 2] == -INFINITE ? 0.f : top[c / 2];
          scores[i][c] = powerOf2(scores[i][c] - level);
          total[c / 2] += BITS == 4 ? scores[i][c] * scales[now][2 * PAGE_TOKENS + 8 * i + 2 * t4 + c % 2] : scores[i][c];
        }
#pragma unroll
      for (int u = 0; u < 4; u++) {
        const u32 p[4] = {packSmall(scores[2 * u][0], scores[2 * u][1]), packSmall(scores[2 * u][2], scores[2 * u][3]),
                          packSmall(scores[2 * u + 1][0], scores[2 * u + 1][1]), packSmall(scores[2 * u + 1][2], scores[2 * u + 1][3])};
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
          u32 b[4];
          pieceB<true>(b, values, VALUE_STRIDE, 16 * u, 16 * n);
          mmaHalf(o[2 * n], p, b[0], b[1]);
          mmaHalf(o[2 * n + 1], p, b[2], b[3]);
        }
      }
    }
    if (index + 1 < end) unpack(packed, memory + (1 - now) * BUFFER, scales[1 - now], unit, length - (index + 1) * PAGE_TOKENS);
    __syncthreads();
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    total[h] += __shfl_xor_sync(FULL_MASK, total[h], 1);
    total[h] += __shfl_xor_sync(FULL_MASK, total[h], 2);
    const int row = m + g + 8 * h;
    if (row >= rows) continue;
    const float inverse = total[h] == 0.f ? 0.f : 1.f / total[h];
    const i64 to = ((row0 + row) * numHeads + head) * DIM;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      const float v0 = o[n][2 * h] * inverse, v1 = o[n][2 * h + 1] * inverse;
      if (OUT16) *(u32*)((u16*)out + to + 8 * n + 2 * t4) = packHalf(v0, v1);
      else *(float2*)((float*)out + to + 8 * n + 2 * t4) = make_float2(v0, v1);
    }
  }
}
