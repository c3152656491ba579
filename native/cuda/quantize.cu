// Grids over rows, their gradients, row clipping. Definitions: src/backend/contract/training-kernels.ts; the arithmetic follows
// src/backend/reference/train/quantize.ts line by line.
#include "common.cuh"

// The clip factors of a call; 1 without clips. In double, so that the factor itself adds one rounding only.
struct Clips {
  float max, min;
  __device__ __forceinline__ Clips(const float* clipMax, const float* clipMin)
      : max(clipMax ? (float)(1.0 / (1.0 + exp(-(double)*clipMax))) : 1.f),
        min(clipMin ? (float)(1.0 / (1.0 + exp(-(double)*clipMin))) : 1.f) {}
};

__device__ __forceinline__ float sigmoidOf(const float* logit) {
  return (float)(1.0 / (1.0 + exp(-(double)*logit)));
}

// How many threads' elements equal a row's extreme: counts are exact in float up to 2^24 columns.
template <int GROUP>
__device__ __forceinline__ float countEqual(float local, float count, float extreme, float* shared) {
  return groupReduce<Sum, GROUP>(local == extreme ? count : 0.f, shared);
}

__device__ __forceinline__ void trackMax(float v, float& best, float& count) {
  if (v > best) best = v, count = 1.f;
  else if (v == best) count += 1.f;
}
__device__ __forceinline__ void trackMin(float v, float& best, float& count) {
  if (v < best) best = v, count = 1.f;
  else if (v == best) count += 1.f;
}

template <int GROUP, int W>
__device__ __forceinline__ void quantize_rows(const float* x, i64 rows, i64 cols, i64 bits, const float* clipMax,
                                              const float* clipMin, double scaleFloor, const float* offset,
                                              i8* codes, float* scale, float* shared) {
  const i64 row = groupRow<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clipMax, clipMin);
  const float qmax = (float)((1 << (bits - 1)) - 1);
  x += row * cols;
  codes += row * cols;
  if (offset) offset += row * cols;
  float high = 0.f, low = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) high = fmaxf(high, v[i]), low = fminf(low, v[i]);
  }
  high = groupReduce<Max, GROUP>(high, shared);
  low = groupReduce<Min, GROUP>(low, shared);
  const float reach = fmaxf(-low * clips.min, high * clips.max);
  const float wanted = fmaxf((float)scaleFloor, reach / qmax);
  const float s = wanted == 0.f ? 1.f : wanted;
  if (t == 0) scale[row] = s;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], o[W];
    int q[W];
    load<W>(x + c, v);
    if (offset) load<W>(offset + c, o);
#pragma unroll
    for (int i = 0; i < W; i++) {
      float ratio = v[i] / s;
      if (offset) ratio += o[i];
      q[i] = (int)fminf(qmax, fmaxf(-qmax - 1.f, rintf(ratio)));
    }
    storeCodes<W>(codes + c, q);
  }
}

ROW_KERNEL(quantize_rows,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clipMax, const float* clipMin,
            double scaleFloor, const float* offset, i8* codes, float* scale),
           x, rows, cols, bits, clipMax, clipMin, scaleFloor, offset, codes, scale)

// Adds share/ties to this thread's elements that equal the extreme; only threads whose own extreme it is look again.
template <int GROUP, int W>
__device__ __forceinline__ void addToEqual(const float* x, i64 cols, int t, float extreme, float share,
                                           float* gradX) {
  for (i64 c = t * W; c < cols; c += GROUP * W) {
#pragma unroll
    for (int i = 0; i < W; i++)
      if (x[c + i] == extreme) gradX[c + i] += share;
  }
}

