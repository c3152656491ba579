// The integer product (gemm.cuh) without wgmma: for Ampere, Ada and what is newer than Hopper, and as a check on Hopper.
//
// Tiles of 256 features × 8 … 128 tokens, eight warps. Codes and weights come by asynchronous copies of 16 bytes into a ring
// of buffers, one block of 128 columns each. With few tokens, where reading weights is the limit, SPLIT blocks share a
// tile's columns: each leaves its sums in memory, and the last one to arrive adds them; 32-bit sums do not depend on the order.
//
// NIBBLES: mma of 4-bit codes, m16n8k64. Which column of the matrices is which place of the reduction is free as long as both
// operands agree, and a place is a nibble: even ones hold columns 0 … 15 of a step of 32, odd ones its columns 16 … 31.
// So two words of weights and two words of bytes of codes become an operand each by a shift and a selection of bits. Codes
// are joined by each warp when it has read them, and not once per block: that would take a pass over shared memory and a
// barrier more, and save half of the reads; instead a warp has 64 features where tokens are many (ACROSS 2), so that four
// mma share what was joined.
// Otherwise: mma of bytes, m16n8k32, the weights' nibbles widened to sixteen times the code.
// DP4A: before Ampere, dot products of four bytes from plainly copied buffers; a thread has the sums that mma would leave it.
//
// Macros: gemm.cuh's, TOKENS being those of a warp; ACROSS: warps beside each other along the tokens, 1 or 2; STAGES 2 …;
// SPLIT 1 …; NIBBLES 1; DP4A 1.
#ifndef TOKENS
#define TOKENS 64
#endif
#include "engine/gemm.cuh"

#ifndef SPLIT
#define SPLIT 1
#endif
#ifndef ACROSS
#define ACROSS 1
#endif
#ifndef DP4A
#define DP4A 0
#endif

static_assert(WBITS == 4 || !NIBBLES, "nibbles are multiplied by nibbles");
static_assert(ACROSS == 1 || (SPLIT == 1 && !DP4A), "tiles of many tokens are not shared");

constexpr int BLOCK_TOKENS = TOKENS * ACROSS;
constexpr int CODE_PIECES = BLOCK_TOKENS * 8, WEIGHT_PIECES = WEIGHT_BYTES / 16;
constexpr int RING_BYTES = WEIGHT_BYTES + BLOCK_TOKENS * 128;
// Registers must let two blocks share a multiprocessor where a tile is small: one computes while the other waits. For 64
// tokens they suffice when nibbles are multiplied as they are.
#if __CUDA_ARCH__ < 900
constexpr int RESIDENT = BLOCK_TOKENS <= (NIBBLES ? 64 : 32) ? 2 : 1;
#else
constexpr int RESIDENT = BLOCK_TOKENS <= 32 ? 2 : 1;
#endif
// What is loaded before earlier kernels are done: with launches that overlap, all weights that the ring has room for.
#if __CUDA_ARCH__ >= 900
constexpr bool WEIGHTS_FIRST = true;
#else
constexpr bool WEIGHTS_FIRST = false;
#endif

__device__ __forceinline__ void copy_piece(u32 to, const void* from) {
#if __CUDA_ARCH__ >= 800 && !DP4A
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
  const uint4 piece = *(const uint4*)from;
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(piece.x), "r"(piece.y), "r"(piece.z),
               "r"(piece.w)
               : "memory");
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// This thread's copies have arrived, but for the last PENDING groups.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Where the 16-byte piece k of a block's weights lies in shared memory, in pieces: eight lanes then meet eight different
// banks, whether they read pieces in a row (4-bit weights), every second (8-bit) or every fourth and eighth (DP4A).
__device__ __forceinline__ int weight_place(int k) { return k ^ ((k >> 3) & 7); }

