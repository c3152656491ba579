// The integer product with a scale per group, for any number of tokens (gemm_group.cuh): SLABS times 32 features and
// ACROSS times TOKENS tokens per block of threads, a warp for each pair of these, over all columns, since sums in f32 have
// an order. Weights, codes and what scales them arrive by cp.async into a ring of buffers, one block of 128 columns each. A
// unit's integers live for two or four mma only, so that the sums in f32 are all that registers hold for long.
//
// Macros: gemm_group.cuh's, TOKENS being those of a warp; SLABS 1 … 8; ACROSS; STAGES 2 ….
#ifndef TOKENS
#define TOKENS 64
#endif
#include "engine/gemm_group.cuh"

#ifndef SLABS
#define SLABS 8
#endif
#ifndef ACROSS
#define ACROSS 1
#endif

constexpr int THREADS = 32 * SLABS * ACROSS;
constexpr int BLOCK_TOKENS = TOKENS * ACROSS, GROUPS = TOKENS / 8;
// A lane's bytes of one tile of 64 features (of which a warp has 16) and half a block of columns, in pieces of 16.
constexpr int PIECE = 4 * WBITS, PIECES = PIECE / 16;
constexpr int SLAB_BYTES = 4 * 32 * PIECE, SLAB_FEATURES = 32 * SLABS;
// Parts of a buffer of the ring.
constexpr int CODES_AT = SLABS * SLAB_BYTES;
constexpr int W_SCALES_AT = CODES_AT + BLOCK_TOKENS * 128,
              W_SCALE_BYTES = W_GROUPS * SLAB_FEATURES * (int)sizeof(Scale);
constexpr int OFFSETS_AT = W_SCALES_AT + W_SCALE_BYTES, OFFSET_BYTES = OFFSETS ? W_SCALE_BYTES : 0;
constexpr int A_SCALES_AT = OFFSETS_AT + OFFSET_BYTES, SUMS_AT = A_SCALES_AT + A_GROUPS * BLOCK_TOKENS * 4;
// Codes begin at a multiple of 128 in each buffer.
constexpr int RING_BYTES = (SUMS_AT + S_GROUPS * BLOCK_TOKENS * 4 + 127) / 128 * 128;
static_assert(W_SCALE_BYTES % 16 == 0 && SLABS <= 8 && 8 % SLABS == 0, "slabs of one tile, copied 16 bytes at a time");

// Halves of a block of columns whose operands are held at a time.
constexpr int HALVES = UNIT_COLUMNS == 128 ? 2 : 1, HELD_UNITS = 64 * HALVES / UNIT_COLUMNS;

// Two blocks of threads share a multiprocessor where registers allow it.
constexpr int RESIDENT = THREADS <= 256 ? 2 : 1;

// `pieces` of 16 bytes, each from where `from` says to where `to` does.
template <int COUNT, class From, class To>
__device__ __forceinline__ void copy_pieces(const From& from, const To& to) {
#pragma unroll
  for (int k0 = 0; k0 < COUNT; k0 += THREADS) {
    const int k = k0 + (int)threadIdx.x;
    if (COUNT % THREADS == 0 || k < COUNT) copy_async(to(k), from(k));
  }
}

// Scales or offsets of this block's features, of the groups of one block of columns.
__device__ __forceinline__ void copy_of_features(u32 to, const u8* from, int slab0) {
  // Gate's features and up's are two runs.
  constexpr int RUNS = EPILOGUE == GATED ? 2 : 1, RUN = SLAB_FEATURES / RUNS * (int)sizeof(Scale) / 16;
  copy_pieces<W_GROUPS * RUNS * RUN>(
      [&](int k) {
        const int within = k % RUN, run = k / RUN % RUNS, group = k / RUN / RUNS;
        return from + (group * FEATURES + run * (FEATURES / 2) + slab0 * (32 / RUNS)) * (int)sizeof(Scale) +
               within * 16;
      },
      [&](int k) { return to + k * 16; });
}

struct From {
  const u8 *weights, *scales, *offsets;
  const i8* codes;
  const float *token_scales, *token_sums;
  i64 capacity;
  int slab0;
};

