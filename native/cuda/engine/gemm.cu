// The engine's integer product: out[token][feature] = codes · weights, times the token's and the feature's scales.
//
// Weights are the A operand and stay in registers: 4-bit codes are widened there (code·16 in a byte: one AND, and one
// shift more for the other nibble; the sum is divided by 16 in the scales, which is exact). Tokens are the columns, so
// one kernel serves prefill (128 tokens per block, limited by the matrix units) and decode (8 … 64 tokens, limited by
// reading weights). A block computes 256 features: two warpgroups, each two tiles of 64; a thirteenth of its shared
// memory traffic is weights. In decode SPLIT blocks of a cluster share a tile's columns and add their sums through
// distributed shared memory; 32-bit integer sums do not depend on the order.
//
// Macros: WBITS 4 or 8; TOKENS 8 … 128; SPLIT 1 … 8; STAGES; EPILOGUE 0 store, 1 add to out (f32), 2 SiLU(gate)·up (the
// first tile of a warpgroup holds gate, the second up); OUT16 1: halves; WGMMA 0: mma.sync (before Hopper, and as a check).
//
// Weights: [tile of 256][block of 128 columns][warpgroup][tile of 64][half block][thread][16·WBITS/4 bytes], what a
// thread of mma holds as A; src/engine/cuda/weights.ts packs them. Codes: engine.cuh, codeOffset.
#include "engine/wgmma.cuh"

#ifndef WBITS
#define WBITS 4
#endif
#ifndef TOKENS
#define TOKENS 128
#endif
#ifndef SPLIT
#define SPLIT 1
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef EPILOGUE
#define EPILOGUE 0
#endif
#ifndef OUT16
#define OUT16 0
#endif
#ifndef WGMMA
#define WGMMA 1
#endif

#define STORE 0
#define ADD 1
#define GATED 2

constexpr int FEATURES = 256;
constexpr int WEIGHT_BYTES = FEATURES * 128 * WBITS / 8;
constexpr int CODE_BYTES = TOKENS * 128;
[[maybe_unused]] constexpr int STAGE_BYTES = WEIGHT_BYTES + CODE_BYTES;
constexpr int SUMS = TOKENS / 2;  // per thread and tile of 64
constexpr int CONSUMERS = 256;
// With 128 tokens a consumer needs more registers than an even share: the producer is a warpgroup that gives its own away.
constexpr bool UNEVEN = TOKENS == 128;
[[maybe_unused]] constexpr int THREADS = CONSUMERS + (UNEVEN ? 128 : 32);
constexpr float UNIT = WBITS == 4 ? 1.f / 16 : 1.f;

struct Problem {
  const u8* weights;
  const i8* codes;
  const float* tokenScale;
  const float* featureScale;
  const float* bias;
  void* out;
  i64 tokens, capacity, blocks, features, outStride, firstOfSet1, firstOfSet2;
};

// Codes and scales of the set that a tile of features reads.
__device__ __forceinline__ int setOf(const Problem& p, i64 tile) {
  return tile >= p.firstOfSet2 ? 2 : tile >= p.firstOfSet1 ? 1 : 0;
}

// Feature of a thread's row 8h + g of tile `t` (of 64) in this warp, relative to the block of features.
__device__ __forceinline__ int featureOf(int warpgroup, int warp, int t, int h, int g) {
  if (EPILOGUE == GATED) return warpgroup * 64 + warp * 16 + 4 * (g / 2) + 2 * h + g % 2;
  return warpgroup * 128 + warp * 32 + 8 * (g / 2) + 4 * t + 2 * h + g % 2;
}

