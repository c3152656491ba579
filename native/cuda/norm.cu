// RMS and layer norm, rotary embedding. Definitions: src/backend/contract/training-kernels.ts.
#include "common.cuh"

struct Moments {
  float mean, inverse;
};

// mean (0 unless layer norm) and 1/√(mean (x−mean)² + ε) of a group's row; a value for every thread.
template <int GROUP, int W>
__device__ __forceinline__ Moments moments(bool layer, const float* x, i64 cols, float epsilon, float* shared) {
  const int t = threadIdx.x % GROUP;
  float mean = 0.f;
  if (layer) {
    for (i64 c = t * W; c < cols; c += GROUP * W) {
      float v[W];
      load<W>(x + c, v);
#pragma unroll
      for (int i = 0; i < W; i++) mean += v[i];
    }
    mean = group_reduce<Sum, GROUP>(mean, shared) / (float)cols;
  }
  float square = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) square += (v[i] - mean) * (v[i] - mean);
  }
  square = group_reduce<Sum, GROUP>(square, shared);
  return {mean, 1.f / sqrtf(square / (float)cols + epsilon)};
}

template <int GROUP, int W>
__device__ __forceinline__ void norm(i64 layer, const float* x, i64 rows, i64 cols, const float* gain,
                                     const float* bias, double epsilon, float* out, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  x += row * cols;
  out += row * cols;
  const Moments m = moments<GROUP, W>(layer != 0, x, cols, (float)epsilon, shared);
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W], b[W];
    load<W>(x + c, v);
    load<W>(gain + c, g);
    if (bias) load<W>(bias + c, b);
#pragma unroll
    for (int i = 0; i < W; i++) {
      v[i] = (v[i] - m.mean) * m.inverse * g[i];
      if (bias) v[i] += b[i];
    }
    store<W>(out + c, v);
  }
}

ROW_KERNEL(norm,
           (i64 layer, const float* x, i64 rows, i64 cols, const float* gain, const float* bias, double epsilon,
            float* out),
           layer, x, rows, cols, gain, bias, epsilon, out)

// grad_x (when given), and every row's moments for the sums over rows.
template <int GROUP, int W>
__device__ __forceinline__ void norm_backward(i64 layer, const float* x, i64 rows, i64 cols, const float* gain,
                                              double epsilon, const float* grad, float* grad_x, float* stats,
                                              float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  x += row * cols;
  grad += row * cols;
  const Moments m = moments<GROUP, W>(layer != 0, x, cols, (float)epsilon, shared);
  if (t == 0) stats[2 * row] = m.mean, stats[2 * row + 1] = m.inverse;
  if (!grad_x) return;
  grad_x += row * cols;
  float sum_d = 0.f, sum_dn = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W], d[W];
    load<W>(x + c, v);
    load<W>(gain + c, g);
    load<W>(grad + c, d);
#pragma unroll
    for (int i = 0; i < W; i++) {
      d[i] *= g[i];
      sum_d += d[i];
      sum_dn += d[i] * ((v[i] - m.mean) * m.inverse);
    }
  }
  const float mean_d = layer ? group_reduce<Sum, GROUP>(sum_d, shared) / (float)cols : 0.f;
  const float mean_dn = group_reduce<Sum, GROUP>(sum_dn, shared) / (float)cols;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W], d[W];
    load<W>(x + c, v);
    load<W>(gain + c, g);
    load<W>(grad + c, d);
#pragma unroll
    for (int i = 0; i < W; i++) v[i] = m.inverse * (d[i] * g[i] - (v[i] - m.mean) * m.inverse * mean_dn - mean_d);
    store<W>(grad_x + c, v);
  }
}

ROW_KERNEL(norm_backward,
           (i64 layer, const float* x, i64 rows, i64 cols, const float* gain, double epsilon, const float* grad,
            float* grad_x, float* stats),
           layer, x, rows, cols, gain, epsilon, grad, grad_x, stats)

// Sums over a chunk of rows: partial_gain[chunk][c] = Σ g·n, partial_bias[chunk][c] = Σ g.
extern "C" __global__ void norm_gain_partial(const float* x, const float* grad, const float* stats, i64 rows, i64 cols,
                                             i64 chunk, float* partial_gain, float* partial_bias) {
  const i64 c = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (c >= cols) return;
  const i64 first = blockIdx.y * chunk;
  const i64 end = first + chunk < rows ? first + chunk : rows;
  float gain = 0.f, bias = 0.f;
  for (i64 r = first; r < end; r++) {
    const float g = grad[r * cols + c];
    gain += g * ((x[r * cols + c] - stats[2 * r]) * stats[2 * r + 1]);
    bias += g;
  }
  partial_gain[blockIdx.y * cols + c] = gain;
  if (partial_bias) partial_bias[blockIdx.y * cols + c] = bias;
}

// One thread per pair (i, i + head_dim/2); out may be x.
extern "C" __global__ void rope(const float* x, i64 rows, i64 heads, i64 head_dim, i64 period, const float* cosine,
                                const float* sine, double sign, float* out) {
  const u32 half = (u32)(head_dim / 2);
  const i64 pairs = rows * heads * half;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < pairs; at += (i64)gridDim.x * blockDim.x) {
    const i64 head = (at >> 32) == 0 ? (i64)((u32)at / half) : at / half;
    const i64 i = at - head * half;
    const i64 row = ((head | heads) >> 32) == 0 ? (i64)((u32)head / (u32)heads) : head / heads;
    const i64 table = (row % period) * half + i;
    const i64 start = head * head_dim + i;
    const float a = x[start], b = x[start + half];
    const float c = cosine[table], s = (float)sign * sine[table];
    out[start] = a * c - b * s;
    out[start + half] = b * c + a * s;
  }
}
