// Elementwise kernels of the FP16 layer that the bench compares with, and its data.
#include "engine/engine.cuh"

// out = x / rms(x) · gain, halves; one block per row, cols a multiple of 8.
extern "C" __global__ void __launch_bounds__(256)
    half_norm(const u16* x, i64 cols, const u16* gain, double epsilon, u16* out) {
  __shared__ float shared[8];
  const uint4* from = (const uint4*)(x + blockIdx.x * cols);
  uint4* to = (uint4*)(out + blockIdx.x * cols);
  float square = 0.f;
  for (int i = threadIdx.x; i < cols / 8; i += 256) {
    const uint4 w = from[i];
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      square += low_half(words[j]) * low_half(words[j]) + high_half(words[j]) * high_half(words[j]);
  }
  square = group_reduce<Sum, 256>(square, shared);
  const float inverse = rsqrtf(square / cols + (float)epsilon);
  for (int i = threadIdx.x; i < cols / 8; i += 256) {
    const uint4 w = from[i], by = ((const uint4*)gain)[i];
    const u32 words[4] = {w.x, w.y, w.z, w.w}, gains[4] = {by.x, by.y, by.z, by.w};
    u32 result[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      result[j] = pack_half(low_half(words[j]) * inverse * low_half(gains[j]),
                            high_half(words[j]) * inverse * high_half(gains[j]));
    to[i] = make_uint4(result[0], result[1], result[2], result[3]);
  }
}

// out[row][c] = SiLU(x[row][c]) · x[row][cols + c], halves; cols a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) half_gated(const u16* x, i64 rows, i64 cols, u16* out) {
  const i64 i = blockIdx.x * 256ll + threadIdx.x;
  if (i >= rows * (cols / 8)) return;
  const i64 row = i / (cols / 8), c = i % (cols / 8);
  const uint4 a = ((const uint4*)(x + row * 2 * cols))[c], b = ((const uint4*)(x + row * 2 * cols + cols))[c];
  const u32 gate[4] = {a.x, a.y, a.z, a.w}, up[4] = {b.x, b.y, b.z, b.w};
  u32 result[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float g0 = low_half(gate[j]), g1 = high_half(gate[j]);
    result[j] = pack_half(g0 * sigmoidf(g0) * low_half(up[j]), g1 * sigmoidf(g1) * high_half(up[j]));
  }
  ((uint4*)(out + row * cols))[c] = make_uint4(result[0], result[1], result[2], result[3]);
}

// out = from, 16 bytes at a time: what memory gives to a kernel. With `out` null: only read.
extern "C" __global__ void __launch_bounds__(512) stream_words(const uint4* from, i64 words, uint4* out) {
  uint4 sum = make_uint4(0, 0, 0, 0);
  const i64 step = (i64)gridDim.x * 512 * 4;
  for (i64 i = blockIdx.x * 2048ll + threadIdx.x; i + 1536 < words; i += step) {
    uint4 w[4];
#pragma unroll
    for (int j = 0; j < 4; j++) w[j] = from[i + j * 512];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (out) out[i + j * 512] = w[j];
      else sum.x ^= w[j].x ^ w[j].y ^ w[j].z ^ w[j].w;
    }
  }
  // Never so, which the compiler does not know.
  if (!out && sum.x == 0x12345678u && words < 0) ((u32*)from)[0] = sum.x;
}

__device__ __forceinline__ u32 hash(u64 x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull;
  return (u32)(x >> 32);
}

// Pseudo-random data, so that nothing is timed on zeros. kind 0: bytes; 1: halves, 2: floats, both roughly normal.
extern "C" __global__ void random_fill(void* out, i64 count, i64 kind, i64 seed, double deviation) {
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    const u32 h = hash(((u64)seed << 40) + i);
    if (kind == 0) {
      ((u8*)out)[i] = (u8)(h >> 11);
      continue;
    }
    const float sum = (float)(h & 255) + (float)(h >> 8 & 255) + (float)(h >> 16 & 255) + (float)(h >> 24) - 510.f;
    const float value = sum / 147.8f * (float)deviation;
    if (kind == 1) ((u16*)out)[i] = to_half(value);
    else ((float*)out)[i] = value;
  }
}
