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
    mean = groupReduce<Sum, GROUP>(mean, shared) / (float)cols;
  }
  float square = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) square += (v[i] - mean) * (v[i] - mean);
  }
  square = groupReduce<Sum, GROUP>(square, shared);
  return {mean, 1.f / sqrtf(square / (float)cols + epsilon)};
}

template <int GROUP, int W>
__device__ __forceinline__ void norm(i64 layer, const float* x, i64 rows, i64 cols, const float* gain,
                                     const float* bias, double epsilon, float* out, float* shared) {
  const i64 row = groupRow<GROUP>();
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

// gradX (when given), and every row's moments for the sums over rows.
template <int GROUP, int W>
__device__ __forceinline__ void norm_backward(i64 layer, const float* x, i64 rows, i64 cols, const float* gain,
                                              double epsilon, const float* grad, float* gradX, float* stats,
                                              float* shared) {
  const i64 row = groupRow<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  x += row * cols;
  grad += row * cols;
  const Moments m = moments<GROUP, W>(layer != 0, x, cols, (float)epsilon, shared);
  if (t == 0) stats[2 * row] = m.mean, stats[2 * row + 1] = m.inverse;
  if (!gradX) return;
  gradX += row * cols;
  float sumD = 0.f, sumDN = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W], d[W];
    load<W>(x + c, v);
    load<W>(gain + c, g);
    load<W>(grad + c, d);
#pragma unroll
    for (int i = 0; i < W; i++) {
      d[i] *= g[i];
      sumD += d[i];
      sumDN += d[i] * ((v[i] - m.mean) * m.inverse);
    }
  }
  const float meanD = layer ? groupReduce<Sum, GROUP>(sumD, shared) / (float)cols : 0.f;
  const float meanDN = groupReduce<Sum, GROUP>(sumDN, shared) / (float)cols;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W], d[W];
    load<W>(x + c, v);
    load<W>(gain + c, g);
    load<W>(grad + c, d);
#pragma unroll
    for (int i = 0; i < W; i++)
      v[i] = m.inverse * (d[i] * g[i] - (v[i] - m.mean) * m.inverse * meanDN - meanD);
    store<W>(gradX + c, v);
  }
}

ROW_KERNEL(norm_backward,
           (i64 layer, const float* x, i64 rows, i64 cols, const float* gain, double epsilon, const float* grad,
            float* gradX, float* stats),
           layer, x, rows, cols, gain, epsilon, grad, gradX, stats)

// Sums over a chunk of rows: partialGain[chunk][c] = Σ g·n, partialBias[chunk][c] = Σ g.
extern "C" __global__ void norm_gain_partial(const float* x, const float* grad, const float* stats, i64 rows,
                                             i64 cols, i64 chunk, float* partialGain, float* partialBias) {
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
  partialGain[blockIdx.y * cols + c] = gain;
  if (partialBias) partialBias[blockIdx.y * cols + c] = bias;
}

// One thread per pair (i, i + headDim/2); out may be x.
extern "C" __global__ void rope(const float* x, i64 rows, i64 heads, i64 headDim, i64 period, const float* cosine,
                                const float* sine, double sign, float* out) {
  const u32 half = (u32)(headDim / 2);
  const i64 pairs = rows * heads * half;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < pairs; at += (i64)gridDim.x * blockDim.x) {
    const i64 head = (at >> 32) == 0 ? (i64)((u32)at / half) : at / half;
    const i64 i = at - head * half;
    const i64 row = ((head | heads) >> 32) == 0 ? (i64)((u32)head / (u32)heads) : head / heads;
    const i64 table = (row % period) * half + i;
    const i64 start = head * headDim + i;
    const float a = x[start], b = x[start + half];
    const float c = cosine[table], s = (float)sign * sine[table];
    out[start] = a * c - b * s;
    out[start + half] = b * c + a * s;
  }
}
