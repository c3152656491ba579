// Attention of many queries over the paged cache on Hopper: what attention_prefill.cu computes, with wgmma, which reads a
// page's keys and values from shared memory once for 64 queries instead of once for 16.
//
// The scores of the next page are multiplied while this page's become weights, and the page after it is unpacked while the
// weights meet the values; three pages are in shared memory. What is multiplied in the background keeps its registers to
// itself: two arrays of scores take turns.
// Source: Shah et al. 2024 (FlashAttention-3), section 3.2, for the order of a step.
//
// Macros: DIM (a multiple of 32), BITS 4 or 16, OUT16.
#include "engine/attention_pages.cuh"
#include "engine/wgmma_half.cuh"

constexpr int PAGES = 3;
// Halves of a page: keys in panels of 64 columns [64 tokens][64], values [DIM][64 tokens].
constexpr int PANEL = PAGE_TOKENS * 64, KEYS = (DIM + 63) / 64 * PANEL, PAGE_HALVES = KEYS + DIM * PAGE_TOKENS;
// Weights grow up to 2⁸ before the sums are scaled to a larger score: seldom, and they are kept as halves and f32, which
// lose nothing to it.
#define TOLERATED 8.f

// Rows of 128 bytes in the 128-byte swizzle: 16-byte piece p of row r lies at p ^ (r % 8).
struct Swizzled {
  static __device__ __forceinline__ int key(int token, int piece) {
    return piece / 8 * PANEL + token * 64 + (piece % 8 ^ token % 8) * 8;
  }
  static __device__ __forceinline__ int value(int row, int piece) { return row * 64 + (piece ^ row % 8) * 8; }
};

struct Rows {
  float top[2], total[2];
};

// A page's scores become weights; `o` is scaled where a row's largest score grows too much.
__device__ __forceinline__ void weigh(float (&scores)[32], float (&o)[DIM / 2], Rows& r, const float* scales,
                                      float unit, int first, int position, int window, bool edge) {
  const int t4 = threadIdx.x % 4;
  float highest[2] = {-INFINITE, -INFINITE};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float2 by = make_float2(unit, unit), more = make_float2(0.f, 0.f);
    if (BITS == 4)
      by = *(const float2*)(scales + 8 * i + 2 * t4), more = *(const float2*)(scales + PAGE_TOKENS + 8 * i + 2 * t4);
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float& score = scores[4 * i + 2 * h + e];
        score = score * (e ? by.y : by.x) + (e ? more.y : more.x);
        if (edge) {
          const int at = first + 8 * i + 2 * t4 + e;
          if (at > position + 8 * h || (window > 0 && at + window <= position + 8 * h)) score = -INFINITE;
        }
        highest[h] = fmaxf(highest[h], score);
      }
  }
  float level[2], shrink[2];
  bool grows = false;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    highest[h] = fmaxf(highest[h], __shfl_xor_sync(FULL_MASK, highest[h], 1));
    highest[h] = fmaxf(highest[h], __shfl_xor_sync(FULL_MASK, highest[h], 2));
    shrink[h] = 1.f;
    if (highest[h] > r.top[h] + TOLERATED) {
      // Nothing was summed before the first score: 2^(-infinity - a number) is 0.
      shrink[h] = power_of2(r.top[h] - highest[h]);
      r.top[h] = highest[h];
      grows = true;
    }
    level[h] = r.top[h] == -INFINITE ? 0.f : r.top[h];
  }
  if (__any_sync(FULL_MASK, grows)) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      r.total[h] *= shrink[h];
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) o[4 * n + 2 * h] *= shrink[h], o[4 * n + 2 * h + 1] *= shrink[h];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float2 inverse = make_float2(1.f, 1.f);
    if (BITS == 4) inverse = *(const float2*)(scales + 2 * PAGE_TOKENS + 8 * i + 2 * t4);
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float& score = scores[4 * i + 2 * h + e];
        score = power_of2(score - level[h]);
        r.total[h] += score * (e ? inverse.y : inverse.x);
      }
  }
}

// What wgmma writes in the background may not be read, or moved, before this point.
template <int N>
__device__ __forceinline__ void settle(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}

