// Attention of one new token per sequence over the paged cache, split over the sequence. Limited by reading the cache.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1; Flash-Decoding for the split.
//
// A warp takes every WARPS-th page of a split, whole (attention_page.cuh); then the block joins its warps. A block has one
// split or several, one after another: what a split gives does not depend on it. RING 0: pages come straight to registers,
// which is soonest where a warp has one or two. RING n, on Hopper: each warp has n places in shared memory, which bulk copies
// fill; while it works on one page, or on joining a split, others are on their way.
//
// Macros: attention_page.cuh's; WARPS; RING; EARLY 1 where tables are read, and pages asked for, before the kernels ahead have
// ended.
#include "engine/attention_page.cuh"
#include "engine/bulk.cuh"

#ifndef EARLY
#define EARLY 1
#endif
#ifndef RING
#define RING 0
#endif
#ifndef WARPS
#define WARPS 4
#endif

constexpr int WARP_SUMS = HEADS * HEAD_STRIDE;
static_assert(RING == 0 || WARP_SUMS * 4 <= Page::BYTES, "a warp's sums go to the place of a page");
static_assert(RING == 0 || BITS == 4, "pages of halves are too large for rings");
static_assert(Page::BYTES % 128 == 0, "bulk copies take multiples of 16 bytes, from and to such addresses");
// Blocks of a multiprocessor: twelve warps with 168 registers each. Pages of halves, and whole pages in registers beside the sums
// of eight heads, need more.
constexpr int RESIDENT = (BITS == 4 && (RING || TILES == 1) ? 12 : 8) / WARPS;

// Of a sequence's pages, those of one warp of a block, split after split: `index` in `split`, whose pages end before `end`.
struct Cursor {
  int split, index, end;
};

