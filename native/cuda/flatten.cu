// A static grid for a whole tensor with its large channels split over several columns. Definition:
// src/backend/contract/training-kernels.ts, FlattenRowsArgs. A block of 256 threads per row.
#include "common.cuh"

__device__ __forceinline__ float clamp_to(float r, float limit) { return fminf(limit, fmaxf(-limit, r)); }

// The smallest extra column whose channel or part does not exist goes to *bad.
extern "C" __global__ void __launch_bounds__(256)
    flatten_rows(const float* x, i64 rows, i64 cols, i64 bits, double step, const float* factor, i64 extras,
                 const int* channel, const int* part, i64 stride, const int* copies, i8* codes, float* scale,
                 int* clipped, i64* bad) {
  __shared__ float shared[8];
  const i64 row = blockIdx.x;
  x += row * cols;
  codes += row * stride;
  const float top = (float)((1 << (bits - 1)) - 1), width = (float)step;
  float beyond = 0.f;
  for (i64 j = threadIdx.x; j < cols; j += 256) {
    const float r = rintf((factor ? x[j] * factor[j] : x[j]) / width);
    codes[j] = (i8)clamp_to(r, top);
    if (copies && fabsf(r) > (float)copies[j] * top) beyond += 1.f;
  }
  for (i64 e = threadIdx.x; e < extras; e += 256) {
    const i64 j = channel[e], p = part[e];
    if (j < 0 || j >= cols || p < 0) {
      atomicMin(bad, e);
      continue;
    }
    const float r = rintf((factor ? x[j] * factor[j] : x[j]) / width);
    codes[cols + e] = (i8)(clamp_to(r, (float)(p + 1) * top) - clamp_to(r, (float)p * top));
  }
  for (i64 c = cols + extras + threadIdx.x; c < stride; c += 256) codes[c] = 0;
  beyond = group_reduce<Sum, 256>(beyond, shared);
  if (threadIdx.x != 0) return;
  if (scale) scale[row] = width;
  if (clipped) clipped[row] = (int)beyond;
}
