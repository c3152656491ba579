// The integer product of up to sixteen tokens (gemm.cuh), limited by reading weights and by latencies: no two blocks of threads
// share a feature, so that none waits for another. A block takes 32 features at a time (SiLU(gate)·up: 16 of each) over all
// columns; its warps take the blocks of columns in turn and add their sums in shared memory; 32-bit integer sums do not depend
// on the order. Each lane copies what it will multiply into places of its own, STAGES blocks of columns ahead, past the borders of
// features, and needs no barrier for that.
//
// Macros: gemm.cuh's, TOKENS 8 or 16; STAGES.
#ifndef TOKENS
#define TOKENS 8
#endif
#include "engine/gemm.cuh"

constexpr int WARPS = 16, THREADS = WARPS * 32, COLUMN_TILES = TOKENS / 8;
// A lane's bytes of one tile of 64 features (of which its warp has 16) and half a block of columns.
constexpr int PIECE = 4 * WBITS;
constexpr int STEP_WEIGHTS = 4 * 32 * PIECE, STEP_CODES = TOKENS * 128, STEP = STEP_WEIGHTS + STEP_CODES;
// Features of the output of what a block takes at a time, and rows of weights.
constexpr int SLAB = EPILOGUE == GATED ? 16 : 32, ROWS = 32;
// Eight such parts make a tile.
constexpr int SLABS = FEATURES / ROWS;
// Of a token's sums; with 33, the lanes of a warp write to different banks.
constexpr int PART_STRIDE = ROWS + 1, PART = TOKENS * PART_STRIDE;
constexpr int OUTPUTS = SLAB * TOKENS;
static_assert(OUTPUTS <= THREADS, "a thread has one output");
static_assert(STAGES >= 2, "the next block of columns comes while one is multiplied");

__device__ __forceinline__ void copy_async(u32 to, const void* from, u64 policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(policy)
               : "memory");
}

