// Grids over rows, their gradients, row clipping. Definitions: src/backend/contract/training-kernels.ts; the arithmetic follows
// src/backend/reference/train/quantize.ts line by line.
#include "common.cuh"

// The clip factors of a call; 1 without clips. In double, so that the factor itself adds one rounding only.
struct Clips {
  float max, min;
  __device__ __forceinline__ Clips(const float* clip_max, const float* clip_min)
      : max(clip_max ? (float)(1.0 / (1.0 + exp(-(double)*clip_max))) : 1.f),
        min(clip_min ? (float)(1.0 / (1.0 + exp(-(double)*clip_min))) : 1.f) {}
};

__device__ __forceinline__ float sigmoid_of(const float* logit) { return (float)(1.0 / (1.0 + exp(-(double)*logit))); }

// How many threads' elements equal a row's extreme: counts are exact in float up to 2^24 columns.
template <int GROUP>
__device__ __forceinline__ float count_equal(float local, float count, float extreme, float* shared) {
  return group_reduce<Sum, GROUP>(local == extreme ? count : 0.f, shared);
}

__device__ __forceinline__ void track_max(float v, float& best, float& count) {
  if (v > best) best = v, count = 1.f;
  else if (v == best) count += 1.f;
}
__device__ __forceinline__ void track_min(float v, float& best, float& count) {
  if (v < best) best = v, count = 1.f;
  else if (v == best) count += 1.f;
}

template <int GROUP, int W>
__device__ __forceinline__ void quantize_rows(const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max,
                                              const float* clip_min, double scale_floor, const float* offset, i8* codes,
                                              float* scale, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clip_max, clip_min);
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
  high = group_reduce<Max, GROUP>(high, shared);
  low = group_reduce<Min, GROUP>(low, shared);
  const float reach = fmaxf(-low * clips.min, high * clips.max);
  const float wanted = fmaxf((float)scale_floor, reach / qmax);
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
    store_codes_up_to<W>(codes + c, q);
  }
}

ROW_KERNEL(quantize_rows,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max, const float* clip_min,
            double scale_floor, const float* offset, i8* codes, float* scale),
           x, rows, cols, bits, clip_max, clip_min, scale_floor, offset, codes, scale)

// Adds share/ties to this thread's elements that equal the extreme; only threads whose own extreme it is look again.
template <int GROUP, int W>
__device__ __forceinline__ void add_to_equal(const float* x, i64 cols, int t, float extreme, float share,
                                             float* grad_x) {
  for (i64 c = t * W; c < cols; c += GROUP * W) {
#pragma unroll
    for (int i = 0; i < W; i++)
      if (x[c + i] == extreme) grad_x[c + i] += share;
  }
}

template <int GROUP, int W>
__device__ __forceinline__ void quantize_rows_backward(const float* x, i64 rows, i64 cols, i64 bits,
                                                       const float* clip_max, const float* clip_min, double scale_floor,
                                                       const float* offset, const i8* codes, const float* scale,
                                                       const float* grad, float* grad_x, float* grad_offset,
                                                       float* row_high, float* row_low, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clip_max, clip_min);
  const float qmax = (float)((1 << (bits - 1)) - 1);
  const float s = scale[row];
  x += row * cols;
  codes += row * cols;
  grad += row * cols;
  if (offset) offset += row * cols;
  if (grad_x) grad_x += row * cols;
  if (grad_offset) grad_offset += row * cols;
  float high = 0.f, low = 0.f, high_count = 0.f, low_count = 0.f, sum = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], o[W], g[W];
    int q[W];
    load<W>(x + c, v);
    load<W>(grad + c, g);
    load_codes<W>(codes + c, q);
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
      track_max(v[i], high, high_count);
      track_min(v[i], low, low_count);
    }
    if (grad_x) store<W>(grad_x + c, gx);
    if (grad_offset) store<W>(grad_offset + c, go);
  }
  const float row_max = group_reduce<Max, GROUP>(high, shared);
  const float row_min = group_reduce<Min, GROUP>(low, shared);
  const float total = group_reduce<Sum, GROUP>(sum, shared);
  const float hi = row_max * clips.max, lo = row_min * clips.min;
  const float reach = fmaxf(-lo, hi);
  float to_high = 0.f, to_low = 0.f;
  if (reach > 0.f && reach / qmax >= (float)scale_floor) {
    const float share = -lo == hi ? 0.5f : 1.f;
    if (hi == reach) to_high = share * total / qmax;
    if (-lo == reach) to_low = -share * total / qmax;
  }
  if (grad_x && to_high != 0.f) {
    const float ties = count_equal<GROUP>(high, high_count, row_max, shared);
    if (high == row_max) add_to_equal<GROUP, W>(x, cols, t, row_max, to_high * clips.max / ties, grad_x);
  }
  if (grad_x && to_low != 0.f) {
    const float ties = count_equal<GROUP>(low, low_count, row_min, shared);
    if (low == row_min) add_to_equal<GROUP, W>(x, cols, t, row_min, to_low * clips.min / ties, grad_x);
  }
  if (t == 0 && row_high) row_high[row] = to_high * row_max, row_low[row] = to_low * row_min;
}

