// What the engine's kernels share: IEEE halves, tensor-core products of halves, code tiles, overlapped launches.
#pragma once
#include "common.cuh"

typedef unsigned char u8;
typedef unsigned long long u64;

// A kernel that was launched to overlap the one before it: everything that it reads of earlier kernels comes after
// `wait_for_earlier`. Both do nothing in an ordinary launch.
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin with what does not depend on this one.
__device__ __forceinline__ void release_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// All threads of all blocks of the cluster; what they wrote to shared memory before is seen after.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
#endif

// Asks for `bytes` (both a multiple of 16) to come to the L2 cache, and waits for nothing. As nothing is read, that may be
// done before `wait_for_earlier`.
__device__ __forceinline__ void prefetch(const void* from, u32 bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ u32 shared_at(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 2^x and 1/x to the last bit or two of f32; 2^-infinity is 0.
__device__ __forceinline__ float power_of2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// IEEE halves, nearest even, of values that are known to be small.
__device__ __forceinline__ u32 pack_small(float low, float high) {
  u32 result;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
#else
  asm("{.reg .b16 l, h; cvt.rn.f16.f32 l, %2; cvt.rn.f16.f32 h, %1; mov.b32 %0, {l, h};}"
      : "=r"(result)
      : "f"(high), "f"(low));
#endif
  return result;
}

// The same of any: beyond the largest half the value is clamped to it, as in native/half.h.
#define HALF_MAX 65504.f

__device__ __forceinline__ u32 pack_half(float low, float high) {
#if __CUDA_ARCH__ >= 900
  u32 result;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#else
  low = fminf(fmaxf(low, -HALF_MAX), HALF_MAX), high = fminf(fmaxf(high, -HALF_MAX), HALF_MAX);
  return pack_small(low, high);
#endif
}

__device__ __forceinline__ float low_half(u32 pair) {
  float result;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(result) : "r"(pair));
  return result;
}

__device__ __forceinline__ float high_half(u32 pair) {
  float result;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(result) : "r"(pair));
  return result;
}

__device__ __forceinline__ float from_half(u16 bits) { return low_half(bits); }

__device__ __forceinline__ u16 to_half(float x) { return (u16)pack_half(x, 0.f); }

// What rounding to a half left of two floats, as halves: head + tail has 22 bits.
__device__ __forceinline__ u32 pack_tail(float low, float high, u32 head) {
  return pack_small(low - low_half(head), high - high_half(head));
}

