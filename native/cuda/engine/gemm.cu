// The integer product of few tokens (gemm.cuh), limited by reading weights: up to eight blocks of a cluster share a tile's
// columns and add their sums through distributed shared memory; 32-bit integer sums do not depend on the order.
//
// Macros: gemm.cuh's, and SPLIT 1 … 8; STAGES.
#ifndef TOKENS
#define TOKENS 64
#endif
#include "engine/gemm.cuh"

constexpr int THREADS = CONSUMERS + 32;
// Sums of a tile that a thread takes from all blocks of its cluster.
constexpr int OWN = (SUMS + SPLIT - 1) / SPLIT;
// Up to eight tokens: a step waits for weights and for latencies more than for anything else.
constexpr bool NARROW = TOKENS == 8;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if SPLIT > 1
    __cluster_dims__(SPLIT, 1, 1)
#endif
        gemm(PARAMETERS) {
  const Problem p = PROBLEM;
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(8) u64 full[STAGES], empty[STAGES];
  const u32 stages = sharedAt(memory);
  const int rank = SPLIT > 1 ? blockIdx.x % SPLIT : 0;
  const i64 tile = blockIdx.y, token0 = (i64)(blockIdx.x / SPLIT) * TOKENS;
  const i64 begin = p.blocks * rank / SPLIT, end = p.blocks * (rank + 1) / SPLIT;
  const int set = setOf(p, tile);
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(sharedAt(&full[i])) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 8;" ::"r"(sharedAt(&empty[i])) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();
  releaseNext();
  const int warp = threadIdx.x / 32;
  int sums[2][SUMS];
  // NARROW: what this thread's results need is read before the sums.
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const int firstOwn = SUMS * rank / SPLIT, ownCount = SUMS * (rank + 1) / SPLIT - firstOwn;
  const i64 base = tile * (EPILOGUE == GATED ? FEATURES / 2 : FEATURES);
  float scale[OWN][2], add[OWN][2], old[OWN][2];
  if (warp >= CONSUMERS / 32) {
    if (threadIdx.x == CONSUMERS) {
      const u8* from = p.weights + (tile * p.blocks + begin) * WEIGHT_BYTES;
      const i8* with = p.codes + ((i64)set * p.blocks + begin) * p.capacity * 128 + token0 * 128;
      const int count = (int)(end - begin), ahead = count < STAGES ? count : STAGES;
      const u64 policy = readOnce();
      const auto weightsOf = [&](int i, int stage) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAt(&full[stage])), "r"(STAGE_BYTES)
                     : "memory");
        if (NARROW)
          bulkCopyOnce(stages + stage * STAGE_BYTES + CODE_BYTES, from + (i64)i * WEIGHT_BYTES, WEIGHT_BYTES, sharedAt(&full[stage]), policy);
        else
          bulkCopy(stages + stage * STAGE_BYTES + CODE_BYTES, from + (i64)i * WEIGHT_BYTES, WEIGHT_BYTES, sharedAt(&full[stage]));
      };
      const auto codesOf = [&](int i, int stage) {
        bulkCopy(stages + stage * STAGE_BYTES, with + (i64)i * p.capacity * 128, CODE_BYTES, sharedAt(&full[stage]));
      };
      // Weights do not depend on the kernels before this one.
      for (int i = 0; i < ahead; i++) weightsOf(i, i);
      waitForEarlier();
      for (int i = 0; i < ahead; i++) codesOf(i, i);
      for (int i = ahead; i < count; i++) {
        const int stage = i % STAGES;
        waitBarrier(sharedAt(&empty[stage]), (i / STAGES - 1) & 1);
        weightsOf(i, stage);
        codesOf(i, stage);
      }
    }
    __syncwarp();
  } else {
    const int warpgroup = warp / 4, thread = threadIdx.x % 128;
    u32 a[2][2][2][4];  // half block, tile, step of 32 columns
    const int count = (int)(end - begin);
    if (NARROW && SPLIT > 1) {
#pragma unroll
      for (int k = 0; k < OWN; k++)
#pragma unroll
        for (int t = 0; t < 2; t++) {
          const i64 f = tile * FEATURES + (EPILOGUE == GATED ? t * (FEATURES / 2) : 0) +
                        featureOf(warpgroup, warp % 4, t, (firstOwn + k) / 2 % 2, g);
          scale[k][t] = p.featureScale[f] * UNIT, add[k][t] = p.bias ? p.bias[f] : 0.f, old[k][t] = 0.f;
        }
      waitForEarlier();
#pragma unroll
      for (int k = 0; k < OWN; k++) {
        const int i = firstOwn + k;
        const i64 token = token0 + i / 4 * 8 + 2 * t4 + i % 2;
        if (k >= ownCount || token >= p.tokens) continue;
        const float ofToken = p.tokenScale[set * p.capacity + token];
#pragma unroll
        for (int t = 0; t < 2; t++) {
          const i64 feature = base + featureOf(warpgroup, warp % 4, t, i / 2 % 2, g);
          scale[k][t] *= ofToken;
          if (EPILOGUE == ADD && feature < p.features) old[k][t] = ((const float*)p.out)[token * p.outStride + feature];
        }
      }
    }
    for (int i = 0; i < count; i++) {
      const int stage = i % STAGES;
      waitBarrier(sharedAt(&full[stage]), (i / STAGES) & 1);
      const u64 b = swizzledOperand(stages + stage * STAGE_BYTES);
      const u8* packed = memory + stage * STAGE_BYTES + CODE_BYTES + warpgroup * (WEIGHT_BYTES / 2) + thread * (4 * WBITS);
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int t = 0; t < 2; t++) operandA(packed + (2 * t + half) * (512 * WBITS), a[half][t]);
        wgmmaFence();
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
          for (int t = 0; t < 2; t++) Wgmma<TOKENS>::add(sums[t], a[half][t][s], b + 2 * (2 * half + s), i | half | s);
        wgmmaCommit();
        // All but these four are done: the other half's registers and, at the first half, the stage before are free.
        wgmmaWait<1>();
        if (half == 0 && i > 0) {
          // One lane speaks for the warp, whose reads must all be done.
          __syncwarp();
          if (threadIdx.x % 32 == 0) arrive(sharedAt(&empty[(i - 1) % STAGES]));
        }
      }
    }
    wgmmaWait<0>();
    // The compiler may not read the sums before this point: it does not know that wgmma writes them later.
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int i = 0; i < SUMS; i++) asm volatile("" : "+r"(sums[t][i])::"memory");
    waitForEarlier();
    const float* tokenScales = p.tokenScale + (i64)set * p.capacity;
    if (SPLIT == 1)
      storeSums(p, sums, warpgroup, warp % 4, tile, token0, tokenScales + token0, p.featureScale + tile * FEATURES,
                p.bias ? p.bias + tile * FEATURES : nullptr);
  }
  if (SPLIT > 1) {
    int* mine = (int*)memory;
    if (warp < CONSUMERS / 32) {
      // The last stage may still be read by the other warpgroup.
      asm volatile("bar.sync 1, 256;" ::: "memory");
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int i = 0; i < SUMS; i++) mine[(t * SUMS + i) * CONSUMERS + threadIdx.x] = sums[t][i];
    }
    clusterSync();
    float v[OWN][2];
    if (warp < CONSUMERS / 32) {
      const int warpgroup = warp / 4;
      const float* tokenScales = p.tokenScale + (i64)set * p.capacity;
      u32 peer[SPLIT];
#pragma unroll
      for (int r = 0; r < SPLIT; r++)
        asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer[r]) : "r"(sharedAt(mine + threadIdx.x)), "r"(r));