ROW_KERNEL(quantize_rows_backward,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max, const float* clip_min,
            double scale_floor, const float* offset, const i8* codes, const float* scale, const float* grad,
            float* grad_x, float* grad_offset, float* row_high, float* row_low),
           x, rows, cols, bits, clip_max, clip_min, scale_floor, offset, codes, scale, grad, grad_x, grad_offset,
           row_high, row_low)

// Gradient of a scalar clipping logit from its rows' shares: σ(1−σ)·Σ, in a fixed order. Two blocks: max and min.
extern "C" __global__ void __launch_bounds__(1024)
    clip_gradient(const float* row_high, const float* row_low, i64 rows, const float* clip_max, const float* clip_min,
                  float* grad_max, float* grad_min) {
  __shared__ double sums[32];
  const float* from = blockIdx.x == 0 ? row_high : row_low;
  float* to = blockIdx.x == 0 ? grad_max : grad_min;
  const float* logit = blockIdx.x == 0 ? clip_max : clip_min;
  if (!to) return;
  double sum = 0.0;
  for (i64 r = threadIdx.x; r < rows; r += 1024) sum += from[r];
  sum = warp_sum(sum);
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
      load_codes<4>(codes + at, q);
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
__device__ __forceinline__ void asym(const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max,
                                     const float* clip_min, float* out, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clip_max, clip_min);
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
  high = group_reduce<Max, GROUP>(high, shared);
  low = group_reduce<Min, GROUP>(low, shared);
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
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max, const float* clip_min, float* out), x,
           rows, cols, bits, clip_max, clip_min, out)

template <int GROUP, int W>
__device__ __forceinline__ void asym_backward(const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max,
                                              const float* clip_min, const float* grad, float* grad_x, float* row_high,
                                              float* row_low, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const Clips clips(clip_max, clip_min);
  const float levels = (float)((1 << bits) - 1);
  x += row * cols;
  grad += row * cols;
  grad_x += row * cols;
  float high = 0.f, low = 0.f, high_count = 0.f, low_count = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) track_max(v[i], high, high_count), track_min(v[i], low, low_count);
  }
  const float row_max = group_reduce<Max, GROUP>(high, shared);
  const float row_min = group_reduce<Min, GROUP>(low, shared);
  const AsymGrid grid(row_max, row_min, clips, levels);
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
    store<W>(grad_x + c, g);
  }
  const float total = group_reduce<Sum, GROUP>(sum, shared);
  const float to_high = grid.empty ? 0.f : total / levels, to_low = -to_high;
  if (row_max > 0.f) {
    const float ties = count_equal<GROUP>(high, high_count, row_max, shared);
    if (high == row_max) add_to_equal<GROUP, W>(x, cols, t, row_max, to_high * clips.max / ties, grad_x);
  }
  if (row_min < 0.f) {
    const float ties = count_equal<GROUP>(low, low_count, row_min, shared);
    if (low == row_min) add_to_equal<GROUP, W>(x, cols, t, row_min, to_low * clips.min / ties, grad_x);
  }
  if (t == 0 && row_high) row_high[row] = to_high * row_max, row_low[row] = to_low * row_min;
}

ROW_KERNEL(asym_backward,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max, const float* clip_min,
            const float* grad, float* grad_x, float* row_high, float* row_low),
           x, rows, cols, bits, clip_max, clip_min, grad, grad_x, row_high, row_low)