template <int GROUP, int W>
__device__ __forceinline__ void quantize_rows_backward(const float* x, i64 rows, i64 cols, i64 bits,
                                                       const float* clipMax, const float* clipMin,
                                                       double scaleFloor, const float* offset, const i8* codes,
                                                       const float* scale, const float* grad, float* gradX,
                                                       float* gradOffset, float* rowHigh, float* rowLow,
                                                       float* shared) {
  const i64 row = groupRow<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clipMax, clipMin);
  const float qmax = (float)((1 << (bits - 1)) - 1);
  const float s = scale[row];
  x += row * cols;
  codes += row * cols;
  grad += row * cols;
  if (offset) offset += row * cols;
  if (gradX) gradX += row * cols;
  if (gradOffset) gradOffset += row * cols;
  float high = 0.f, low = 0.f, highCount = 0.f, lowCount = 0.f, sum = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], o[W], g[W];
    int q[W];
    load<W>(x + c, v);
    load<W>(grad + c, g);
    loadCodes<W>(codes + c, q);
    if (offset) load<W>(offset + c, o);
    float gx[W], go[W];
#pragma unroll
    for (int i = 0; i < W; i++) {
      const float ratio = v[i] / s;
      const float level = rintf(offset ? ratio + o[i] : ratio);
      const bool inside = level >= -qmax - 1.f && level <= qmax;
      gx[i] = inside ? g[i] : 0.f;
      go[i] = inside ? s * g[i] : 0.f;
      sum += g[i] * ((float)q[i] - (inside ? ratio : 0.f));
      trackMax(v[i], high, highCount);
      trackMin(v[i], low, lowCount);
    }
    if (gradX) store<W>(gradX + c, gx);
    if (gradOffset) store<W>(gradOffset + c, go);
  }
  const float rowMax = groupReduce<Max, GROUP>(high, shared);
  const float rowMin = groupReduce<Min, GROUP>(low, shared);
  const float total = groupReduce<Sum, GROUP>(sum, shared);
  const float hi = rowMax * clips.max, lo = rowMin * clips.min;
  const float reach = fmaxf(-lo, hi);
  float toHigh = 0.f, toLow = 0.f;
  if (reach > 0.f && reach / qmax >= (float)scaleFloor) {
    const float share = -lo == hi ? 0.5f : 1.f;
    if (hi == reach) toHigh = share * total / qmax;
    if (-lo == reach) toLow = -share * total / qmax;
  }
  if (gradX && toHigh != 0.f) {
    const float ties = countEqual<GROUP>(high, highCount, rowMax, shared);
    if (high == rowMax) addToEqual<GROUP, W>(x, cols, t, rowMax, toHigh * clips.max / ties, gradX);
  }
  if (gradX && toLow != 0.f) {
    const float ties = countEqual<GROUP>(low, lowCount, rowMin, shared);
    if (low == rowMin) addToEqual<GROUP, W>(x, cols, t, rowMin, toLow * clips.min / ties, gradX);
  }
  if (t == 0 && rowHigh) rowHigh[row] = toHigh * rowMax, rowLow[row] = toLow * rowMin;
}

ROW_KERNEL(quantize_rows_backward,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clipMax, const float* clipMin,
            double scaleFloor, const float* offset, const i8* codes, const float* scale, const float* grad,
            float* gradX, float* gradOffset, float* rowHigh, float* rowLow),
           x, rows, cols, bits, clipMax, clipMin, scaleFloor, offset, codes, scale, grad, gradX, gradOffset,
           rowHigh, rowLow)

// Gradient of a scalar clipping logit from its rows' shares: σ(1−σ)·Σ, in a fixed order. Two blocks: max and min.
extern "C" __global__ void __launch_bounds__(1024)
    clip_gradient(const float* rowHigh, const float* rowLow, i64 rows, const float* clipMax, const float* clipMin,
                  float* gradMax, float* gradMin) {
  __shared__ double sums[32];
  const float* from = blockIdx.x == 0 ? rowHigh : rowLow;
  float* to = blockIdx.x == 0 ? gradMax : gradMin;
  const float* logit = blockIdx.x == 0 ? clipMax : clipMin;
  if (!to) return;
  double sum = 0.0;
  for (i64 r = threadIdx.x; r < rows; r += 1024) sum += from[r];
  sum = warpSum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int i = 0; i < 32; i++) total += sums[i];
  const double sigma = logit ? 1.0 / (1.0 + exp(-(double)*logit)) : 1.0;
  *to = (float)(total * sigma * (1.0 - sigma));
}

