// What surrounds the blocks of a model in the engine: embedding and rotary tables, the final norm, the output head; and
// the order of packed weights, made on the device when a model is loaded.
//
// Embedding and head keep the 16 bits of the checkpoint. Rows that meet the head are sums of two 16-bit numbers (22 bits
// with halves, 16 with bfloat16), so that logits are those of f32 rows to some 2⁻¹⁷; every logit is summed in the order of
// its columns, whatever else is multiplied, so that it does not depend on the other rows of a step.
//
// Macros: BF16 1: 16-bit numbers are bfloat16, else halves; NORM 0 none, 1 RMS, 2 layer; NT: eights of tokens per block of `head`;
// WBITS and GATED of `pack_weights`.
#include "engine/engine.cuh"

#ifndef BF16
#define BF16 0
#endif
#ifndef NORM
#define NORM 1
#endif
#ifndef NT
#define NT 1
#endif
#ifndef WBITS
#define WBITS 4
#endif
#ifndef GATED
#define GATED 0
#endif

__device__ __forceinline__ float from16(u16 bits) { return BF16 ? from_bf16(bits) : from_half(bits); }

__device__ __forceinline__ u16 to16(float x) { return BF16 ? to_bf16(x) : to_half(x); }

// x[row] = table[ids[row]] · factor, and the row's rotary tables, [rows][half], from its position (double, as on the host).
extern "C" __global__ void __launch_bounds__(256)
    embed(const u16* table, const int* ids, const int* positions, i64 cols, double factor, const double* frequencies,
          i64 half, float* x, float* cosine, float* sine) {
  release_next();
  wait_for_earlier();
  const i64 row = blockIdx.x;
  const u16* const from = table + ids[row] * cols;
  for (i64 i = threadIdx.x; i < cols; i += 256) x[row * cols + i] = from16(from[i]) * (float)factor;
  for (i64 i = threadIdx.x; i < half; i += 256) {
    const double angle = positions[row] * frequencies[i];
    cosine[row * half + i] = (float)cos(angle);
    sine[row * half + i] = (float)sin(angle);
  }
}

// The rows `chosen` of x after the final norm, as high and low parts: out [2][rows][cols]. A block per row.
extern "C" __global__ void __launch_bounds__(256)
    final_rows(const float* x, const int* chosen, i64 cols, const float* gain, const float* bias, double epsilon,
               u16* out) {
  __shared__ float shared[8];
  release_next();
  wait_for_earlier();
  const float* const from = x + chosen[blockIdx.x] * cols;
  u16* const high = out + blockIdx.x * cols;
  u16* const low = high + gridDim.x * cols;
  float inverse = 1.f, mean = 0.f;
  if (NORM == 2) {
    for (i64 i = threadIdx.x; i < cols; i += 256) mean += from[i];
    mean = group_reduce<Sum, 256>(mean, shared) / cols;
  }
  if (NORM) {
    float square = 0.f;
    for (i64 i = threadIdx.x; i < cols; i += 256) square += (from[i] - mean) * (from[i] - mean);
    square = group_reduce<Sum, 256>(square, shared);
    inverse = rsqrtf(square / cols + (float)epsilon);
  }
  for (i64 i = threadIdx.x; i < cols; i += 256) {
    float value = NORM ? (from[i] - mean) * inverse * gain[i] : from[i];
    if (NORM && bias) value += bias[i];
    const u16 head = to16(value);
    high[i] = head, low[i] = to16(value - from16(head));
  }
}