// q: f32 [row][heads·DIM]. sequences: {row, tokens in the cache, offset into pages}. blockIdx: share of the splits, KV head ×
// groups of HEADS query heads, sequence. partial: [row][head][split][DIM + 2]: sums of values, their maximum weight, total. The
// tables are no kernel's work, and so may be read before the kernels ahead have ended.
extern "C" __global__ void __launch_bounds__(WARPS * 32, RESIDENT)
    attention_decode(const float* q, const int* sequences, const int* pages, i64 num_heads, i64 kv_heads, i64 window,
                     double scale, const u8* cache, i64 page_bytes, i64 splits, float* partial) {
  extern __shared__ __align__(128) u8 ring[];
  __shared__ float held_sums[RING ? 1 : WARPS * WARP_SUMS], tops[WARPS][HEADS], totals[WARPS][HEADS];
  __shared__ const float* sums_of[WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // 32-bit divisions: each of 64 bits delays the start by some hundred cycles.
  const u32 kv_count = (u32)kv_heads, group = (u32)num_heads / kv_count, split_count = (u32)splits;
  const u32 kv_head = blockIdx.y % kv_count, first = blockIdx.y / kv_count * HEADS;
  const i64 first_head = kv_head * group + first;
  const int heads_here = (int)(group - first < HEADS ? group - first : HEADS);
  const int first_split = (int)(split_count * blockIdx.x / gridDim.x),
            end_split = (int)(split_count * (blockIdx.x + 1) / gridDim.x);
  release_next();
#if RING
  __shared__ __align__(8) u64 full[WARPS][RING];
  if (lane == 0)
    for (int i = 0; i < RING; i++) init_barrier(shared_at(&full[warp][i]), 1);
#endif
  if (!EARLY) wait_for_earlier();
  const i64 row = sequences[3 * blockIdx.z];
  const int length = sequences[3 * blockIdx.z + 1];
  const int* const list = pages + sequences[3 * blockIdx.z + 2];
  const int first_visible = window > 0 && length > window ? length - (int)window : 0;
  const int first_page = first_visible / PAGE_TOKENS,
            page_count = (length + PAGE_TOKENS - 1) / PAGE_TOKENS - first_page;
  const u8* const of_head = cache + (i64)kv_head * Page::BYTES;
  const auto begin_of = [&](int split) { return first_page + (int)((u32)page_count * (u32)split / split_count); };
  // To the next page of this warp; beyond the block's last split where there is none.
  const auto settle = [&](Cursor& at) {
    while (at.index >= at.end && ++at.split < end_split) at.index = at.end + warp, at.end = begin_of(at.split + 1);
  };
  const auto advance = [&](Cursor& at) {
    at.index += WARPS;
    settle(at);
  };
  Cursor next = {first_split, begin_of(first_split) + warp, begin_of(first_split + 1)};
  settle(next);
  if (EARLY) {
    // The last page is being written to; in the cache it is as new as in memory.
    if (lane == 0)
#pragma unroll 1
      for (Cursor at = next; at.split < end_split; advance(at))
        prefetch(of_head + list[at.index] * page_bytes, Page::BYTES);
    wait_for_earlier();
  }
#if RING
  // By lane 0. Phase k of a place's barrier is its k-th page: one arrival, here, and the page's bytes.
  const auto fill = [&](int place, int page) {
    const u32 barrier = shared_at(&full[warp][place]);
    arrive_expecting(barrier, Page::BYTES);
    bulk_copy(shared_at(ring + (warp * RING + place) * Page::BYTES), of_head + page * page_bytes, Page::BYTES, barrier);
  };
  int page[RING];
#pragma unroll
  for (int i = 0; i < RING; i++) {
    page[i] = -1;
    if (next.split >= end_split) continue;
    if (lane == 0) page[i] = list[next.index];
    advance(next);
  }
  if (lane == 0) {
    // The last page is the work of an ordinary kernel, which `wait_for_earlier` made visible to this thread only as such.
    fence_copies();
#pragma unroll
    for (int i = 0; i < RING; i++)
      if (page[i] >= 0) fill(i, page[i]);
  }
  // The barriers are ready before another lane waits at one.
  __syncwarp();
  int place = 0;
  u32 parity = 0;
#elif BITS == 4
  // The first page before the queries, which come meanwhile.
  Held held;
  const auto load = [&](int index, int end) {
    if (index < end) held.load(InPlace{of_head + list[index] * page_bytes});
  };
  load(begin_of(first_split) + warp, begin_of(first_split + 1));
#endif
  u32 queries[DIM / 16][TILES][2];
  load_queries(queries, q + (row * num_heads + first_head) * DIM, heads_here, (float)scale * LOG2E);
#pragma unroll 1
  for (int split = first_split; split < end_split; split++) {
    const int begin = begin_of(split) + warp, end = begin_of(split + 1);
    float* to = held_sums + (RING ? 0 : warp * WARP_SUMS);
    Sums sums;
    clear(sums);
#if RING
    int kept = -1, kept_place = 0;
#endif
#pragma unroll 1
    for (int index = begin; index < end; index += WARPS) {
      const int here = length - index * PAGE_TOKENS, hidden = first_visible - index * PAGE_TOKENS;
#if RING
      // The page that comes here next; its number has the time of this one to arrive.
      int later = -1;
      if (next.split < end_split) {
        if (lane == 0) later = list[next.index];
        advance(next);
      }
      wait_barrier(shared_at(&full[warp][place]), parity);
      // Lanes may have seen the barrier at different times, and mma needs them together.
      __syncwarp();
      u8* const at = ring + (warp * RING + place) * Page::BYTES;
      attend_page(InPlace{at}, queries, sums, here, hidden);
      // Every lane has read the page before it is overwritten. The split's last page makes room for the warp's sums first.
      __syncwarp();
      if (index + WARPS >= end) kept = later, kept_place = place, to = (float*)at;
      else if (later >= 0) fill(place, later);
      if (++place == RING) place = 0, parity ^= 1;
#elif BITS == 4
      attend_page(held, queries, sums, here, hidden);
      load(index + WARPS, end);
#else
      attend_page(InPlace{of_head + list[index] * page_bytes}, queries, sums, here, hidden);
#endif
    }
    // A warp without a page has no room in a ring either; a maximum of -infinity says that there are no sums.
    if (begin < end) share_sums(sums, to, tops[warp], totals[warp], heads_here);
    else if (lane < HEADS) tops[warp][lane] = -INFINITE;
    if (lane == 0) sums_of[warp] = to;
    __syncthreads();
    for (int i = threadIdx.x; i < heads_here * DIM; i += WARPS * 32) {
      const int h = i / DIM, c = i % DIM;
      float most = -INFINITE, value = 0.f, total = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w][h]);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        if (tops[w][h] == -INFINITE) continue;
        const float part = power_of2(tops[w][h] - most);
        value = fmaf(part, sums_of[w][h * HEAD_STRIDE + c], value);
        total = fmaf(part, totals[w][h], total);
      }
      float* const out = partial + ((row * num_heads + first_head + h) * splits + split) * (DIM + 2);
      out[c] = value;
      if (c < 2) out[DIM + c] = c == 0 ? most : total;
    }
    if (split + 1 == end_split) break;
    __syncthreads();
#if !RING && BITS == 4
    load(end + warp, begin_of(split + 2));
#elif RING
    if (kept >= 0) {
      // The sums were written and read as ordinary memory, by all of the block.
      fence_copies();
      fill(kept_place, kept);
    }
#endif
  }
}

// The splits of attention joined: out [row][heads·DIM], for sites without the joining of their own (FP16).
extern "C" __global__ void attention_join(const float* partial, i64 rows, i64 num_heads, i64 splits, void* out) {
  release_next();
  wait_for_earlier();
  const i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (i >= rows * num_heads * DIM) return;
  const float* from = partial + i / DIM * splits * (DIM + 2);
  float most = -INFINITE, total = 0.f, value = 0.f;
  for (int s = 0; s < splits; s++) most = fmaxf(most, from[s * (DIM + 2) + DIM]);
  for (int s = 0; s < splits; s++) {
    const float* part = from + s * (DIM + 2);
    const float weight = part[DIM] == -INFINITE ? 0.f : power_of2(part[DIM] - most);
    total += weight * part[DIM + 1], value += weight * part[i % DIM];
  }
  value = total == 0.f ? 0.f : value / total;
  if (OUT16) ((u16*)out)[i] = to_half(value);
  else ((float*)out)[i] = value;
}