__device__ __forceinline__ u32 transposed(u32 pair) {
  u32 result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

__device__ __forceinline__ float silu(float x) {
  return x * sigmoidf(x);
}

// Values of one feature (two tiles for GATED) and one token.
__device__ __forceinline__ void put(const Problem& p, i64 token, i64 feature, float value) {
  if (token >= p.tokens || feature >= p.features) return;
  const i64 at = token * p.outStride + feature;
  if (OUT16) ((u16*)p.out)[at] = toHalf(value);
  else if (EPILOGUE == ADD) ((float*)p.out)[at] += value;
  else ((float*)p.out)[at] = value;
}

// A warp's sums to memory. After exchanging rows and columns among the lanes, a lane has 8 (GATED: 4) consecutive
// features of one token.
__device__ __forceinline__ void storeSums(const Problem& p, int (&sums)[2][SUMS], int warpgroup, int warp, i64 tile,
                                          i64 token0, const float* tokenScale) {
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const i64 base = tile * (EPILOGUE == GATED ? FEATURES / 2 : FEATURES);
  float scale[2][2], bias[2][2];
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // Scales are listed in the order of rows as they are packed: gate's, then up's, for GATED.
      const i64 f = tile * FEATURES + (EPILOGUE == GATED ? t * (FEATURES / 2) : 0) + featureOf(warpgroup, warp, t, h, g);
      scale[t][h] = p.featureScale[f] * UNIT;
      bias[t][h] = p.bias ? p.bias[f] : 0.f;
    }
  const i64 first = base + (EPILOGUE == GATED ? warpgroup * 64 + warp * 16 + 4 * t4 : warpgroup * 128 + warp * 32 + 8 * t4);
  const int width = EPILOGUE == GATED ? 4 : 8;
  const bool wide = first + width <= p.features && p.outStride % 8 == 0;
#pragma unroll
  for (int j = 0; j < TOKENS / 8; j++) {
    float s[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const i64 token = token0 + 8 * j + 2 * t4 + e;
      s[e] = token < p.tokens ? tokenScale[token] : 0.f;
    }
    float v[2][2][2];  // tile, h, e
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          v[t][h][e] = (float)sums[t][4 * j + 2 * h + e] * (scale[t][h] * s[e]) + bias[t][h];
    const i64 token = token0 + 8 * j + g;
    if (OUT16) {
      u32 word[4];
      if (EPILOGUE == GATED) {
#pragma unroll
        for (int h = 0; h < 2; h++)
          word[h] = transposed(packHalf(silu(v[0][h][0]) * v[1][h][0], silu(v[0][h][1]) * v[1][h][1]));
      } else {
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
          for (int h = 0; h < 2; h++) word[2 * t + h] = transposed(packHalf(v[t][h][0], v[t][h][1]));
      }
      if (token < p.tokens) {
        u16* to = (u16*)p.out + token * p.outStride + first;
        if (wide) {
          if (EPILOGUE == GATED) *(uint2*)to = make_uint2(word[0], word[1]);
          else *(uint4*)to = make_uint4(word[0], word[1], word[2], word[3]);
        } else {
#pragma unroll
          for (int i = 0; i < width; i++)
            if (first + i < p.features) to[i] = (u16)(word[i / 2] >> (16 * (i % 2)));
        }
      }
    } else {
      float r[8];
#pragma unroll
      for (int i = 0; i < width / 2; i++) {
        const int t = EPILOGUE == GATED ? 0 : i / 2, h = i % 2;
        float a = v[t][h][0], b = v[t][h][1];
        if (EPILOGUE == GATED) a = silu(v[0][h][0]) * v[1][h][0], b = silu(v[0][h][1]) * v[1][h][1];
        const u32 low = transposed(__byte_perm(__float_as_uint(a), __float_as_uint(b), 0x5410));
        const u32 high = transposed(__byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632));
        r[2 * i] = __uint_as_float(__byte_perm(low, high, 0x5410));
        r[2 * i + 1] = __uint_as_float(__byte_perm(low, high, 0x7632));
      }
      if (token < p.tokens) {
        float* to = (float*)p.out + token * p.outStride + first;
        if (wide) {
#pragma unroll
          for (int q = 0; q < width / 4; q++) {
            f4 word = {r[4 * q], r[4 * q + 1], r[4 * q + 2], r[4 * q + 3]};
            if (EPILOGUE == ADD) {
              const f4 old = *(const f4*)(to + 4 * q);
              word.x += old.x, word.y += old.y, word.z += old.z, word.w += old.w;
            }
            *(f4*)(to + 4 * q) = word;
          }
        } else {
#pragma unroll
          for (int i = 0; i < width; i++)
            if (first + i < p.features) to[i] = EPILOGUE == ADD ? to[i] + r[i] : r[i];
        }
      }
    }
  }
}

// A thread's A operand for 32 columns from its packed bytes.
__device__ __forceinline__ void widen(const uint4& words, u32 (&a)[2][4]) {
  const u32 w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int s = 0; s < 2; s++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      a[s][2 * i] = (w[2 * s + i] << 4) & 0xf0f0f0f0u;
      a[s][2 * i + 1] = w[2 * s + i] & 0xf0f0f0f0u;
    }
}

__device__ __forceinline__ void operandA(const u8* from, u32 (&a)[2][4]) {
  if (WBITS == 4) {
    widen(*(const uint4*)from, a);
  } else {
#pragma unroll
    for (int s = 0; s < 2; s++) {
      const uint4 w = *(const uint4*)(from + 16 * s);
      a[s][0] = w.x, a[s][1] = w.y, a[s][2] = w.z, a[s][3] = w.w;
    }
  }
}

#define PARAMETERS                                                                                                      \
  const u8 *weights, const i8 *codes, const float *tokenScale, const float *featureScale, const float *bias, void *out, \
      i64 tokens, i64 capacity, i64 blocks, i64 features, i64 outStride, i64 firstOfSet1, i64 firstOfSet2
#define PROBLEM                                                                                                         \
  {weights, codes, tokenScale, featureScale, bias, out, tokens, capacity, blocks, features, outStride, firstOfSet1, firstOfSet2}

#if WGMMA

