// The integer product of many tokens (gemm.cuh), limited by the matrix units: tiles of 256 features × 128 tokens, as many
// blocks as multiprocessors, each with several tiles one after another. A warp fetches weights and codes ahead, also
// across the border of two tiles, so that a warpgroup that has written its results goes on at once, and the other one
// has the matrix units for itself meanwhile. (Starting the warpgroups some blocks of columns apart gained nothing.)
//
// Macros: gemm.cuh's, and STAGES.
#include "engine/gemm.cuh"

// The producer is a warpgroup that gives its registers away.
constexpr int THREADS = CONSUMERS + 128;
static_assert(TOKENS == 128, "a tile has 128 tokens");

__device__ __forceinline__ void sync_warpgroup(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
}

// Place in the ring of buffers, and how often it was passed.
struct Place {
  int stage = 0;
  u32 round = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, round++;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_prefill(PARAMETERS, i64 tiles) {
  const Problem p = PROBLEM;
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(8) u64 full[STAGES], empty[STAGES];
  __shared__ __align__(16) float of_tokens[2][TOKENS], of_features[FEATURES], biases[FEATURES];
  const u32 stages = shared_at(memory);
  const int token_tiles = (int)((p.tokens + TOKENS - 1) / TOKENS), total = token_tiles * (int)tiles,
            count = (int)p.blocks;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_at(&full[i])) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 8;" ::"r"(shared_at(&empty[i])) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();
  release_next();
  const int warp = threadIdx.x / 32;
  Place at;
  if (warp >= CONSUMERS / 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == CONSUMERS) {
      const auto weights_of = [&](i64 tile, int block, int stage) {
        const u32 barrier = shared_at(&full[stage]);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(STAGE_BYTES)
                     : "memory");
        bulk_copy(stages + stage * STAGE_BYTES + CODE_BYTES, p.weights + (tile * count + block) * WEIGHT_BYTES,
                  WEIGHT_BYTES, barrier);
      };
      // Weights do not depend on the kernels before this one.
      int ahead = count < STAGES ? count : STAGES;
      for (int i = 0; i < ahead; i++) weights_of(blockIdx.x / token_tiles, i, i);
      wait_for_earlier();
      for (int index = blockIdx.x; index < total; index += gridDim.x) {
        const i64 tile = index / token_tiles, token0 = (i64)(index % token_tiles) * TOKENS;
        const i8* with = p.codes + (i64)set_of(p, tile) * count * p.capacity * 128 + token0 * 128;
        for (int i = 0; i < count; i++, at.next()) {
          if (ahead > 0) {
            ahead--;
          } else {
            if (at.round > 0) wait_barrier(shared_at(&empty[at.stage]), (at.round - 1) & 1);
            weights_of(tile, i, at.stage);
          }
          bulk_copy(stages + at.stage * STAGE_BYTES, with + (i64)i * p.capacity * 128, CODE_BYTES,
                    shared_at(&full[at.stage]));
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warpgroup = warp / 4, thread = threadIdx.x % 128;
    int sums[2][SUMS];
    u32 a[2][2][2][4];  // half block, tile of 64, step of 32 columns
    wait_for_earlier();
    for (int index = blockIdx.x; index < total; index += gridDim.x) {
      const i64 tile = index / token_tiles, token0 = (i64)(index % token_tiles) * TOKENS;
      // What the results are multiplied with is read now and needed after the sums.
      const int feature =
          EPILOGUE == GATED ? thread / 64 * (FEATURES / 2) + warpgroup * 64 + thread % 64 : warpgroup * 128 + thread;
      const float of_token = p.token_scale[set_of(p, tile) * p.capacity + token0 + thread];
      const float of_feature = p.feature_scale[tile * FEATURES + feature];
      const float added = p.bias ? p.bias[tile * FEATURES + feature] : 0.f;
      int before = 0;
      for (int i = 0; i < count; i++, at.next()) {
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
            for (int t = 0; t < 2; t++)
              Wgmma<TOKENS>::add(sums[t], a[half][t][s], b + 2 * (2 * half + s), i | half | s);
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
      sync_warpgroup(warpgroup);
      of_tokens[warpgroup][thread] = of_token, of_features[feature] = of_feature, biases[feature] = added;
      sync_warpgroup(warpgroup);
      store_sums<TOKENS / 8>(p, sums, warpgroup, warp % 4, tile, token0, of_tokens[warpgroup], of_features, biases);
    }
  }
}