// What a block of columns needs that no kernel before this one makes, and the rest.
__device__ __forceinline__ void weights_to(u32 stage, const From& from, i64 block) {
  const u8* const weights = from.weights + block * WEIGHT_BYTES;
  copy_pieces<SLABS * 4 * 32 * PIECES>(
      [&](int k) {
        const int slab = from.slab0 + k / (128 * PIECES), i = k / (32 * PIECES) % 4;
        return weights + slab / 4 * (WEIGHT_BYTES / 2) + i * (512 * WBITS) + slab % 4 * (32 * PIECE) +
               k % (32 * PIECES) * 16;
      },
      [&](int k) {
        const int lane = k % (32 * PIECES) / PIECES, piece = k % PIECES;
        return stage + (k / (32 * PIECES) * (32 * PIECES) + piece * 32 + lane) * 16;
      });
  if (W_GROUPS > 0) {
    const i64 at = block * (W_GROUPS * FEATURES) * (i64)sizeof(Scale);
    copy_of_features(stage + W_SCALES_AT, from.scales + at, from.slab0);
    if (OFFSETS) copy_of_features(stage + OFFSETS_AT, from.offsets + at, from.slab0);
  }
}

__device__ __forceinline__ void codes_to(u32 stage, const From& from, i64 block) {
  const i8* const codes = from.codes + block * from.capacity * 128;
  copy_pieces<BLOCK_TOKENS * 8>([&](int k) { return codes + k * 16; },
                                [&](int k) { return stage + CODES_AT + k * 16; });
  constexpr int RUN = BLOCK_TOKENS / 4;
  if (A_GROUPS > 0)
    copy_pieces<A_GROUPS * RUN>(
        [&](int k) { return from.token_scales + (block * A_GROUPS + k / RUN) * from.capacity + k % RUN * 4; },
        [&](int k) { return stage + A_SCALES_AT + k * 16; });
  if (S_GROUPS > 0)
    copy_pieces<S_GROUPS * RUN>(
        [&](int k) { return from.token_sums + (block * S_GROUPS + k / RUN) * from.capacity + k % RUN * 4; },
        [&](int k) { return stage + SUMS_AT + k * 16; });
}

// Codes of eight tokens and 64 columns, as mma wants them. `at`: of this lane's row of a piece.
__device__ __forceinline__ void token_words(u32 (&x)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}

// Where the scale of row 8h + g of a warp's tile t lies among those of a group.
__device__ __forceinline__ int feature_place(int slab, int t, int h, int g) {
  return EPILOGUE == GATED ? t * (SLAB_FEATURES / 2) + slab * 16 + 4 * (g / 2) + 2 * h + g % 2
                           : slab * 32 + 8 * (g / 2) + 4 * t + 2 * h + g % 2;
}

__device__ __forceinline__ void multiply(const u8* stage, float (&sums)[2][4 * GROUPS]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const int slab = warp % SLABS, first = warp / SLABS * TOKENS;
  const u32 codes = shared_at(stage) + CODES_AT + (first + lane % 8) * 128 + ((lane / 8) ^ (lane % 8)) * 16;
#pragma unroll
  for (int half0 = 0; half0 < 2; half0 += HALVES) {
    u32 a[2][HALVES][2][4];
    float of_weights[HELD_UNITS][2][2], offsets[OFFSETS ? HELD_UNITS : 1][2][2];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int half = 0; half < HALVES; half++) {
        const u8* const at = stage + ((slab * 4 + 2 * t + half0 + half) * (32 * PIECES) + lane) * 16;
        if (WBITS == 4) {
          widen(*(const uint4*)at, a[t][half]);
        } else {
#pragma unroll
          for (int s = 0; s < 2; s++) {
            const uint4 w = *(const uint4*)(at + s * (PIECES - 1) * 512);
            a[t][half][s][0] = w.x, a[t][half][s][1] = w.y, a[t][half][s][2] = w.z, a[t][half][s][3] = w.w;
          }
        }
      }
#pragma unroll
    for (int u = 0; u < HELD_UNITS; u++)
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int at = w_group(half0 * (UNITS / 2) + u) * SLAB_FEATURES + feature_place(slab, t, h, g);
          // Where tokens have groups, their scales take the power of two.
          of_weights[u][t][h] =
              !WGROUP ? 1.f : scale_of(((const Scale*)(stage + W_SCALES_AT))[at]) * (AGROUP ? 1.f : UNIT);
          if (OFFSETS)
            offsets[u][t][h] =
                offset_of(((const Scale*)(stage + W_SCALES_AT))[at], ((const Scale*)(stage + OFFSETS_AT))[at]);
        }
