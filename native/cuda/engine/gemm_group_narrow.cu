// The integer product with a scale per group of up to sixteen tokens (gemm_group.cuh), limited by reading weights and by
// latencies: as in gemm_narrow.cu a block of threads takes 32 features at a time (SiLU(gate)·up: 16 of each) over all columns,
// and its warps take the blocks of columns in turn. Their integers are exact, so that these may be found in any order; they
// meet in shared memory, a round of one block of columns per warp at a time, where a thread for each feature and token scales
// and adds them in the order of columns, while the other half of that memory (BUFFERS 2) is filled with the next round's.
//
// Macros: gemm_group.cuh's, TOKENS 8 or 16; STAGES; WARPS; BUFFERS 1 or 2.
#ifndef TOKENS
#define TOKENS 8
#endif
#include "engine/gemm_group.cuh"

#ifndef WARPS
#define WARPS 16
#endif
#ifndef BUFFERS
#define BUFFERS 2
#endif

constexpr int THREADS = WARPS * 32, COLUMN_TILES = TOKENS / 8;
// A lane's bytes of one tile of 64 features (of which its warp has 16) and half a block of columns.
constexpr int PIECE = 4 * WBITS;
// Features of the output of what a block takes at a time, and rows of weights; eight such parts make a tile.
constexpr int SLAB = EPILOGUE == GATED ? 16 : 32, ROWS = 32, SLABS = FEATURES / ROWS;
constexpr int OUTPUTS = SLAB * TOKENS;
static_assert(OUTPUTS <= THREADS, "a thread has one output");
static_assert(STAGES >= 2, "the next block of columns comes while one is multiplied");

// What a warp multiplies at a time, with what scales it: in a buffer of its ring, the scales after the rest.
constexpr int STEP_WEIGHTS = 4 * 32 * PIECE, STEP_CODES = TOKENS * 128;
constexpr int W_BYTES = W_GROUPS * ROWS * (int)sizeof(Scale), O_BYTES = OFFSETS ? W_BYTES : 0;
constexpr int A_BYTES = A_GROUPS * TOKENS * 4, S_BYTES = S_GROUPS * TOKENS * 4;
constexpr int SCALES_AT = STEP_WEIGHTS + STEP_CODES, SCALE_BYTES = W_BYTES + O_BYTES + A_BYTES + S_BYTES;
constexpr int STEP = (SCALES_AT + SCALE_BYTES + 127) / 128 * 128;
// What a warp leaves of a round: integers [unit][token][row], with 33 for lanes to write to different banks; the scales.
constexpr int PART_STRIDE = ROWS + 1, UNIT_PART = TOKENS * PART_STRIDE;
constexpr int PART = (UNITS * UNIT_PART * 4 + SCALE_BYTES + 15) / 16 * 16;

// Where the scale of row `r` of a slab lies among those of a group: SLAB features, gate's and then up's.
__device__ __forceinline__ void copy_of_features(u32 to, const u8* from, int slab) {
  constexpr int RUNS = EPILOGUE == GATED ? 2 : 1, RUN = ROWS / RUNS * (int)sizeof(Scale) / 16;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k0 = 0; k0 < W_GROUPS * RUNS * RUN; k0 += 32) {
    const int k = k0 + lane, within = k % RUN, run = k / RUN % RUNS, group = k / RUN / RUNS;
    if (k < W_GROUPS * RUNS * RUN)
      copy_async(to + k * 16,
                 from + (group * FEATURES + run * (FEATURES / 2) + slab * SLAB) * (int)sizeof(Scale) + within * 16);
  }
}

// [group][capacity] of one block of columns to [group][TOKENS].
template <int COUNT>
__device__ __forceinline__ void copy_of_tokens(u32 to, const float* from, i64 capacity) {
  constexpr int RUN = TOKENS / 4;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k0 = 0; k0 < COUNT * RUN; k0 += 32) {
    const int k = k0 + lane;
    if (k < COUNT * RUN) copy_async(to + k * 16, from + k / RUN * capacity + k % RUN * 4);
  }
}

