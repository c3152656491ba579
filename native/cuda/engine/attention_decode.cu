// Attention of one new token per sequence over the paged cache, split over the sequence. Limited by reading the cache.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1; Flash-Decoding for the split.
//
// A warp takes every WARPS-th page of its block's part, whole (attention_page.cuh). RING 0: straight from memory to registers,
// which is soonest where a warp has a page or two. RING n, on Hopper: each warp has n places in shared memory, which bulk
// copies fill; while it works on one page, the others are on their way. No other warp has to do with them.
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

// Floats between the sums of two warps: the ring's places take them once their pages are read.
constexpr int SUMS_STRIDE = RING ? RING * Page::BYTES / 4 : HEADS * HEAD_STRIDE;
static_assert(HEADS * HEAD_STRIDE <= SUMS_STRIDE, "a page has room for a warp's sums");
static_assert(RING == 0 || BITS == 4, "pages of halves are too large for rings");
static_assert(Page::BYTES % 128 == 0, "bulk copies take multiples of 16 bytes, from and to such addresses");
// Blocks of a multiprocessor: twelve warps with 168 registers each. Pages of halves, and whole pages in registers beside the sums
// of eight heads, need more.
constexpr int RESIDENT = (BITS == 4 && (RING || TILES == 1) ? 12 : 8) / WARPS;