#pragma unroll
    for (int j = 0; j < GROUPS; j++) {
      u32 b[HALVES][4];
#pragma unroll
      for (int half = 0; half < HALVES; half++) token_words(b[half], (codes + j * 1024) ^ (64 * (half0 + half)));
      const int token = first + 8 * j + 2 * t4;
#pragma unroll
      for (int u = 0; u < HELD_UNITS; u++) {
        const int unit = half0 * (UNITS / 2) + u;
        int integers[2][4];
        unit_sums<HALVES>(integers, a, b, u);
        float2 of_tokens = make_float2(1.f, 1.f);
        if (AGROUP) {
          of_tokens = *(const float2*)(stage + A_SCALES_AT + (a_group(unit) * BLOCK_TOKENS + token) * 4);
          of_tokens.x *= UNIT, of_tokens.y *= UNIT;
        }
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
          for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              float& sum = sums[t][4 * j + 2 * h + e];
              sum = add_unit(sum, integers[t][2 * h + e], of_weights[u][t][h], e ? of_tokens.y : of_tokens.x);
            }
#pragma unroll
        for (int i = 0; i < UNIT_SUMS; i++) {
          const float2 s = *(const float2*)(stage + SUMS_AT + ((unit * UNIT_SUMS + i) * BLOCK_TOKENS + token) * 4);
#pragma unroll
          for (int t = 0; t < 2; t++)
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
              for (int e = 0; e < 2; e++) {
                float& sum = sums[t][4 * j + 2 * h + e];
                sum = __fmaf_rn(e ? s.y : s.x, offsets[u][t][h], sum);
              }
        }
      }
    }
  }
}

// feature_scale: of groups, or of features where weights have none.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gemm_group(PARAMETERS, const u8* feature_offset, const float* token_sums) {
  const Problem p = PROBLEM;
  extern __shared__ __align__(128) u8 memory[];
  const int slab_blocks = 8 / SLABS;
  const i64 tile = blockIdx.y / slab_blocks, token0 = (i64)blockIdx.x * BLOCK_TOKENS;
  const int slab0 = (int)(blockIdx.y % slab_blocks) * SLABS, set = set_of(p, tile), count = (int)p.blocks;
  const i64 groups = tile * p.blocks * W_GROUPS * FEATURES * (i64)sizeof(Scale);
  const From from = {p.weights + tile * p.blocks * WEIGHT_BYTES,
                     (const u8*)p.feature_scale + groups,
                     feature_offset + groups,
                     p.codes + ((i64)set * p.blocks * p.capacity + token0) * 128,
                     p.token_scale + (i64)set * p.blocks * A_GROUPS * p.capacity + token0,
                     token_sums + (i64)set * p.blocks * S_GROUPS * p.capacity + token0,
                     p.capacity,
                     slab0};
  const u32 ring = shared_at(memory);
  release_next();
  float sums[2][4 * GROUPS];
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int i = 0; i < 4 * GROUPS; i++) sums[t][i] = 0.f;
  // Weights do not depend on the kernels before this one. Group i of copies completes buffer i.
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++)
    if (i < count) weights_to(ring + i * RING_BYTES, from, i);
  wait_for_earlier();
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < count) codes_to(ring + i * RING_BYTES, from, i);
    commit_copies();
  }
  int now = 0, next = STAGES - 1;
  for (int i = 0; i < count; i++) {
    // STAGES − 1 + i groups are committed, of which the first i + 1 must be here.
    wait_for_copies<STAGES - 2>();
    // So are the other threads' parts of this buffer, and all are done with the one before it, which is filled next.
    __syncthreads();
    const int ahead = i + STAGES - 1;
    if (ahead < count) {
      weights_to(ring + next * RING_BYTES, from, ahead);
      codes_to(ring + next * RING_BYTES, from, ahead);
    }
    // Empty groups keep the count.
    commit_copies();
    multiply(memory + now * RING_BYTES, sums);
    now = now + 1 == STAGES ? 0 : now + 1;
    next = next + 1 == STAGES ? 0 : next + 1;
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const int slab = slab0 + warp % SLABS, first = warp / SLABS * TOKENS;
  float scale[2][2], add[2][2];
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const i64 f =
          tile * FEATURES + (EPILOGUE == GATED ? t * (FEATURES / 2) : 0) + feature_of(slab / 4, slab % 4, t, h, g);
      scale[t][h] = WGROUP ? 1.f : p.feature_scale[f];
      add[t][h] = p.bias ? p.bias[f] : 0.f;
    }
  const float* const of_tokens = AGROUP ? nullptr : p.token_scale + (i64)set * p.capacity + token0 + first + 2 * t4;
  const auto value = [&](int t, int h, int j, int e) {
    const float of_token = AGROUP ? 1.f : of_tokens[8 * j + e];
    return last_scale(sums[t][4 * j + 2 * h + e], scale[t][h], of_token, add[t][h]);
  };
  store_values<GROUPS>(p, value, slab / 4, slab % 4, tile, token0 + first);
}