// Where in a block of columns a lane's four codes of B are: of token 8n + g, columns 16·piece + 4·(lane % 4) on.
__device__ __forceinline__ int code_at(int n, int piece) {
  const int lane = threadIdx.x % 32, g = lane / 4;
  return (8 * n + g) * 128 + (piece ^ g) * 16 + lane % 4 * 4;
}

// feature_scale: of groups, or of features where weights have none.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gemm_group_narrow(PARAMETERS, const u8* feature_offset, const float* token_sums) {
  const Problem p = PROBLEM;
  extern __shared__ __align__(128) u8 memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  u8* const ring = memory + warp * STAGES * STEP;
  // [round % BUFFERS][warp]
  u8* const parts = memory + WARPS * STAGES * STEP;
  const int count = (int)p.blocks, slabs = (int)((p.features + SLAB - 1) / SLAB), rounds = (count + WARPS - 1) / WARPS;
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
    const i64 tile = next.slab / SLABS, block = tile * count + next.block;
    const u8* const from = p.weights + block * WEIGHT_BYTES + next.slab % SLABS / 4 * (WEIGHT_BYTES / 2) +
                           (next.slab % 4 * 32 + lane) * PIECE;
    const u32 stage = shared_at(ring + next.stage * STEP), to = stage + lane * PIECE;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int b = 0; b < PIECE; b += 16) copy_async(to + i * 32 * PIECE + b, from + i * (512 * WBITS) + b);
    if (W_GROUPS > 0) {
      const i64 at = block * W_GROUPS * FEATURES * (i64)sizeof(Scale);
      copy_of_features(stage + SCALES_AT, (const u8*)p.feature_scale + at, next.slab % SLABS);
      if (OFFSETS) copy_of_features(stage + SCALES_AT + W_BYTES, feature_offset + at, next.slab % SLABS);
    }
  };
  const auto copy_codes = [&] {
    if (next.slab >= slabs || warp >= count) return;
    const i64 block = (i64)set_of(p, next.slab / SLABS) * count + next.block;
    const i8* const from = p.codes + block * p.capacity * 128 + lane * 16;
    const u32 stage = shared_at(ring + next.stage * STEP), to = stage + STEP_WEIGHTS + lane * 16;
#pragma unroll
    for (int b = 0; b < STEP_CODES; b += 512) copy_async(to + b, from + b);
    copy_of_tokens<A_GROUPS>(stage + SCALES_AT + W_BYTES + O_BYTES, p.token_scale + block * A_GROUPS * p.capacity,
                             p.capacity);
    copy_of_tokens<S_GROUPS>(stage + SCALES_AT + W_BYTES + O_BYTES + A_BYTES,
                             token_sums + block * S_GROUPS * p.capacity, p.capacity);
  };
  // Weights do not depend on the kernels before this one.
  for (int i = 0; i < STAGES; i++, forward()) copy_weights();
  wait_for_earlier();
  next.slab = blockIdx.x, next.block = warp;
  for (int i = 0; i < STAGES; i++, forward()) copy_codes(), commit_copies();
  int stage = 0, turn = 0;
  for (int slab = blockIdx.x; slab < slabs; slab += gridDim.x) {
    const i64 tile = slab / SLABS;
    const int set = set_of(p, tile);
    // What this thread's result is made with is read now and needed after the sums.
    const int column = threadIdx.x % SLAB, token = threadIdx.x / SLAB;
    const i64 feature = (i64)slab * SLAB + column;
    const bool mine = threadIdx.x < OUTPUTS && token < p.tokens && feature < p.features;
    float of_feature[2] = {1.f, 1.f}, add[2] = {0.f, 0.f}, of_token = 1.f, old = 0.f, sums[2] = {0.f, 0.f};
    if (mine) {
      if (!AGROUP) of_token = p.token_scale[set * p.capacity + token];
#pragma unroll
      for (int t = 0; t < (EPILOGUE == GATED ? 2 : 1); t++) {
        const i64 f = tile * FEATURES + t * (FEATURES / 2) + slab % SLABS * SLAB + column;
        if (!WGROUP) of_feature[t] = p.feature_scale[f];
        if (p.bias) add[t] = p.bias[f];
      }
      if (EPILOGUE == ADD) old = ((const float*)p.out)[token * p.out_stride + feature];
    }
    for (int round = 0; round < rounds; round++, turn = (turn + 1) % BUFFERS) {
      u8* const now = parts + turn * (WARPS * PART);
      if (round * WARPS + warp < count) {
        wait_for_copies<STAGES - 1>();
        // Codes were copied by other lanes; weights by those that read them.
        __syncwarp();
        const u8* const at = ring + stage * STEP;
        int* const integers = (int*)(now + warp * PART);
        u32 a[2][2][2][4], b[COLUMN_TILES][2][4];
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
          for (int half = 0; half < 2; half++) operand_a(at + ((2 * t + half) * 32 + lane) * PIECE, a[t][half]);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
          for (int piece = 0; piece < 8; piece++)
            b[n][piece / 4][piece % 4] = *(const u32*)(at + STEP_WEIGHTS + code_at(n, piece));
#pragma unroll
        for (int u = 0; u < UNITS; u++)
#pragma unroll
          for (int n = 0; n < COLUMN_TILES; n++) {
            int d[2][4];
            unit_sums<2>(d, a, b[n], u);
#pragma unroll
            for (int t = 0; t < 2; t++)
#pragma unroll
              for (int i = 0; i < 4; i++) {
                const int h = i / 2, row = EPILOGUE == GATED ? 16 * t + 4 * (g / 2) + 2 * h + g % 2
                                                             : 8 * (g / 2) + 4 * t + 2 * h + g % 2;
                integers[u * UNIT_PART + (8 * n + 2 * t4 + i % 2) * PART_STRIDE + row] = d[t][i];
              }
          }
        for (int i = lane; i < SCALE_BYTES / 4; i += 32)
          integers[UNITS * UNIT_PART + i] = *(const int*)(at + SCALES_AT + i * 4);
        // Every lane has read what others take the place of.
        __syncwarp();
        copy_weights(), copy_codes(), commit_copies(), forward();
        if (++stage == STAGES) stage = 0;
      }
      // With two buffers, the other one was read before its threads came to this barrier.
      __syncthreads();
      const int left = threadIdx.x < OUTPUTS ? count - round * WARPS : 0, here = left < WARPS ? left : WARPS;
#pragma unroll 2
      for (int w = 0; w < here; w++) {
        const int* const integers = (const int*)(now + w * PART);
        const u8* const scales = (const u8*)(integers + UNITS * UNIT_PART);
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
          const float by =
              AGROUP ? *(const float*)(scales + W_BYTES + O_BYTES + (a_group(u) * TOKENS + token) * 4) * UNIT : 1.f;
#pragma unroll
          for (int t = 0; t < (EPILOGUE == GATED ? 2 : 1); t++) {
            const int row = 16 * t + column, place = w_group(u) * ROWS + row;
            const float weight = !WGROUP ? 1.f : scale_of(((const Scale*)scales)[place]) * (AGROUP ? 1.f : UNIT);
            sums[t] = add_unit(sums[t], integers[u * UNIT_PART + token * PART_STRIDE + row], weight, by);
            if (OFFSETS) {
              const float offset = offset_of(((const Scale*)scales)[place], ((const Scale*)(scales + W_BYTES))[place]);
#pragma unroll
              for (int i = 0; i < UNIT_SUMS; i++)
                sums[t] = __fmaf_rn(
                    *(const float*)(scales + W_BYTES + O_BYTES + A_BYTES + ((u * UNIT_SUMS + i) * TOKENS + token) * 4),
                    offset, sums[t]);
            }
          }
        }
      }
      if (BUFFERS == 1) __syncthreads();
    }
    if (!mine) continue;
    float v[2];
#pragma unroll
    for (int t = 0; t < 2; t++) v[t] = last_scale(sums[t], of_feature[t], of_token, add[t]);
    const float value = EPILOGUE == GATED ? silu(v[0]) * v[1] : v[0];
    const i64 to = token * p.out_stride + feature;
    if (OUT16) ((u16*)p.out)[to] = to_half(value);
    else ((float*)p.out)[to] = EPILOGUE == ADD ? old + value : value;
  }
}