// q: f32 [row][heads·DIM]. sequences: {row, tokens in the cache, offset into pages}. blockIdx: split, KV head × groups of
// HEADS query heads, sequence. partial: [row][head][split][DIM + 2]: sums of values, their maximum weight, total. The tables
// are no kernel's work, and so may be read before the kernels ahead have ended.
extern "C" __global__ void __launch_bounds__(WARPS * 32, RESIDENT)
    attention_decode(const float* q, const int* sequences, const int* pages, i64 numHeads, i64 kvHeads, i64 window,
                     double scale, const u8* cache, i64 pageBytes, float* partial) {
  extern __shared__ __align__(128) u8 ring[];
  __shared__ float heldSums[RING ? 1 : WARPS * SUMS_STRIDE], tops[WARPS][HEADS], totals[WARPS][HEADS];
  float* const shared = RING ? (float*)ring : heldSums;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // 32-bit divisions: each of 64 bits delays the start by some hundred cycles.
  const u32 kvCount = (u32)kvHeads, group = (u32)numHeads / kvCount;
  const u32 kvHead = blockIdx.y % kvCount, first = blockIdx.y / kvCount * HEADS;
  const i64 firstHead = kvHead * group + first;
  const int headsHere = (int)(group - first < HEADS ? group - first : HEADS);
  releaseNext();
#if RING
  __shared__ __align__(8) u64 full[WARPS][RING];
  if (lane == 0)
    for (int i = 0; i < RING; i++) initBarrier(sharedAt(&full[warp][i]), 1);
#endif
  if (!EARLY) waitForEarlier();
  const i64 row = sequences[3 * blockIdx.z];
  const int length = sequences[3 * blockIdx.z + 1];
  const int* const list = pages + sequences[3 * blockIdx.z + 2];
  const int firstVisible = window > 0 && length > window ? length - (int)window : 0;
  const int firstPage = firstVisible / PAGE_TOKENS, pageCount = (length + PAGE_TOKENS - 1) / PAGE_TOKENS - firstPage;
  const int begin = firstPage + (int)((u32)pageCount * blockIdx.x / gridDim.x) + warp;
  const int end = firstPage + (int)((u32)pageCount * (blockIdx.x + 1) / gridDim.x);
  const u8* const ofHead = cache + (i64)kvHead * Page::BYTES;
  if (EARLY) {
    // The last page is being written to; in the cache it is as new as in memory.
    if (lane == 0)
#pragma unroll 1
      for (int index = begin; index < end; index += WARPS) prefetch(ofHead + list[index] * pageBytes, Page::BYTES);
    waitForEarlier();
  }
#if RING
  // By lane 0. Phase k of a place's barrier is its k-th page: one arrival, here, and the page's bytes.
  const auto fill = [&](int place, int page) {
    const u32 barrier = sharedAt(&full[warp][place]);
    arriveExpecting(barrier, Page::BYTES);
    bulkCopy(sharedAt(ring + (warp * RING + place) * Page::BYTES), ofHead + page * pageBytes, Page::BYTES, barrier);
  };
  if (lane == 0) {
    int page[RING];
#pragma unroll
    for (int i = 0; i < RING; i++)
      if (begin + i * WARPS < end) page[i] = list[begin + i * WARPS];
    // The last page is the work of an ordinary kernel, which `waitForEarlier` made visible to this thread only as such.
    fenceCopies();
#pragma unroll
    for (int i = 0; i < RING; i++)
      if (begin + i * WARPS < end) fill(i, page[i]);
  }
  // The barriers are ready before another lane waits at one.
  __syncwarp();
#endif
  const auto here = [&](int index) { return length - index * PAGE_TOKENS; };
  const auto hidden = [&](int index) { return firstVisible - index * PAGE_TOKENS; };
  u32 queries[DIM / 16][TILES][2];
  const auto askQueries = [&] { loadQueries(queries, q + (row * numHeads + firstHead) * DIM, headsHere, (float)scale * LOG2E); };
  Sums sums;
  clear(sums);
#if RING
  askQueries();
  int place = 0;
  u32 parity = 0;
#pragma unroll 1
  for (int index = begin; index < end; index += WARPS) {
    // The page that comes here next; its number has the time of this one to arrive.
    const int later = index + RING * WARPS;
    int page = 0;
    if (lane == 0 && later < end) page = list[later];
    waitBarrier(sharedAt(&full[warp][place]), parity);
    // Lanes may have seen the barrier at different times, and mma needs them together.
    __syncwarp();
    attendPage(InPlace{ring + (warp * RING + place) * Page::BYTES}, queries, sums, here(index), hidden(index));
    // Every lane has read the page before it is overwritten.
    __syncwarp();
    if (lane == 0 && later < end) fill(place, page);
    if (++place == RING) place = 0, parity ^= 1;
  }
#elif BITS == 4
  // Whole pages in registers, the first before the queries, which come meanwhile.
  Held held;
  if (begin < end) held.load(InPlace{ofHead + list[begin] * pageBytes});
  askQueries();
#pragma unroll 1
  for (int index = begin; index < end; index += WARPS) {
    attendPage(held, queries, sums, here(index), hidden(index));
    if (index + WARPS < end) held.load(InPlace{ofHead + list[index + WARPS] * pageBytes});
  }
#else
  askQueries();
#pragma unroll 1
  for (int index = begin; index < end; index += WARPS)
    attendPage(InPlace{ofHead + list[index] * pageBytes}, queries, sums, here(index), hidden(index));
#endif
  // Of a ring, the warp's own places, to which nothing is on its way any more.
  shareSums(sums, shared + warp * SUMS_STRIDE, tops[warp], totals[warp], headsHere);
  __syncthreads();
  for (int i = threadIdx.x; i < headsHere * DIM; i += WARPS * 32) {
    const int h = i / DIM, c = i % DIM;
    float most = -INFINITE, value = 0.f, total = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float part = tops[w][h] == -INFINITE ? 0.f : powerOf2(tops[w][h] - most);
      value = fmaf(part, shared[w * SUMS_STRIDE + h * HEAD_STRIDE + c], value);
      total = fmaf(part, totals[w][h], total);
    }
    float* const to = partial + ((row * numHeads + firstHead + h) * gridDim.x + blockIdx.x) * (DIM + 2);
    to[c] = value;
    if (c < 2) to[DIM + c] = c == 0 ? most : total;
  }
}

// The splits of attention joined: out [row][heads·DIM], for sites without the joining of their own (FP16).
extern "C" __global__ void attention_join(const float* partial, i64 rows, i64 numHeads, i64 splits, void* out) {
  releaseNext();
  waitForEarlier();
  const i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (i >= rows * numHeads * DIM) return;
  const float* from = partial + i / DIM * splits * (DIM + 2);
  float most = -INFINITE, total = 0.f, value = 0.f;
  for (int s = 0; s < splits; s++) most = fmaxf(most, from[s * (DIM + 2) + DIM]);
  for (int s = 0; s < splits; s++) {
    const float* part = from + s * (DIM + 2);
    const float weight = part[DIM] == -INFINITE ? 0.f : powerOf2(part[DIM] - most);
    total += weight * part[DIM + 1], value += weight * part[i % DIM];
  }
  value = total == 0.f ? 0.f : value / total;
  if (OUT16) ((u16*)out)[i] = toHalf(value);
  else ((float*)out)[i] = value;
}