// Parameters: those of attention_prefill.cu.
extern "C" __global__ void __launch_bounds__(PAGE_THREADS, 1)
    attention_prefill_wgmma(const u16* q, const int* blocks, const int* pages, i64 num_heads, i64 kv_heads, i64 window,
                            double scale, const u8* cache, i64 page_bytes, void* out) {
  extern __shared__ __align__(1024) u16 memory[];
  __shared__ __align__(16) float scales[PAGES][SCALES];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  release_next();
  wait_for_earlier();
  const i64 row0 = blocks[4 * blockIdx.y];
  const int rows = blocks[4 * blockIdx.y + 1], position0 = blocks[4 * blockIdx.y + 2];
  const int* const list = pages + blocks[4 * blockIdx.y + 3];
  const i64 head = blockIdx.x, kv_head = head / (num_heads / kv_heads);
  // Queries of this warp: 16 from m on; this thread's are m + g and m + g + 8.
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
  float o[DIM / 2] = {}, even[32], odd[32];
  Rows r = {{-INFINITE, -INFINITE}, {0.f, 0.f}};
  const int first_visible = window > 0 && position0 >= window ? position0 - (int)window + 1 : 0;
  const int begin = first_visible / PAGE_TOKENS, end = (length + PAGE_TOKENS - 1) / PAGE_TOKENS;
  // A warpgroup leaves out pages that none of its queries sees: even factors of zero could move the last bits of its sums,
  // which must not depend on what else the block holds.
  const int last_row = (m | 63) < rows ? m | 63 : rows - 1;
  const int mine = (m & ~63) < rows ? (position0 + last_row) / PAGE_TOKENS + 1 : begin;
  const u32 shared = shared_at(memory);
  Packed packed;
  const auto bring = [&](int index, int slot) {
    const u8* const page = cache + list[index] * page_bytes + kv_head * Page::BYTES;
    fetch<Swizzled>(packed, page, length - index * PAGE_TOKENS, memory + slot * PAGE_HALVES);
  };
  const auto place = [&](int index, int slot) {
    u16* const tile = memory + slot * PAGE_HALVES;
    unpack<Swizzled>(packed, tile, tile + KEYS, scales[slot], unit, length - index * PAGE_TOKENS);
  };
  const auto multiply_keys = [&](float (&scores)[32], int slot) {
    const u64 keys = swizzled_operand(shared + slot * PAGE_HALVES * 2);
#pragma unroll
    for (int s = 0; s < DIM / 16; s++) WgmmaHalf<64>::add(scores, a[s], keys + s / 4 * (PANEL * 2 / 16) + s % 4 * 2, s);
    wgmma_commit();
  };
  // What this thread wrote to shared memory is seen by every warpgroup's wgmma.
  const auto publish = [&] {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
  };
  int now = 0;
  const auto step = [&](float (&scores)[32], float (&next)[32], int index) {
    const int after = now == PAGES - 1 ? 0 : now + 1, free = after == PAGES - 1 ? 0 : after + 1;
    // Beyond the last page this multiplies an older one, for nothing.
    wgmma_fence();
    multiply_keys(next, after);
    const bool more = index + 2 < end;
    if (more) bring(index + 2, free);
    if (index < mine) {
      const bool edge = index * PAGE_TOKENS + PAGE_TOKENS > position0 + m + 1 || window > 0;
      weigh(scores, o, r, scales[now], unit, index * PAGE_TOKENS, position0 + m + g, (int)window, edge);
      u32 p[4][4];
#pragma unroll
      for (int u = 0; u < 4; u++)
#pragma unroll
        for (int c = 0; c < 4; c++) p[u][c] = pack_small(scores[8 * u + 2 * c], scores[8 * u + 2 * c + 1]);
      const u64 values = swizzled_operand(shared + (now * PAGE_HALVES + KEYS) * 2);
      wgmma_fence();
#pragma unroll
      for (int u = 0; u < 4; u++) WgmmaHalf<DIM>::add(o, p[u], values + 2 * u, 1);
      wgmma_commit();
    }
    if (more) place(index + 2, free);
    wgmma_wait<0>();
    settle(next);
    settle(o);
    publish();
    now = after;
  };
  bring(begin, 0);
  place(begin, 0);
  if (begin + 1 < end) {
    bring(begin + 1, 1);
    place(begin + 1, 1);
  }
  publish();
  wgmma_fence();
  multiply_keys(even, 0);
  wgmma_wait<0>();
  settle(even);
  for (int index = begin; index < end; index += 2) {
    step(even, odd, index);
    if (index + 1 < end) step(odd, even, index + 1);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float total = r.total[h];
    total += __shfl_xor_sync(FULL_MASK, total, 1);
    total += __shfl_xor_sync(FULL_MASK, total, 2);
    const int row = m + g + 8 * h;
    if (row >= rows) continue;
    const float inverse = total == 0.f ? 0.f : 1.f / total;
    const i64 to = ((row0 + row) * num_heads + head) * DIM;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      const float v0 = o[4 * n + 2 * h] * inverse, v1 = o[4 * n + 2 * h + 1] * inverse;
      if (OUT16) *(u32*)((u16*)out + to + 8 * n + 2 * t4) = pack_half(v0, v1);
      else *(float2*)((float*)out + to + 8 * n + 2 * t4) = make_float2(v0, v1);
    }
  }
}