extern "C" __global__ void dequantize_rows(const i8* codes, const float* scale, i64 rows, i64 cols, float* out) {
  const i64 total = rows * cols;
  if (cols % 4 == 0) {
    for (i64 at = (blockIdx.x * (i64)blockDim.x + threadIdx.x) * 4; at < total; at += (i64)gridDim.x * blockDim.x * 4) {
      const float s = scale[at / cols];
      int q[4];
      loadCodes<4>(codes + at, q);
      const float v[4] = {s * q[0], s * q[1], s * q[2], s * q[3]};
      store<4>(out + at, v);
    }
  } else {
    for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < total; at += (i64)gridDim.x * blockDim.x)
      out[at] = scale[at / cols] * codes[at];
  }
}

// One row's asymmetric grid.
struct AsymGrid {
  bool empty;
  float scale, zero;
  __device__ __forceinline__ AsymGrid(float high, float low, const Clips& clips, float levels) {
    empty = high == 0.f && low == 0.f;
    const float hi = empty ? 1.f : high * clips.max, lo = empty ? -1.f : low * clips.min;
    scale = (hi - lo) / levels;
    zero = rintf(-lo / scale);
  }
};

template <int GROUP, int W>
__device__ __forceinline__ void asym(const float* x, i64 rows, i64 cols, i64 bits, const float* clipMax,
                                     const float* clipMin, float* out, float* shared) {
  const i64 row = groupRow<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clipMax, clipMin);
  const float levels = (float)((1 << bits) - 1);
  x += row * cols;
  out += row * cols;
  float high = 0.f, low = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) high = fmaxf(high, v[i]), low = fminf(low, v[i]);
  }
  high = groupReduce<Max, GROUP>(high, shared);
  low = groupReduce<Min, GROUP>(low, shared);
  const AsymGrid grid(high, low, clips, levels);
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) {
      const float code = fminf(levels, fmaxf(0.f, rintf(v[i] / grid.scale) + grid.zero));
      v[i] = grid.scale * (code - grid.zero);
    }
    store<W>(out + c, v);
  }
}

ROW_KERNEL(asym,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clipMax, const float* clipMin, float* out),
           x, rows, cols, bits, clipMax, clipMin, out)

template <int GROUP, int W>
__device__ __forceinline__ void asym_backward(const float* x, i64 rows, i64 cols, i64 bits, const float* clipMax,
                                              const float* clipMin, const float* grad, float* gradX,
                                              float* rowHigh, float* rowLow, float* shared) {
  const i64 row = groupRow<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clipMax, clipMin);
  const float levels = (float)((1 << bits) - 1);
  x += row * cols;
  grad += row * cols;
  gradX += row * cols;
  float high = 0.f, low = 0.f, highCount = 0.f, lowCount = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) trackMax(v[i], high, highCount), trackMin(v[i], low, lowCount);
  }
  const float rowMax = groupReduce<Max, GROUP>(high, shared);
  const float rowMin = groupReduce<Min, GROUP>(low, shared);
  const AsymGrid grid(rowMax, rowMin, clips, levels);
  float sum = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W];
    load<W>(x + c, v);
    load<W>(grad + c, g);
#pragma unroll
    for (int i = 0; i < W; i++) {
      const float ratio = v[i] / grid.scale;
      const float level = rintf(ratio) + grid.zero;
      const bool inside = level >= 0.f && level <= levels;
      const float code = fminf(levels, fmaxf(0.f, level));
      sum += g[i] * (code - grid.zero - (inside ? ratio : 0.f));
      if (!inside) g[i] = 0.f;
    }
    store<W>(gradX + c, g);
  }
  const float total = groupReduce<Sum, GROUP>(sum, shared);
  const float toHigh = grid.empty ? 0.f : total / levels, toLow = -toHigh;
  if (rowMax > 0.f) {
    const float ties = countEqual<GROUP>(high, highCount, rowMax, shared);
    if (high == rowMax) addToEqual<GROUP, W>(x, cols, t, rowMax, toHigh * clips.max / ties, gradX);
  }
  if (rowMin < 0.f) {
    const float ties = countEqual<GROUP>(low, lowCount, rowMin, shared);
    if (low == rowMin) addToEqual<GROUP, W>(x, cols, t, rowMin, toLow * clips.min / ties, gradX);
  }
  if (t == 0 && rowHigh) rowHigh[row] = toHigh * rowMax, rowLow[row] = toLow * rowMin;
}

