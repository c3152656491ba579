// What the integer products with a scale per group share (gemm_group.cu, gemm_group_narrow.cu). A unit is the columns for
// which neither the weights' scale nor the activations' changes: its sum of products is an exact 32-bit integer, which is
// then scaled and added in f32, unit after unit in the order of columns, in every kernel the same, whatever the number of
// tokens: sum = fma(integer, of_weight·of_token, sum), and where weights have offsets, for each sum of codes of the unit,
// sum = fma(token_sum, offset, sum). What does not change along a row (scales of features, or of tokens) is multiplied last.
//
// Macros: gemm.cuh's; WGROUP: columns that share a weight's scale (16 … 128), 0: the row; AGROUP: those that share an
// activation's, 0: the token; OFFSETS 1: groups of weights have offsets; SHIFT: what was taken from a code beside an offset,
// so that it is signed; SUMGROUP: columns of a token_sum; SCALE16 1: scales and offsets of weights are halves, else f32.
//
// Scales of groups and offsets: [tile of 256][group][256 features in the order of rows as they are packed]. token_scale:
// [set][group][capacity], token_sums: the same, of SUMGROUP columns: the sum of codes, times the token's scale of the group
// where there are groups. Groups are those of whole blocks of 128 columns.
#pragma once
#include "engine/gemm.cuh"

#ifndef WGROUP
#define WGROUP 64
#endif
#ifndef AGROUP
#define AGROUP 64
#endif
#ifndef OFFSETS
#define OFFSETS 0
#endif
#ifndef SHIFT
#define SHIFT 8
#endif
#ifndef SUMGROUP
#define SUMGROUP 64
#endif
#ifndef SCALE16
#define SCALE16 1
#endif

static_assert(WGROUP || AGROUP, "without groups there is gemm.cuh");
static_assert(WGROUP || !OFFSETS, "offsets are those of groups");

constexpr int smaller(int a, int b) { return a < b ? a : b; }

constexpr int UNIT_COLUMNS = !WGROUP ? AGROUP : !AGROUP ? WGROUP : smaller(WGROUP, AGROUP);
constexpr int UNITS = 128 / UNIT_COLUMNS;
// Groups of a block of columns, 0 where there are none.
constexpr int W_GROUPS = WGROUP ? 128 / (WGROUP ? WGROUP : 1) : 0, A_GROUPS = AGROUP ? 128 / (AGROUP ? AGROUP : 1) : 0;
constexpr int S_GROUPS = OFFSETS ? 128 / SUMGROUP : 0;
// Sums of codes of a unit.
constexpr int UNIT_SUMS = OFFSETS ? UNIT_COLUMNS / SUMGROUP : 0;
static_assert(!OFFSETS || UNIT_COLUMNS % SUMGROUP == 0, "sums of codes are those of a unit's columns");

#if SCALE16
typedef u16 Scale;
#else
typedef float Scale;
#endif

__device__ __forceinline__ float scale_of(Scale s) {
#if SCALE16
  return from_half(s);
#else
  return s;
#endif
}

// What a code of 0 stands for where codes were shifted.
__device__ __forceinline__ float offset_of(Scale scale, Scale offset) {
  return __fmaf_rn(scale_of(scale), (float)SHIFT, scale_of(offset));
}

// Groups that the unit `u` of a block of columns has its scales from.
__device__ __forceinline__ constexpr int w_group(int u) { return u * UNIT_COLUMNS / (WGROUP ? WGROUP : 1); }
__device__ __forceinline__ constexpr int a_group(int u) { return u * UNIT_COLUMNS / (AGROUP ? AGROUP : 1); }

// D (16×8) = A (16×32) · B (32×8) + C, bytes.
__device__ __forceinline__ void mma_bytes32(int (&d)[4], const u32* a, u32 b0, u32 b1, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// D (16×8) = A (16×16) · B (16×8), bytes.
__device__ __forceinline__ void mma_bytes16(int (&d)[4], const u32* a, u32 b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b), "r"(0));
}

// Sums of the unit `u` of a block of columns: 16 features, whose operands are a[half][step of 32], and 8 tokens, whose codes
// of 16 columns each are b[half][…]. HALVES: of the block that the arrays hold; `u` counts from their first column.
template <int HALVES>
__device__ __forceinline__ void unit_sums(int (&d)[4], const u32 (&a)[HALVES][2][4], const u32 (&b)[HALVES][4], int u) {
  const int none[4] = {0, 0, 0, 0};
  if (UNIT_COLUMNS == 16) {
    const int half = u / 4, s = u / 2 % 2;
    mma_bytes16(d, a[half][s] + 2 * (u % 2), b[half][u % 4]);
    return;
  }
  constexpr int STEPS = UNIT_COLUMNS < 32 ? 1 : UNIT_COLUMNS / 32;
#pragma unroll
  for (int i = 0; i < STEPS; i++) {
    const int step = u * STEPS + i, half = step / 2, s = step % 2;
    if (i == 0) mma_bytes32(d, a[half][s], b[half][2 * s], b[half][2 * s + 1], none);
    else mma_bytes32(d, a[half][s], b[half][2 * s], b[half][2 * s + 1], d);
  }
}

// The same for two tiles of features side by side.
template <int HALVES>
__device__ __forceinline__ void unit_sums(int (&d)[2][4], const u32 (&a)[2][HALVES][2][4], const u32 (&b)[HALVES][4],
                                          int u) {
#pragma unroll
  for (int t = 0; t < 2; t++) unit_sums<HALVES>(d[t], a[t], b, u);
}

// A unit's integer, scaled, on top of a sum. `weight`, `token`: their scales, of which one may be 1 for all.
__device__ __forceinline__ float add_unit(float sum, int integer, float weight, float token) {
  const float by = !WGROUP ? token : !AGROUP ? weight : __fmul_rn(weight, token);
  return __fmaf_rn((float)integer, by, sum);
}

// What a sum becomes after the last unit.
__device__ __forceinline__ float last_scale(float sum, float of_feature, float of_token, float bias) {
  return !WGROUP ? __fmaf_rn(sum, of_feature, bias) : !AGROUP ? __fmaf_rn(sum, of_token, bias) : __fadd_rn(sum, bias);
}

__device__ __forceinline__ void copy_async(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// This thread's copies have arrived, but for the last PENDING groups.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