__device__ __forceinline__ void weights_to(u32 stage, const u8* from) {
  const int place = weight_place(threadIdx.x) * 16;
#pragma unroll
  for (int k = 0; k < WEIGHT_PIECES; k += CONSUMERS)
    copy_piece(stage + BLOCK_TOKENS * 128 + k * 16 + place, from + (k + threadIdx.x) * 16);
}

__device__ __forceinline__ void codes_to(u32 stage, const i8* from) {
#pragma unroll
  for (int k = 0; k < CODE_PIECES; k += CONSUMERS)
    if (CODE_PIECES % CONSUMERS == 0 || k + threadIdx.x < CODE_PIECES)
      copy_piece(stage + (k + threadIdx.x) * 16, from + (k + threadIdx.x) * 16);
}

__device__ __forceinline__ uint4 piece(u32 at) {
  uint4 r;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(at)
               : "memory");
  return r;
}

// Start of the weights of tile `t` of 64 and a half block, of the warp of 32 features `of`: 0 … 7.
__device__ __forceinline__ int weights_of(int of, int t, int half) {
  return of / 4 * (WEIGHT_BYTES / 2) + (2 * t + half) * (512 * WBITS) + of % 4 * (128 * WBITS);
}

#if DP4A

__device__ __forceinline__ void multiply(u32 stage, int (&sums)[ACROSS][2][SUMS]) {
  const int of = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  constexpr int WORDS = WBITS / 2;  // of a thread of mma, for 32 columns of 16 rows
#pragma unroll 1
  for (int step = 0; step < 4; step++) {
    const int half = step / 2, s = step % 2;
    // The columns of a row are in the four threads that mma would have it in.
    u32 w[2][4][WORDS];
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
      for (int q = 0; q < 4; q++) {
        const u32 from = stage + BLOCK_TOKENS * 128 + weights_of(of, t, half);
        // Pieces are exchanged among 64, and a warp's begin at a multiple of 32.
        const int first = of % 4 * (8 * WBITS);
        const int k = first + (4 * g + q) * (WBITS / 4) + (WBITS == 8 ? s : 0);
        const uint4 four = piece(from + (weight_place(k) - first) * 16);
        if (WBITS == 8)
          w[t][q][0] = four.x, w[t][q][1] = four.y, w[t][q][WORDS - 2] = four.z, w[t][q][WORDS - 1] = four.w;
        else w[t][q][0] = s ? four.z : four.x, w[t][q][1] = s ? four.w : four.y;
      }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      u32 a[2][2][4];  // tile, row below 8 or not, four columns
#pragma unroll
      for (int t = 0; t < 2; t++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int q = 0; q < 4; q++)
            a[t][h][q] = WBITS == 8 ? w[t][q][(2 * i + h) % WORDS] : (h ? w[t][q][i] : w[t][q][i] << 4) & 0xf0f0f0f0u;
#pragma unroll
      for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int row = 8 * j + 2 * t4 + e;
          const uint4 x = piece(stage + row * 128 + ((2 * step + i) ^ (row % 8)) * 16);
          const u32 b[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
          for (int t = 0; t < 2; t++)
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
              for (int q = 0; q < 4; q++)
                asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sums[0][t][4 * j + 2 * h + e]) : "r"(a[t][h][q]), "r"(b[q]));
        }
    }
  }
}

#else

// The words of four 16-byte pieces that a thread of mma needs of eight tokens: 64 columns. `at`: of this lane's row of a piece.
__device__ __forceinline__ void token_words(u32 (&x)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(at)
               : "memory");
}

// The low nibbles of `low` and the high ones of `high`. Written with operators it becomes two instructions.
__device__ __forceinline__ u32 nibbles(u32 low, u32 high) {
  u32 result;
  asm("lop3.b32 %0, %1, %2, %3, (0xf0 & 0xaa) | (0xcc & ~0xaa);" : "=r"(result) : "r"(low), "r"(high), "n"(0x0f0f0f0f));
  return result;
}