// 1 − σ of a clipping logit; 0 without one.
__device__ __forceinline__ float clip_slack(const float* logit) {
  return logit ? (float)(1.0 / (1.0 + exp((double)*logit))) : 0.f;
}

// One row's grid with a real offset.
struct OffsetGrid {
  bool constant;
  float half, lo, scale;
  __device__ __forceinline__ OffsetGrid(float max, float min, float slack_max, float slack_min, float levels) {
    half = (max - min) / 2.f;
    lo = min + half * slack_min;
    const float step = ((max - half * slack_max) - lo) / levels;
    constant = !(step > 0.f);
    scale = constant ? 1.f : step;
  }
};

template <int GROUP, int W>
__device__ __forceinline__ void offset_grid(const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max,
                                            const float* clip_min, const float* shift, float* out, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const float levels = (float)((1 << bits) - 1);
  x += row * cols;
  out += row * cols;
  if (shift) shift += row * cols;
  float high = -INFINITE, low = INFINITE;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) high = fmaxf(high, v[i]), low = fminf(low, v[i]);
  }
  high = group_reduce<Max, GROUP>(high, shared);
  low = group_reduce<Min, GROUP>(low, shared);
  const OffsetGrid grid(high, low, clip_slack(clip_max), clip_slack(clip_min), levels);
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], o[W];
    load<W>(x + c, v);
    if (shift) load<W>(shift + c, o);
#pragma unroll
    for (int i = 0; i < W; i++) {
      float ratio = (v[i] - grid.lo) / grid.scale;
      if (shift) ratio += o[i];
      v[i] = grid.lo + grid.scale * fminf(levels, fmaxf(0.f, rintf(ratio)));
    }
    store<W>(out + c, v);
  }
}

ROW_KERNEL(offset_grid,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max, const float* clip_min,
            const float* shift, float* out),
           x, rows, cols, bits, clip_max, clip_min, shift, out)

template <int GROUP, int W>
__device__ __forceinline__ void offset_grid_backward(const float* x, i64 rows, i64 cols, i64 bits,
                                                     const float* clip_max, const float* clip_min, const float* shift,
                                                     const float* grad, float* grad_x, float* grad_shift,
                                                     float* row_high, float* row_low, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  const float levels = (float)((1 << bits) - 1);
  x += row * cols;
  grad += row * cols;
  grad_x += row * cols;
  if (shift) shift += row * cols;
  if (grad_shift) grad_shift += row * cols;
  float high = -INFINITE, low = INFINITE, high_count = 0.f, low_count = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) track_max(v[i], high, high_count), track_min(v[i], low, low_count);
  }
  const float row_max = group_reduce<Max, GROUP>(high, shared);
  const float row_min = group_reduce<Min, GROUP>(low, shared);
  const float slack_max = clip_slack(clip_max), slack_min = clip_slack(clip_min);
  const OffsetGrid grid(row_max, row_min, slack_max, slack_min, levels);
  float sum = 0.f, beyond = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W], o[W], gs[W];
    load<W>(x + c, v);
    load<W>(grad + c, g);
    if (shift) load<W>(shift + c, o);
#pragma unroll
    for (int i = 0; i < W; i++) {
      const float ratio = (v[i] - grid.lo) / grid.scale;
      const float level = rintf(shift ? ratio + o[i] : ratio);
      const bool inside = level >= 0.f && level <= levels;
      const float code = fminf(levels, fmaxf(0.f, level));
      sum += g[i] * (code - (inside ? ratio : 0.f));
      if (!inside) beyond += g[i], g[i] = 0.f;
      gs[i] = grid.scale * g[i];
    }
    store<W>(grad_x + c, g);
    if (grad_shift) store<W>(grad_shift + c, gs);
  }
  const float total = group_reduce<Sum, GROUP>(sum, shared);
  beyond = group_reduce<Sum, GROUP>(beyond, shared);
  const float to_high = grid.constant ? 0.f : total / levels;
  const float to_low = grid.constant ? 0.f : beyond - total / levels;
  const float high_ties = count_equal<GROUP>(high, high_count, row_max, shared);
  const float low_ties = count_equal<GROUP>(low, low_count, row_min, shared);
  // What the upper end keeps of the maximum it takes from the minimum, and the other way round.
  const float to_max = (to_high * (2.f - slack_max) + to_low * slack_min) / 2.f;
  const float to_min = (to_high * slack_max + to_low * (2.f - slack_min)) / 2.f;
  if (to_max != 0.f && high == row_max) add_to_equal<GROUP, W>(x, cols, t, row_max, to_max / high_ties, grad_x);
  if (to_min != 0.f && low == row_min) add_to_equal<GROUP, W>(x, cols, t, row_min, to_min / low_ties, grad_x);
  if (t == 0 && row_high) row_high[row] = to_high * grid.half, row_low[row] = -to_low * grid.half;
}