__device__ __forceinline__ u32 sub_half2(u32 a, u32 b) {
  u32 result;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// C (16×8, f32) += A (16×16) · B (16×8), halves.
__device__ __forceinline__ void mma_half(float* c, const u32* a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// An 8×8 matrix of halves over the lanes of a warp, lane 4r + c with columns 2c and 2c + 1 of row r, to its transpose.
__device__ __forceinline__ u32 transposed(u32 pair) {
  u32 result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

__device__ __forceinline__ void ldmatrix(u32* r, const u16* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_at(from))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_transposed(u32* r, const u16* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_at(from))
               : "memory");
}

// The 16×16 piece of A at (m, k) from [m][k], or from [k][m] when TRANSPOSED. Strides in halves, multiples of 8.
template <bool TRANSPOSED>
__device__ __forceinline__ void piece_a(u32* a, const u16* base, int stride, int m, int k) {
  const int lane = threadIdx.x % 32;
  if (TRANSPOSED) ldmatrix_transposed(a, base + (k + lane % 8 + lane / 16 * 8) * stride + m + lane / 8 % 2 * 8);
  else ldmatrix(a, base + (m + lane % 16) * stride + k + lane / 16 * 8);
}

// The 16×16 piece of B at (k, n), for two mma of 8 columns, from [k][n], or from [n][k] when TRANSPOSED.
template <bool TRANSPOSED>
__device__ __forceinline__ void piece_b(u32* b, const u16* base, int stride, int k, int n) {
  const int lane = threadIdx.x % 32;
  if (TRANSPOSED) ldmatrix(b, base + (n + lane % 8 + lane / 16 * 8) * stride + k + lane / 8 % 2 * 8);
  else ldmatrix_transposed(b, base + (k + lane % 8 + lane / 8 % 2 * 8) * stride + n + lane / 16 * 8);
}

// Codes of activations lie in blocks of 128 columns: [block][row][128], the 16-byte pieces of row r in the order
// piece ^ (r % 8), which is the 128-byte swizzle of wgmma. `rows` is a multiple of 8.
__device__ __forceinline__ i64 code_offset(i64 rows, i64 row, int column) {
  return (column / 128 * rows + row) * 128 + (((column / 16 % 8) ^ (int)(row % 8)) * 16) + column % 16;
}

// One page of one KV head of one layer: keys, values, then the scales (f32) and zero points (half) of both. What a
// thread (g = lane / 4, t = lane % 4) of mma needs is contiguous; its tokens are 8j + 2t and 8j + 2t + 1, j < 8.
// 4 bits: keys [64][dim/2] in words of eight, nibbles p and p + 4 being columns 2p and 2p + 1; values in 16-byte groups
// [dim/16][g][t], with column 16i + g in the first 8 bytes and 16i + 8 + g in the last: nibbles j % 4 and j % 4 + 4 of
// word j / 4. 16 bits: keys [64][dim] halves; values as pairs of tokens [dim/8][j / 4][g][t][j % 4], column 8i + g.
#define PAGE_TOKENS 64
template <int D, int B>
struct PageLayout {
  static constexpr int KEYS = 0;
  static constexpr int VALUES = PAGE_TOKENS * D * B / 8;
  static constexpr int KEY_SCALE = 2 * VALUES;
  static constexpr int VALUE_SCALE = KEY_SCALE + (B == 16 ? 0 : PAGE_TOKENS * 4);
  static constexpr int KEY_ZERO = VALUE_SCALE + (B == 16 ? 0 : PAGE_TOKENS * 4);
  static constexpr int VALUE_ZERO = KEY_ZERO + (B == 16 ? 0 : PAGE_TOKENS * 2);
  static constexpr int BYTES = VALUE_ZERO + (B == 16 ? 0 : PAGE_TOKENS * 2);
};

__device__ __forceinline__ u32 fma_half2(u32 a, u32 b, u32 c) {
  u32 result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// Halves of 1024, which make a half 1024 + n of a number n in its low bits.
#define HALVES_1024 0x64006400u

// The same where the assembler does not know it. An instruction takes one constant; beside a mask, this one would be moved
// to a register for nearly every pair of codes, a fifth of all instructions.
__device__ __forceinline__ u32 halves1024() {
  u32 zero;
  asm("mov.u32 %0, %%tid.z;" : "=r"(zero));
  return HALVES_1024 + zero;
}

// The nibbles p and p + 4 of a word, less `zero`, as halves, exactly. `zero` is a pair of 0x6400 | zero, that is 1024 +
// zero, for even p, and `zero16` a pair of -(64 + zero) for odd p, whose nibbles are 16 times too large where they lie.
__device__ __forceinline__ u32 nibble_pair(u32 word, int p, u32 zero, u32 zero16, u32 halves1024 = HALVES_1024) {
  const u32 at = p < 2 ? word : word >> 8;
  return p % 2 == 0 ? sub_half2((at & 0x000f000fu) | halves1024, zero)
                    : fma_half2((at & 0x00f000f0u) | halves1024, 0x2c002c00u, zero16);
}

__device__ __forceinline__ u32 add_half2(u32 a, u32 b) {
  u32 result;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// Both forms of a pair of zero points, given as halves 0 ... 15. What nobody wrote may be anything else, and gives some
// zero point in that range: the low bits of 1024 + zero are its own.
__device__ __forceinline__ void zero_forms(u32 zeros, u32& zero, u32& zero16) {
  zero = (add_half2(zeros, HALVES_1024) & 0x000f000fu) | HALVES_1024;
  // 1024 + zero to -(64 + zero): less 960, the sign turned.
  zero16 = sub_half2(0x63806380u, zero);
}

// Both forms of a pair of zero points that are known to be halves 0 … 15.
__device__ __forceinline__ void zero_pair(u32 zeros, u32& zero, u32& zero16) {
  zero = add_half2(zeros, HALVES_1024);
  zero16 = sub_half2(0x63806380u, zero);
}