// Steps of mma in 64 columns.
constexpr int STEPS = NIBBLES ? 1 : 2;

// A thread's A operands of 64 columns and 16 rows.
__device__ __forceinline__ void weight_words(u32 at, u32 (&a)[STEPS][4]) {
  const uint4 w = piece(at);
#if NIBBLES
  // Low nibbles are those of row g, high ones of row g + 8.
  a[0][0] = nibbles(w.x, w.y << 4), a[0][1] = nibbles(w.x >> 4, w.y);
  a[0][2] = nibbles(w.z, w.w << 4), a[0][3] = nibbles(w.z >> 4, w.w);
#elif WBITS == 4
  widen(w, a);
#else
  a[0][0] = w.x, a[0][1] = w.y, a[0][2] = w.z, a[0][3] = w.w;
  // The places of two neighbours differ in the lowest bit.
  const uint4 v = piece(at ^ 16);
  a[1][0] = v.x, a[1][1] = v.y, a[1][2] = v.z, a[1][3] = v.w;
#endif
}

__device__ __forceinline__ void mma(int* c, const u32* a, u32 b0, u32 b1) {
#if NIBBLES
  asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(u32 stage, int (&sums)[ACROSS][2][SUMS]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int of = warp % (8 / ACROSS) * ACROSS, tokens = warp / (8 / ACROSS) * TOKENS;
  const u32 codes = stage + (tokens + lane % 8) * 128 + ((lane / 8) ^ (lane % 8)) * 16;
  const u32 weights = stage + BLOCK_TOKENS * 128;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    u32 a[ACROSS][2][STEPS][4];
#pragma unroll
    for (int u = 0; u < ACROSS; u++) {
      // Pieces are exchanged among 64, and a warp's begin at a multiple of 32.
      const int first = (of + u) % 4 * (8 * WBITS);
      const int place = (weight_place(first + lane * (WBITS / 4)) - first) * 16;
#pragma unroll
      for (int t = 0; t < 2; t++) weight_words(weights + weights_of(of + u, t, half) + place, a[u][t]);
    }
    // The next eight tokens' words are read while these are multiplied. The other half's pieces are four further on.
    u32 x[2][4];
    token_words(x[0], codes ^ (64 * half));
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
      if (j + 1 < TOKENS / 8) token_words(x[(j + 1) % 2], (codes + (j + 1) * 1024) ^ (64 * half));
      const u32(&now)[4] = x[j % 2];
      u32 b[STEPS][2];
#if NIBBLES
      b[0][0] = nibbles(now[0], now[1] << 4), b[0][1] = nibbles(now[2], now[3] << 4);
#else
      b[0][0] = now[0], b[0][1] = now[1], b[1][0] = now[2], b[1][1] = now[3];
#endif
#pragma unroll
      for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int u = 0; u < ACROSS; u++)
#pragma unroll
          for (int t = 0; t < 2; t++) mma(sums[u][t] + 4 * j, a[u][t][s], b[s][0], b[s][1]);
    }
  }
}

#endif

// Blocks of a group leave their sums in memory; true for the last one to arrive, with the sums of all. `arrived` counts a
// group's blocks and is 0 again when the last has come, as it must be for the next launch.
__device__ __forceinline__ bool gather(int (&sums)[2][SUMS], int* left, u32* arrived, int rank) {
  __shared__ bool last;
  constexpr int WORDS = 2 * SUMS, BLOCK = WORDS * CONSUMERS;
  uint4* const own = (uint4*)(left + rank * BLOCK) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < WORDS / 4; i++) {
    const int* v = sums[i * 4 / SUMS] + i * 4 % SUMS;
    __stcg(own + i * CONSUMERS, make_uint4(v[0], v[1], v[2], v[3]));
  }
  // Every thread's sums are written before the block is counted, and the count is read before others' sums.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicInc(arrived, SPLIT - 1) == SPLIT - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return false;