__device__ __forceinline__ void mma16(float* c, const u32* a, u32 b0, u32 b1) {
  if (!BF16) {
    mma_half(c, a, b0, b1);
    return;
  }
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// out[row][v] = Σ x[row][k]·table[v][k], or `cap` times the hyperbolic tangent of its `cap`th part: x as `final_rows` left it, [2][rows][cols]; cols a multiple of 8. A warp has 16
// rows of the table, straight from memory to registers: thread (g, t) takes the eight columns 8t … of 32 at a time, which
// are two steps of mma, since the order of columns within a step is free as long as both operands have it.
constexpr int HEAD_WARPS = 8, TOKENS = 8 * NT;
constexpr int CHUNK = NT == 1 ? 512 : NT == 2 ? 256 : 128;
// 64 bytes beyond a multiple of 128: eight lanes of a 16-byte read meet no bank twice.
constexpr int ROW = CHUNK + 32;

extern "C" __global__ void __launch_bounds__(HEAD_WARPS * 32)
    head(const u16* x, const u16* table, i64 rows, i64 vocab, i64 cols, double cap, float* out) {
  __shared__ __align__(16) u16 tile[2 * TOKENS * ROW];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const i64 token0 = (i64)blockIdx.y * TOKENS, v0 = ((i64)blockIdx.x * HEAD_WARPS + warp) * 16;
  // Rows beyond the table repeat its last one and are not written.
  const i64 last_row = vocab - 1;
  const u16* const row_a = table + (v0 + g < last_row ? v0 + g : last_row) * cols;
  const u16* const row_b = table + (v0 + g + 8 < last_row ? v0 + g + 8 : last_row) * cols;
  float acc[NT][4];
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) acc[n][c] = 0.f;
  release_next();
  wait_for_earlier();
  for (i64 k0 = 0; k0 < cols; k0 += CHUNK) {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * TOKENS * (CHUNK / 8); i += HEAD_WARPS * 32) {
      const int column = i % (CHUNK / 8) * 8, row = i / (CHUNK / 8) % TOKENS, part = i / (CHUNK / 8) / TOKENS;
      uint4 word = make_uint4(0, 0, 0, 0);
      if (token0 + row < rows && k0 + column < cols)
        word = *(const uint4*)(x + ((i64)part * rows + token0 + row) * cols + k0 + column);
      *(uint4*)(tile + (part * TOKENS + row) * ROW + column) = word;
    }
    __syncthreads();
#pragma unroll 4
    for (int c = 0; c < CHUNK; c += 32) {
      const int column = c + 8 * t4;
      uint4 a = make_uint4(0, 0, 0, 0), b = a;
      if (k0 + column < cols) a = *(const uint4*)(row_a + k0 + column), b = *(const uint4*)(row_b + k0 + column);
      const u32 first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int part = 0; part < 2; part++) {
          const uint4 w = *(const uint4*)(tile + (part * TOKENS + 8 * n + g) * ROW + column);
          mma16(acc[n], first, w.x, w.y);
          mma16(acc[n], second, w.z, w.w);
        }
    }
  }
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const i64 token = token0 + 8 * n + 2 * t4 + c % 2, v = v0 + g + c / 2 * 8;
      if (token < rows && v < vocab)
        out[token * vocab + v] = cap > 0 ? (float)cap * tanhf(acc[n][c] / (float)cap) : acc[n][c];
    }
}

// Codes [rows][columns] in the order of gemm.cu's A operand (packWeights in src/backend/cuda/infer/layout.ts): a thread makes one
// 32-bit word, words consecutive; `shift` is added to a code. blocks: of 128 columns. GATED: the first half of the rows is gate's, the rest up's.
extern "C" __global__ void __launch_bounds__(256)
    pack_weights(const i8* codes, i64 rows, i64 columns, i64 blocks, i64 words, i64 shift, u32* packed) {
  wait_for_earlier();
  for (i64 i = blockIdx.x * 256ll + threadIdx.x; i < words; i += gridDim.x * 256ll) {
    // [tile][block][warpgroup][tile of 64][half block][thread][word of the thread]
    const int own = (int)(i % WBITS), thread = (int)(i / WBITS % 128);
    i64 rest = i / WBITS / 128;
    const int half = (int)(rest % 2), t = (int)(rest / 2 % 2), warpgroup = (int)(rest / 4 % 2);
    rest /= 8;
    const i64 block = rest % blocks, tile = rest / blocks;
    const int warp = thread / 32, g = thread % 32 / 4, t4 = thread % 4;
    // With 4 bits a word holds registers 2i and 2i + 1 of a step, with 8 bits one register.
    const int step = own / (WBITS / 2), place = own % (WBITS / 2);
    const i64 column0 = block * 128 + half * 64 + step * 32 + (WBITS == 4 ? place : place / 2) * 16 + t4 * 4;
    const auto code = [&](int h, int byte) -> u32 {
      i64 row;
      if (GATED) {
        const i64 feature = tile * 128 + warpgroup * 64 + warp * 16 + 4 * (g / 2) + 2 * h + g % 2;
        if (feature >= rows / 2) return 0;
        row = t * (rows / 2) + feature;
      } else {
        row = tile * 256 + warpgroup * 128 + warp * 32 + 8 * (g / 2) + 4 * t + 2 * h + g % 2;
        if (row >= rows) return 0;
      }
      const i64 column = column0 + byte;
      return column < columns ? (u32)(u8)(codes[row * columns + column] + (int)shift) : 0;
    };
    u32 word = 0;
#pragma unroll
    for (int byte = 0; byte < 4; byte++) {
      if (WBITS == 4) word |= (code(0, byte) & 15) << (8 * byte) | (code(1, byte) & 15) << (8 * byte + 4);
      else word |= code(place % 2, byte) << (8 * byte);
    }
    packed[i] = word;
  }
}