ROW_KERNEL(asym_backward,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clipMax, const float* clipMin,
            const float* grad, float* gradX, float* rowHigh, float* rowLow),
           x, rows, cols, bits, clipMax, clipMin, grad, gradX, rowHigh, rowLow)

template <int GROUP, int W>
__device__ __forceinline__ void clip_rows(const float* x, i64 rows, i64 cols, const float* clipMax,
                                          const float* clipMin, float* out, float* shared) {
  const i64 row = groupRow<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  x += row * cols;
  out += row * cols;
  float high = -INFINITE, low = INFINITE;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) high = fmaxf(high, v[i]), low = fminf(low, v[i]);
  }
  const float upper = groupReduce<Max, GROUP>(high, shared) * sigmoidOf(clipMax + row);
  const float lower = groupReduce<Min, GROUP>(low, shared) * sigmoidOf(clipMin + row);
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) v[i] = fminf(fmaxf(v[i], lower), upper);
    store<W>(out + c, v);
  }
}

ROW_KERNEL(clip_rows,
           (const float* x, i64 rows, i64 cols, const float* clipMax, const float* clipMin, float* out), x, rows,
           cols, clipMax, clipMin, out)

template <int GROUP, int W>
__device__ __forceinline__ void clip_rows_backward(const float* x, i64 rows, i64 cols, const float* clipMax,
                                                   const float* clipMin, const float* grad, float* gradX,
                                                   float* gradMax, float* gradMin, float* shared) {
  const i64 row = groupRow<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  x += row * cols;
  grad += row * cols;
  gradX += row * cols;
  float high = -INFINITE, low = INFINITE, highCount = 0.f, lowCount = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) trackMax(v[i], high, highCount), trackMin(v[i], low, lowCount);
  }
  const float rowMax = groupReduce<Max, GROUP>(high, shared);
  const float rowMin = groupReduce<Min, GROUP>(low, shared);
  const float sigmaMax = sigmoidOf(clipMax + row), sigmaMin = sigmoidOf(clipMin + row);
  const float upper = rowMax * sigmaMax, lower = rowMin * sigmaMin;
  float toUpper = 0.f, toLower = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W];
    load<W>(x + c, v);
    load<W>(grad + c, g);
#pragma unroll
    for (int i = 0; i < W; i++) {
      const bool above = fmaxf(v[i], lower) > upper;
      const bool below = !above && v[i] < lower;
      if (above) toUpper += g[i];
      if (below) toLower += g[i];
      if (above || below) g[i] = 0.f;
    }
    store<W>(gradX + c, g);
  }
  toUpper = groupReduce<Sum, GROUP>(toUpper, shared);
  toLower = groupReduce<Sum, GROUP>(toLower, shared);
  const float highTies = countEqual<GROUP>(high, highCount, rowMax, shared);
  const float lowTies = countEqual<GROUP>(low, lowCount, rowMin, shared);
  if (high == rowMax) addToEqual<GROUP, W>(x, cols, t, rowMax, toUpper * sigmaMax / highTies, gradX);
  if (low == rowMin) addToEqual<GROUP, W>(x, cols, t, rowMin, toLower * sigmaMin / lowTies, gradX);
  if (t == 0) {
    if (gradMax) gradMax[row] = toUpper * rowMax * sigmaMax * (1.f - sigmaMax);
    if (gradMin) gradMin[row] = toLower * rowMin * sigmaMin * (1.f - sigmaMin);
  }
}

ROW_KERNEL(clip_rows_backward,
           (const float* x, i64 rows, i64 cols, const float* clipMax, const float* clipMin, const float* grad,
            float* gradX, float* gradMax, float* gradMin),
           x, rows, cols, clipMax, clipMin, grad, gradX, gradMax, gradMin)
