// Shared by all kernels: types without any CUDA header (NVRTC brings none), reductions in a fixed order, bf16.
//
// Every kernel parameter is 8 bytes wide (pointer, long long, double), as src/backend/cuda/driver.ts passes them.
#pragma once

typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef signed char i8;

#define FULL_MASK 0xffffffffu
#define INFINITE __int_as_float(0x7f800000)

struct __align__(16) f4 {
  float x, y, z, w;
};

// Two floats to two bfloat16, nearest even; `low` in the low half.
__device__ __forceinline__ u32 packBf16(float low, float high) {
  u32 result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

__device__ __forceinline__ u16 toBf16(float x) {
  return (u16)(packBf16(x, 0.f) & 0xffffu);
}

__device__ __forceinline__ float fromBf16(u16 bits) {
  return __uint_as_float((u32)bits << 16);
}

// 1/(1+e^-x), evaluated so that e^ never overflows to a NaN.
__device__ __forceinline__ float sigmoidf(float x) {
  return 1.f / (1.f + expf(-x));
}

struct Sum {
  static __device__ __forceinline__ float join(float a, float b) { return a + b; }
};
struct Max {
  static __device__ __forceinline__ float join(float a, float b) { return fmaxf(a, b); }
};
struct Min {
  static __device__ __forceinline__ float join(float a, float b) { return fminf(a, b); }
};

// Butterfly over the 32 lanes: every lane gets the result, in an order that does not depend on timing.
template <class Op>
__device__ __forceinline__ float warpReduce(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value = Op::join(value, __shfl_xor_sync(FULL_MASK, value, offset));
  return value;
}

__device__ __forceinline__ double warpSum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(FULL_MASK, value, offset);
  return value;
}

// Over a group of GROUP threads (32: one warp, or the whole block of GROUP threads). All threads get the result.
template <class Op, int GROUP>
__device__ __forceinline__ float groupReduce(float value, float* shared) {
  value = warpReduce<Op>(value);
  if (GROUP == 32) return value;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  float result = shared[0];
#pragma unroll
  for (int i = 1; i < GROUP / 32; i++) result = Op::join(result, shared[i]);
  return result;
}