ROW_KERNEL(offset_grid_backward,
           (const float* x, i64 rows, i64 cols, i64 bits, const float* clip_max, const float* clip_min,
            const float* shift, const float* grad, float* grad_x, float* grad_shift, float* row_high, float* row_low),
           x, rows, cols, bits, clip_max, clip_min, shift, grad, grad_x, grad_shift, row_high, row_low)

template <int GROUP, int W>
__device__ __forceinline__ void clip_rows(const float* x, i64 rows, i64 cols, const float* clip_max,
                                          const float* clip_min, float* out, float* shared) {
  const i64 row = group_row<GROUP>();
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
  const float upper = group_reduce<Max, GROUP>(high, shared) * sigmoid_of(clip_max + row);
  const float lower = group_reduce<Min, GROUP>(low, shared) * sigmoid_of(clip_min + row);
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) v[i] = fminf(fmaxf(v[i], lower), upper);
    store<W>(out + c, v);
  }
}

ROW_KERNEL(clip_rows, (const float* x, i64 rows, i64 cols, const float* clip_max, const float* clip_min, float* out), x,
           rows, cols, clip_max, clip_min, out)

template <int GROUP, int W>
__device__ __forceinline__ void clip_rows_backward(const float* x, i64 rows, i64 cols, const float* clip_max,
                                                   const float* clip_min, const float* grad, float* grad_x,
                                                   float* grad_max, float* grad_min, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  x += row * cols;
  grad += row * cols;
  grad_x += row * cols;
  float high = -INFINITE, low = INFINITE, high_count = 0.f, low_count = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W];
    load<W>(x + c, v);
#pragma unroll
    for (int i = 0; i < W; i++) track_max(v[i], high, high_count), track_min(v[i], low, low_count);
  }
  const float row_max = group_reduce<Max, GROUP>(high, shared);
  const float row_min = group_reduce<Min, GROUP>(low, shared);
  const float sigma_max = sigmoid_of(clip_max + row), sigma_min = sigmoid_of(clip_min + row);
  const float upper = row_max * sigma_max, lower = row_min * sigma_min;
  float to_upper = 0.f, to_lower = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], g[W];
    load<W>(x + c, v);
    load<W>(grad + c, g);
#pragma unroll
    for (int i = 0; i < W; i++) {
      const bool above = fmaxf(v[i], lower) > upper;
      const bool below = !above && v[i] < lower;
      if (above) to_upper += g[i];
      if (below) to_lower += g[i];
      if (above || below) g[i] = 0.f;
    }
    store<W>(grad_x + c, g);
  }
  to_upper = group_reduce<Sum, GROUP>(to_upper, shared);
  to_lower = group_reduce<Sum, GROUP>(to_lower, shared);
  const float high_ties = count_equal<GROUP>(high, high_count, row_max, shared);
  const float low_ties = count_equal<GROUP>(low, low_count, row_min, shared);
  if (high == row_max) add_to_equal<GROUP, W>(x, cols, t, row_max, to_upper * sigma_max / high_ties, grad_x);
  if (low == row_min) add_to_equal<GROUP, W>(x, cols, t, row_min, to_lower * sigma_min / low_ties, grad_x);
  if (t == 0) {
    if (grad_max) grad_max[row] = to_upper * row_max * sigma_max * (1.f - sigma_max);
    if (grad_min) grad_min[row] = to_lower * row_min * sigma_min * (1.f - sigma_min);
  }
}

ROW_KERNEL(clip_rows_backward,
           (const float* x, i64 rows, i64 cols, const float* clip_max, const float* clip_min, const float* grad,
            float* grad_x, float* grad_max, float* grad_min),
           x, rows, cols, clip_max, clip_min, grad, grad_x, grad_max, grad_min)
