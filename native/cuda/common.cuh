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
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

typedef float4 f4;

// Two floats to two bfloat16, nearest even; `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

__device__ __forceinline__ u16 to_bf16(float x) { return (u16)(pack_bf16(x, 0.f) & 0xffffu); }

__device__ __forceinline__ float from_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }

// 1/(1+e^-x), evaluated so that e^ never overflows to a NaN.
__device__ __forceinline__ float sigmoidf(float x) { return 1.f / (1.f + expf(-x)); }

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
__device__ __forceinline__ float warp_reduce(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = Op::join(value, __shfl_xor_sync(FULL_MASK, value, offset));
  return value;
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(FULL_MASK, value, offset);
  return value;
}

// Over a group of GROUP threads (32: one warp, or the whole block of GROUP threads). All threads get the result.
template <class Op, int GROUP>
__device__ __forceinline__ float group_reduce(float value, float* shared) {
  value = warp_reduce<Op>(value);
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

// W consecutive elements (4 when rows are 16-byte aligned, else 1) to and from registers.
template <int W>
__device__ __forceinline__ void load(const float* from, float (&v)[W]) {
  if (W == 4) {
    const float4 word = *(const float4*)from;
    v[0] = word.x, v[W > 1 ? 1 : 0] = word.y, v[W > 2 ? 2 : 0] = word.z, v[W > 3 ? 3 : 0] = word.w;
  } else {
    v[0] = *from;
  }
}

template <int W>
__device__ __forceinline__ void store(float* to, const float (&v)[W]) {
  if (W == 4) {
    *(float4*)to = make_float4(v[0], v[W > 1 ? 1 : 0], v[W > 2 ? 2 : 0], v[W > 3 ? 3 : 0]);
  } else {
    *to = v[0];
  }
}

template <int W>
__device__ __forceinline__ void load_codes(const i8* from, int (&v)[W]) {
  if (W == 4) {
    const char4 word = *(const char4*)from;
    v[0] = (i8)word.x, v[W > 1 ? 1 : 0] = (i8)word.y, v[W > 2 ? 2 : 0] = (i8)word.z, v[W > 3 ? 3 : 0] = (i8)word.w;
  } else {
    v[0] = *from;
  }
}

template <int W>
__device__ __forceinline__ void store_codes_up_to(i8* to, const int (&v)[W]) {
  if (W == 4) {
    *(char4*)to = make_char4((i8)v[0], (i8)v[W > 1 ? 1 : 0], (i8)v[W > 2 ? 2 : 0], (i8)v[W > 3 ? 3 : 0]);
  } else {
    *to = (i8)v[0];
  }
}

// Rows are worked on by groups of GROUP threads: eight warps of a block each with a row, or the block with one.
#define ROW_THREADS 256
template <int GROUP>
__device__ __forceinline__ i64 group_row() {
  return (i64)blockIdx.x * (ROW_THREADS / GROUP) + threadIdx.x / GROUP;
}

// Both forms of a row kernel: NAME_warp for short rows, NAME_block for long ones; 16-byte accesses where rows allow.
#define ROW_KERNEL(NAME, PARAMETERS, ...)                                             \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS) NAME##_warp PARAMETERS {  \
    __shared__ float shared[16];                                                      \
    if (cols % 4 == 0) NAME<32, 4>(__VA_ARGS__, shared);                              \
    else NAME<32, 1>(__VA_ARGS__, shared);                                            \
  }                                                                                   \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS) NAME##_block PARAMETERS { \
    __shared__ float shared[16];                                                      \
    if (cols % 4 == 0) NAME<ROW_THREADS, 4>(__VA_ARGS__, shared);                     \
    else NAME<ROW_THREADS, 1>(__VA_ARGS__, shared);                                   \
  }