#pragma unroll
      for (int k = 0; k < OWN; k++) {
        const int i = firstOwn + k, h = i / 2 % 2;
        const i64 token = token0 + i / 4 * 8 + 2 * t4 + i % 2;
        if (k >= ownCount || token >= p.tokens) continue;
#pragma unroll
        for (int t = 0; t < 2; t++) {
          int sum = 0;
#pragma unroll
          for (int r = 0; r < SPLIT; r++) {
            int part;
            asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(part) : "r"(peer[r] + (t * SUMS + i) * CONSUMERS * 4));
            sum += part;
          }
          if (NARROW) {
            v[k][t] = (float)sum * scale[k][t] + add[k][t];
          } else {
            const i64 f = tile * FEATURES + (EPILOGUE == GATED ? t * (FEATURES / 2) : 0) + featureOf(warpgroup, warp % 4, t, h, g);
            v[k][t] = (float)sum * (p.featureScale[f] * UNIT * tokenScales[token]) + (p.bias ? p.bias[f] : 0.f);
          }
        }
      }
    }
    // Nobody leaves while its sums are being read.
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    if (warp < CONSUMERS / 32) {
      const int warpgroup = warp / 4;
#pragma unroll
      for (int k = 0; k < OWN; k++) {
        const int i = firstOwn + k;
        const i64 token = token0 + i / 4 * 8 + 2 * t4 + i % 2;
        if (k >= ownCount || token >= p.tokens) continue;
#pragma unroll
        for (int t = 0; t < (EPILOGUE == GATED ? 1 : 2); t++) {
          const i64 feature = base + featureOf(warpgroup, warp % 4, t, i / 2 % 2, g);
          const float value = EPILOGUE == GATED ? silu(v[k][0]) * v[k][1] : v[k][t];
          if (NARROW && EPILOGUE == ADD) {
            if (feature < p.features) ((float*)p.out)[token * p.outStride + feature] = old[k][t] + value;
          } else {
            put(p, token, feature, value);
          }
        }
      }
    }
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  }
}