__device__ __forceinline__ void copy_async(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// C (16×8) += A (16×32) · B (32×8), bytes.
__device__ __forceinline__ void mma_bytes(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Where in a block of columns a lane's four codes of B are: of token 8n + g, columns 32·step + 16·part + 4·(lane % 4) on.
__device__ __forceinline__ int code_at(int n, int step, int part) {
  const int lane = threadIdx.x % 32, g = lane / 4;
  return (8 * n + g) * 128 + ((2 * step + part) ^ g) * 16 + lane % 4 * 4;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_narrow(PARAMETERS) {
  const Problem p = PROBLEM;
  extern __shared__ __align__(128) u8 memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  int* const parts = (int*)memory;
  u8* const ring = memory + WARPS * PART * 4 + warp * STAGES * STEP;
  const int count = (int)p.blocks, slabs = (int)((p.features + SLAB - 1) / SLAB);
  const u64 policy = read_once();
  release_next();
  // What comes next into the ring.
  struct {
    int slab, block, stage;
  } next = {(int)blockIdx.x, warp, 0};
  const auto forward = [&] {
    if (++next.stage == STAGES) next.stage = 0;
    if ((next.block += WARPS) >= count) next.block = warp, next.slab += gridDim.x;
  };
  const auto copy_weights = [&] {
    if (next.slab >= slabs || warp >= count) return;
    const u8* const from = p.weights + ((i64)(next.slab / SLABS) * count + next.block) * WEIGHT_BYTES +
                           next.slab % SLABS / 4 * (WEIGHT_BYTES / 2) + (next.slab % 4 * 32 + lane) * PIECE;
    const u32 to = shared_at(ring + next.stage * STEP + lane * PIECE);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int b = 0; b < PIECE; b += 16) copy_async(to + i * 32 * PIECE + b, from + i * (512 * WBITS) + b, policy);
  };
  const auto copy_codes = [&] {
    if (next.slab >= slabs || warp >= count) return;
    const i8* const from =
        p.codes + ((i64)set_of(p, next.slab / SLABS) * count + next.block) * p.capacity * 128 + lane * 16;
    const u32 to = shared_at(ring + next.stage * STEP + STEP_WEIGHTS + lane * 16);
#pragma unroll
    for (int b = 0; b < STEP_CODES; b += 512) copy_async(to + b, from + b);
  };
  // Weights do not depend on the kernels before this one.
  for (int i = 0; i < STAGES; i++, forward()) copy_weights();
  wait_for_earlier();
  next.slab = blockIdx.x, next.block = warp;
  for (int i = 0; i < STAGES; i++, forward()) copy_codes(), commit_copies();
  int stage = 0;
  for (int slab = blockIdx.x; slab < slabs; slab += gridDim.x) {
    const i64 tile = slab / SLABS;
    const int set = set_of(p, tile);
    // What this thread's result is made with is read now and needed after the sums.
    const int column = threadIdx.x % SLAB, token = threadIdx.x / SLAB;
    const i64 feature = (i64)slab * SLAB + column;
    const bool mine = threadIdx.x < OUTPUTS && token < p.tokens && feature < p.features;
    float of_feature[2] = {0.f, 0.f}, add[2] = {0.f, 0.f}, of_token = 0.f, old = 0.f;
    if (mine) {
      of_token = p.token_scale[set * p.capacity + token];
#pragma unroll
      for (int t = 0; t < (EPILOGUE == GATED ? 2 : 1); t++) {
        const i64 f = tile * FEATURES + t * (FEATURES / 2) + slab % SLABS * SLAB + column;
        of_feature[t] = p.feature_scale[f];
        if (p.bias) add[t] = p.bias[f];
      }
      if (EPILOGUE == ADD) old = ((const float*)p.out)[token * p.out_stride + feature];
    }
    int sums[2][COLUMN_TILES][4];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[t][n][i] = 0;
    for (int block = warp; block < count; block += WARPS) {
      asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
      // Codes were copied by other lanes; weights by those that read them.
      __syncwarp();
      const u8* const at = ring + stage * STEP;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        u32 a[2][2][4];
#pragma unroll
        for (int t = 0; t < 2; t++) operand_a(at + ((2 * t + half) * 32 + lane) * PIECE, a[t]);
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
          for (int n = 0; n < COLUMN_TILES; n++) {
            u32 b[2];
#pragma unroll
            for (int part = 0; part < 2; part++)
              b[part] = *(const u32*)(at + STEP_WEIGHTS + code_at(n, 2 * half + s, part));
#pragma unroll
            for (int t = 0; t < 2; t++) mma_bytes(sums[t][n], a[t][s], b[0], b[1]);
          }
      }
      // Every lane has read the codes before others take their place.
      __syncwarp();
      copy_weights(), copy_codes(), commit_copies(), forward();
      if (++stage == STAGES) stage = 0;
    }
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int h = i / 2, row = EPILOGUE == GATED ? 16 * t + 4 * (g / 2) + 2 * h + g % 2
                                                       : 8 * (g / 2) + 4 * t + 2 * h + g % 2;
          parts[warp * PART + (8 * n + 2 * t4 + i % 2) * PART_STRIDE + row] = sums[t][n][i];
        }
    __syncthreads();
    if (mine) {
      float v[2];
#pragma unroll
      for (int t = 0; t < (EPILOGUE == GATED ? 2 : 1); t++) {
        int sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += parts[w * PART + token * PART_STRIDE + 16 * t + column];
        v[t] = (float)sum * (of_feature[t] * UNIT * of_token) + add[t];
      }
      const float value = EPILOGUE == GATED ? silu(v[0]) * v[EPILOGUE == GATED ? 1 : 0] : v[0];
      const i64 to = token * p.out_stride + feature;
      if (OUT16) ((u16*)p.out)[to] = to_half(value);
      else ((float*)p.out)[to] = EPILOGUE == ADD ? old + value : value;
    }
    if (slab + (int)gridDim.x < slabs) __syncthreads();
  }
}