#pragma unroll 1
  for (int r = 0; r < SPLIT; r++) {
    if (r == rank) continue;
    const uint4* const others = (const uint4*)(left + r * BLOCK) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < WORDS / 4; i++) {
      const uint4 more = __ldcg(others + i * CONSUMERS);
      int* v = sums[i * 4 / SUMS] + i * 4 % SUMS;
      v[0] += more.x, v[1] += more.y, v[2] += more.z, v[3] += more.w;
    }
  }
  return true;
}

// `shared`: counters of groups, zero, then room for the sums of SPLIT blocks of each; src/backend/cuda/infer/product.ts.
#define COUNTERS 4096

extern "C" __global__ void __launch_bounds__(CONSUMERS, RESIDENT) gemm_mma(PARAMETERS, u32* shared) {
  const Problem p = PROBLEM;
  extern __shared__ __align__(128) u8 memory[];
  const u32 ring = shared_at(memory);
  const int rank = blockIdx.x % SPLIT;
  const i64 tile = blockIdx.y, token_tile = blockIdx.x / SPLIT, token0 = token_tile * BLOCK_TOKENS;
  const i64 begin = p.blocks * rank / SPLIT, end = p.blocks * (rank + 1) / SPLIT;
  const int set = set_of(p, tile), count = (int)(end - begin);
  const u8* from = p.weights + (tile * p.blocks + begin) * WEIGHT_BYTES;
  const i8* with = p.codes + (((i64)set * p.blocks + begin) * p.capacity + token0) * 128;
  release_next();
  int sums[ACROSS][2][SUMS];
#pragma unroll
  for (int i = 0; i < ACROSS * 2 * SUMS; i++) sums[i / (2 * SUMS)][i / SUMS % 2][i % SUMS] = 0;
  if (DP4A) {
    wait_for_earlier();
    for (int i = 0; i < count; i++) {
      __syncthreads();
      weights_to(ring, from + (i64)i * WEIGHT_BYTES);
      codes_to(ring, with + i * p.capacity * 128);
      __syncthreads();
      multiply(ring, sums);
    }
  } else {
    // Group i of copies completes buffer i: all that was asked for before belongs to it or to an earlier one.
    if (WEIGHTS_FIRST) {
#pragma unroll
      for (int i = 0; i < STAGES - 1; i++)
        if (i < count) weights_to(ring + i * RING_BYTES, from + (i64)i * WEIGHT_BYTES);
      wait_for_earlier();
    }
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
      if (i < count) {
        if (!WEIGHTS_FIRST) weights_to(ring + i * RING_BYTES, from + (i64)i * WEIGHT_BYTES);
        codes_to(ring + i * RING_BYTES, with + i * p.capacity * 128);
      }
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
        weights_to(ring + next * RING_BYTES, from + (i64)ahead * WEIGHT_BYTES);
        codes_to(ring + next * RING_BYTES, with + ahead * p.capacity * 128);
      }
      // Empty groups keep the count.
      commit_copies();
      multiply(ring + now * RING_BYTES, sums);
      now = now + 1 == STAGES ? 0 : now + 1;
      next = next + 1 == STAGES ? 0 : next + 1;
    }
  }
  if (SPLIT > 1) {
    const i64 group = tile * (gridDim.x / SPLIT) + token_tile;
    int* const left = (int*)shared + COUNTERS + group * (SPLIT * 2 * SUMS * CONSUMERS);
    if (!gather(sums[0], left, shared + group, rank)) return;
  }
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int u = 0; u < ACROSS; u++) {
    const int of = warp % (8 / ACROSS) * ACROSS + u;
    const i64 first = token0 + warp / (8 / ACROSS) * TOKENS;
    store_sums<TOKENS / 8>(p, sums[u], of / 4, of % 4, tile, first, p.token_scale + (i64)set * p.capacity + first,
                           p.feature_scale + tile * FEATURES, p.bias ? p.bias + tile * FEATURES : nullptr);
  }
}