__device__ __forceinline__ void waitBarrier(u32 barrier, u32 parity) {
  asm volatile(
      "{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra done; bra again; done:}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void bulkCopy(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
               "r"(bytes), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void clusterSync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

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
  if (warp >= CONSUMERS / 32) {
    if (UNEVEN) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == CONSUMERS) {
      const u8* from = p.weights + (tile * p.blocks + begin) * WEIGHT_BYTES;
      const i8* with = p.codes + ((i64)set * p.blocks + begin) * p.capacity * 128 + token0 * 128;
      const int count = (int)(end - begin), ahead = count < STAGES ? count : STAGES;
      const auto weightsOf = [&](int i, int stage) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAt(&full[stage])), "r"(STAGE_BYTES)
                     : "memory");
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
    if (UNEVEN) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warpgroup = warp / 4, thread = threadIdx.x % 128;
    u32 a[2][2][2][4];  // half block, tile, step of 32 columns
    const int count = (int)(end - begin);
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
    if (SPLIT == 1) storeSums(p, sums, warpgroup, warp % 4, tile, token0, tokenScales);
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
    if (warp < CONSUMERS / 32) {
      const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4, warpgroup = warp / 4;
      const float* tokenScales = p.tokenScale + (i64)set * p.capacity;
      u32 peer[SPLIT];
#pragma unroll
      for (int r = 0; r < SPLIT; r++)
        asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer[r]) : "r"(sharedAt(mine + threadIdx.x)), "r"(r));
      const i64 base = tile * (EPILOGUE == GATED ? FEATURES / 2 : FEATURES);
      for (int i = SUMS * rank / SPLIT; i < SUMS * (rank + 1) / SPLIT; i++) {
        const int h = i / 2 % 2;
        const i64 token = token0 + i / 4 * 8 + 2 * t4 + i % 2;
        if (token >= p.tokens) continue;
        float v[2];
#pragma unroll
        for (int t = 0; t < 2; t++) {
          int sum = 0;
#pragma unroll
          for (int r = 0; r < SPLIT; r++) {
            int part;
            asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(part) : "r"(peer[r] + (t * SUMS + i) * CONSUMERS * 4));
            sum += part;
          }
          const i64 f = tile * FEATURES + (EPILOGUE == GATED ? t * (FEATURES / 2) : 0) + featureOf(warpgroup, warp % 4, t, h, g);
          v[t] = (float)sum * (p.featureScale[f] * UNIT * tokenScales[token]) + (p.bias ? p.bias[f] : 0.f);
        }
        if (EPILOGUE == GATED) {
          put(p, token, base + featureOf(warpgroup, warp % 4, 0, h, g), silu(v[0]) * v[1]);
        } else {
          put(p, token, base + featureOf(warpgroup, warp % 4, 0, h, g), v[0]);
          put(p, token, base + featureOf(warpgroup, warp % 4, 1, h, g), v[1]);
        }
      }
    }
    // Nobody leaves while its sums are being read.
    clusterSync();
  }
}

#else

// The same product with mma.sync, operands straight from global memory.
extern "C" __global__ void __launch_bounds__(CONSUMERS) gemm(PARAMETERS) {
  const Problem p = PROBLEM;
  const i64 tile = blockIdx.y, token0 = (i64)blockIdx.x * TOKENS;
  const int set = setOf(p, tile), warp = threadIdx.x / 32, warpgroup = warp / 4, thread = threadIdx.x % 128;
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  releaseNext();
  waitForEarlier();
  int sums[2][SUMS];
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int i = 0; i < SUMS; i++) sums[t][i] = 0;
  for (i64 block = 0; block < p.blocks; block++) {
    const u8* packed = p.weights + (tile * p.blocks + block) * WEIGHT_BYTES + warpgroup * (WEIGHT_BYTES / 2) + thread * (4 * WBITS);
    const i8* codesAt = p.codes + ((i64)set * p.blocks + block) * p.capacity * 128;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32 a[2][2][4];
#pragma unroll
      for (int t = 0; t < 2; t++) operandA(packed + (2 * t + half) * (512 * WBITS), a[t]);
#pragma unroll
      for (int s = 0; s < 2; s++)
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++) {
          const i64 row = token0 + 8 * j + g;
          const int piece = 2 * (2 * half + s);
          const u32 b0 = *(const u32*)(codesAt + row * 128 + ((piece ^ (int)(row % 8)) * 16) + 4 * t4);
          const u32 b1 = *(const u32*)(codesAt + row * 128 + (((piece + 1) ^ (int)(row % 8)) * 16) + 4 * t4);
#pragma unroll
          for (int t = 0; t < 2; t++) {
            int* c = sums[t] + 4 * j;
            asm volatile(
                "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                : "r"(a[t][s][0]), "r"(a[t][s][1]), "r"(a[t][s][2]), "r"(a[t][s][3]), "r"(b0), "r"(b1));
          }
        }
    }
  }
  storeSums(p, sums, warpgroup, warp % 4, tile, token0, p.tokenScale + (i64)set * p.capacity);
}

#endif
