// The integer product of 17 to 64 tokens (gemm.cuh), limited by reading weights: the tiles' blocks of columns, one tile after
// another, are dealt out in equal stretches, one to each block of threads, so that every multiprocessor reads as much as any other.
// A tile that is not a single block's is summed up by way of memory (the L2 cache, that is): each of its blocks leaves what it has,
// and those that have nothing else to do then wait for all of it and share the tokens. Sums of 32-bit integers do not depend
// on the order. Blocks wait for each other, so there must be no more of them than fit the GPU.
//
// Macros: gemm.cuh's, and STAGES.
#ifndef TOKENS
#define TOKENS 64
#endif
#include "engine/gemm.cuh"

constexpr int THREADS = CONSUMERS + 32;
constexpr int WARPGROUPS = CONSUMERS / 128;
// In words of 16 bytes: of a warpgroup's part of a tile, two tiles of 64 features.
constexpr int GROUPS = TOKENS / 8, PART = 2 * GROUPS * 128;

// A block of columns of a tile, and those after it.
struct Walk {
  u32 item, block;
  __device__ __forceinline__ void next(u32 count) {
    if (++block == count) block = 0, item++;
  }
};

// Place in the ring of buffers, and how often it was passed.
struct Place {
  int stage = 0;
  u32 round = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, round++;
  }
};

__device__ __forceinline__ void sync_warpgroup(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

// Not from the L1 cache, which does not know what others wrote.
__device__ __forceinline__ int4 read_from_l2(const int4* from) {
  int4 v;
  asm volatile("ld.global.cg.v4.s32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

__device__ __forceinline__ u32 acquire(const u32* from) {
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// One more block has read what it needed of a tile; the other half counts blocks of columns that were left.
#define DONE 0x10000u

// exchange: a counter for each block of threads and warpgroup, zero and in the end zero again, in the first `counters` words;
// then two parts of sums for each of them, of the tile that its stretch begins in and of the one that it ends in. A tile has the
// counters of the block that begins it. `tiles · blocks · gridDim.x` is below 2³².
extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm(PARAMETERS, i64 tiles, i64 counters, u32* exchange) {
  const Problem p = PROBLEM;
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(8) u64 full[STAGES], empty[STAGES];
  __shared__ __align__(16) float of_tokens[WARPGROUPS][TOKENS], of_features[FEATURES], biases[FEATURES];
  const u32 stages = shared_at(memory);
  const u32 count = (u32)p.blocks, token_tiles = (u32)((p.tokens + TOKENS - 1) / TOKENS),
            total = token_tiles * (u32)tiles * count;
  const u32 begin = total * blockIdx.x / gridDim.x, end = total * (blockIdx.x + 1) / gridDim.x;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++)
      init_barrier(shared_at(&full[i]), 1), init_barrier(shared_at(&empty[i]), CONSUMERS / 32);
    fence_copies();
  }
  __syncthreads();
  release_next();
  const int warp = threadIdx.x / 32;
  Place at;
  if (warp >= CONSUMERS / 32) {
    if (threadIdx.x == CONSUMERS) {
      const u64 policy = read_once();
      const auto weights_of = [&](const Walk& walk, int stage) {
        const u32 barrier = shared_at(&full[stage]);
        arrive_expecting(barrier, STAGE_BYTES);
        const u8* from = p.weights + ((i64)(walk.item / token_tiles) * count + walk.block) * WEIGHT_BYTES;
        bulk_copy_once(stages + stage * STAGE_BYTES + CODE_BYTES, from, WEIGHT_BYTES, barrier, policy);
      };
      const auto codes_of = [&](const Walk& walk, int stage) {
        const i64 tile = walk.item / token_tiles, token0 = (i64)(walk.item % token_tiles) * TOKENS;
        const i8* from = p.codes + (((i64)set_of(p, tile) * count + walk.block) * p.capacity + token0) * 128;
        bulk_copy(stages + stage * STAGE_BYTES, from, CODE_BYTES, shared_at(&full[stage]));
      };
      const u32 ahead = end - begin < STAGES ? end - begin : STAGES;
      const Walk first = {begin / count, begin % count};
      // Weights do not depend on the kernels before this one.
      Walk walk = first;
      for (u32 i = 0; i < ahead; i++, walk.next(count)) weights_of(walk, i);
      wait_for_earlier();
      walk = first;
      for (u32 i = 0; i < ahead; i++, walk.next(count), at.next()) codes_of(walk, at.stage);
      for (u32 i = ahead; i < end - begin; i++, walk.next(count), at.next()) {
        wait_barrier(shared_at(&empty[at.stage]), (at.round - 1) & 1);
        weights_of(walk, at.stage);
        codes_of(walk, at.stage);
      }
    }
    return;
  }
  const int warpgroup = warp / 4, thread = threadIdx.x % 128;
  int sums[2][SUMS];
  u32 a[2][2][2][4];  // half block, tile of 64, step of 32 columns
  for (u32 unit = begin; unit < end;) {
    const u32 item = unit / count, here = unit % count, left = count - here;
    const int columns = (int)(left < end - unit ? left : end - unit);
    const i64 tile = item / token_tiles, token0 = (i64)(item % token_tiles) * TOKENS;
    // What the results are multiplied with is read now and needed after the sums.
    const int feature =
        EPILOGUE == GATED ? thread / 64 * (FEATURES / 2) + warpgroup * 64 + thread % 64 : warpgroup * 128 + thread;
    const float of_feature = p.feature_scale[tile * FEATURES + feature];
    const float added = p.bias ? p.bias[tile * FEATURES + feature] : 0.f;
    wait_for_earlier();
    const float of_token = thread < TOKENS ? p.token_scale[set_of(p, tile) * p.capacity + token0 + thread] : 0.f;
    int before = 0;
    for (int i = 0; i < columns; i++, at.next()) {
      wait_barrier(shared_at(&full[at.stage]), at.round & 1);
      const u64 b = swizzled_operand(stages + at.stage * STAGE_BYTES);
      const u8* packed =
          memory + at.stage * STAGE_BYTES + CODE_BYTES + warpgroup * (WEIGHT_BYTES / 2) + thread * (4 * WBITS);
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int t = 0; t < 2; t++) operand_a(packed + (2 * t + half) * (512 * WBITS), a[half][t]);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
          for (int t = 0; t < 2; t++) Wgmma<TOKENS>::add(sums[t], a[half][t][s], b + 2 * (2 * half + s), i | half | s);
        wgmma_commit();
        // All but these four are done: the other half's registers and, at the first half, the stage before are free.
        wgmma_wait<1>();
        if (half == 0 && i > 0) {
          // One lane speaks for the warp, whose reads must all be done.
          __syncwarp();
          if (threadIdx.x % 32 == 0) arrive(shared_at(&empty[before]));
        }
      }
      before = at.stage;
    }
    wgmma_wait<0>();
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(shared_at(&empty[before]));
    // The compiler may not read the sums before this point: it does not know that wgmma writes them later.
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int i = 0; i < SUMS; i++) asm volatile("" : "+r"(sums[t][i])::"memory");
    unit += columns;
    sync_warpgroup(warpgroup);
    if (thread < TOKENS) of_tokens[warpgroup][thread] = of_token;
    of_features[feature] = of_feature, biases[feature] = added;
    sync_warpgroup(warpgroup);
    if (columns == (int)count) {
      store_sums<GROUPS>(p, sums, warpgroup, warp % 4, tile, token0, of_tokens[warpgroup], of_features, biases);
      continue;
    }
    // The tile's blocks of threads are those of consecutive numbers.
    const u32 opener = here == 0 ? blockIdx.x : ((item * count + 1) * gridDim.x - 1) / total;
    const u32 closer = ((item + 1) * count * gridDim.x - 1) / total;
    u32* const counter = exchange + opener * WARPGROUPS + warpgroup;
    int4* const parts = (int4*)(exchange + counters) + thread;
    const auto part_of = [&](u32 block) {
      return parts + (i64)((2 * block + (block == opener)) * WARPGROUPS + warpgroup) * PART;
    };
    int4* const own = part_of(blockIdx.x);
#pragma unroll
    for (int j = 0; j < GROUPS; j++)
#pragma unroll
      for (int t = 0; t < 2; t++)
        own[(2 * j + t) * 128] = make_int4(sums[t][4 * j], sums[t][4 * j + 1], sums[t][4 * j + 2], sums[t][4 * j + 3]);
    __threadfence();
    sync_warpgroup(warpgroup);
    if (thread == 0) atomicAdd(counter, (u32)columns);
    // A block with more to do leaves the results to others.
    if (unit < end) continue;
    if (thread == 0)
      while (acquire(counter) % DONE != count) {
      }
    sync_warpgroup(warpgroup);
    const u32 sharers = closer - opener + (total * (closer + 1) / gridDim.x == (item + 1) * count),
              rank = blockIdx.x - opener;
    for (u32 j = GROUPS * rank / sharers; j < GROUPS * (rank + 1) / sharers; j++) {
      int group[2][4] = {};
#pragma unroll 4
      for (u32 block = opener; block <= closer; block++) {
        const int4* const from = part_of(block) + 2 * j * 128;
#pragma unroll
        for (int t = 0; t < 2; t++) {
          const int4 v = read_from_l2(from + t * 128);
          group[t][0] += v.x, group[t][1] += v.y, group[t][2] += v.z, group[t][3] += v.w;
        }
      }
      store_sums<1>(p, group, warpgroup, warp % 4, tile, token0 + 8 * j, of_tokens[warpgroup] + 8 * j, of_features,
                    biases);
    }
    sync_warpgroup(warpgroup);
    if (thread == 0 && atomicAdd(counter, DONE) / DONE + 1 == sharers) *counter = 0;
  }
}
