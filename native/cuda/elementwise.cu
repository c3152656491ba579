// Elementwise maps, broadcasts, sums in a fixed order, the AdamW step. Definitions: src/backend/contract/training-kernels.ts.
#include "common.cuh"

#define STRIDED(W) \
  for (i64 at = (blockIdx.x * (i64)blockDim.x + threadIdx.x) * W; at < length; at += (i64)gridDim.x * blockDim.x * W)

// Divisions of 64-bit numbers cost ten times those of 32-bit ones.
__device__ __forceinline__ i64 quotient(i64 a, i64 b) { return ((a | b) >> 32) == 0 ? (i64)((u32)a / (u32)b) : a / b; }

__device__ __forceinline__ float silu_slope(float x) {
  const float s = sigmoidf(x);
  return s * (1.f + x * (1.f - s));
}

#define SQRT_HALF 0.70710678118654752440f
#define SQRT_2_OVER_PI 0.79788456080286535588f
#define INVERSE_SQRT_2_PI 0.39894228040143267794f
#define GELU_CUBIC 0.044715f

// Numbers of the operations: order of UNARY in src/backend/cuda/train/kernels/elementwise.ts.
__device__ __forceinline__ float unary_value(int op, float x) {
  switch (op) {
    case 0: return sigmoidf(x);
    case 1: return x * sigmoidf(x);
    case 2: return x > 0.f ? x : 0.f;
    case 3: return 0.5f * x * (1.f + erff(x * SQRT_HALF));
    case 4: return 0.5f * x * (1.f + tanhf(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x)));
    case 5: return 1.f / x;
    case 7: return x > 0.f ? x * x : 0.f;
    default: return -x;
  }
}

__device__ __forceinline__ float unary_slope(int op, float x) {
  switch (op) {
    case 0: {
      const float s = sigmoidf(x);
      return s * (1.f - s);
    }
    case 1: return silu_slope(x);
    case 2: return x > 0.f ? 1.f : 0.f;
    case 3: return 0.5f * (1.f + erff(x * SQRT_HALF)) + x * expf(-0.5f * x * x) * INVERSE_SQRT_2_PI;
    case 4: {
      const float t = tanhf(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
      return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * SQRT_2_OVER_PI * (1.f + 3.f * GELU_CUBIC * x * x);
    }
    case 5: return -1.f / (x * x);
    case 7: return x > 0.f ? 2.f * x : 0.f;
    default: return -1.f;
  }
}

template <int W>
__device__ __forceinline__ void unary_loop(int op, const float* x, i64 length, const float* grad, float* out) {
  STRIDED(W) {
    float v[W], g[W];
    load<W>(x + at, v);
    if (grad) load<W>(grad + at, g);
#pragma unroll
    for (int i = 0; i < W; i++) v[i] = grad ? unary_slope(op, v[i]) * g[i] : unary_value(op, v[i]);
    store<W>(out + at, v);
  }
}

// The function, or with `grad` its slope times the gradient.
extern "C" __global__ void unary(i64 op, const float* x, i64 length, const float* grad, float* out) {
  if (length % 4 == 0) unary_loop<4>((int)op, x, length, grad, out);
  else unary_loop<1>((int)op, x, length, grad, out);
}

template <int W>
__device__ __forceinline__ void binary_loop(int op, i64 length, i64 cols, const float* a, const float* b, int broadcast,
                                            float* out) {
  const float single = broadcast == 3 ? *b : 0.f;
  STRIDED(W) {
    float v[W], o[W];
    load<W>(a + at, v);
    if (broadcast == 0) load<W>(b + at, o);
    else if (broadcast == 1) load<W>(b + (at - quotient(at, cols) * cols), o);
    else {
      const float other = broadcast == 2 ? b[quotient(at, cols)] : single;
#pragma unroll
      for (int i = 0; i < W; i++) o[i] = other;
    }
#pragma unroll
    for (int i = 0; i < W; i++) v[i] = op == 0 ? v[i] + o[i] : op == 1 ? v[i] - o[i] : v[i] * o[i];
    store<W>(out + at, v);
  }
}

extern "C" __global__ void binary(i64 op, i64 rows, i64 cols, const float* a, const float* b, i64 broadcast,
                                  float* out) {
  const i64 length = rows * cols;
  const bool wide = broadcast == 0 || broadcast == 3 ? length % 4 == 0 : cols % 4 == 0;
  if (wide) binary_loop<4>((int)op, length, cols, a, b, (int)broadcast, out);
  else binary_loop<1>((int)op, length, cols, a, b, (int)broadcast, out);
}

template <int W>
__device__ __forceinline__ void scale_loop(const float* x, i64 length, float alpha, i64 accumulate, float* out) {
  STRIDED(W) {
    float v[W], o[W];
    load<W>(x + at, v);
    if (accumulate) load<W>(out + at, o);
#pragma unroll
    for (int i = 0; i < W; i++) v[i] = accumulate ? alpha * v[i] + o[i] : alpha * v[i];
    store<W>(out + at, v);
  }
}

extern "C" __global__ void scale(const float* x, i64 length, double alpha, i64 accumulate, float* out) {
  if (length % 4 == 0) scale_loop<4>(x, length, (float)alpha, accumulate, out);
  else scale_loop<1>(x, length, (float)alpha, accumulate, out);
}

template <int W>
__device__ __forceinline__ void silu_mul_loop(const float* gate, const float* up, i64 length, float* out) {
  STRIDED(W) {
    float g[W], u[W];
    load<W>(gate + at, g);
    load<W>(up + at, u);
#pragma unroll
    for (int i = 0; i < W; i++) g[i] = g[i] * sigmoidf(g[i]) * u[i];
    store<W>(out + at, g);
  }
}

extern "C" __global__ void silu_mul(const float* gate, const float* up, i64 length, float* out) {
  if (length % 4 == 0) silu_mul_loop<4>(gate, up, length, out);
  else silu_mul_loop<1>(gate, up, length, out);
}

template <int W>
__device__ __forceinline__ void silu_mul_backward_loop(const float* gate, const float* up, i64 length,
                                                       const float* grad, float* grad_gate, float* grad_up) {
  STRIDED(W) {
    float g[W], u[W], d[W];
    load<W>(gate + at, g);
    load<W>(up + at, u);
    load<W>(grad + at, d);
#pragma unroll
    for (int i = 0; i < W; i++) {
      const float s = sigmoidf(g[i]);
      u[i] = s * (1.f + g[i] * (1.f - s)) * u[i] * d[i];
      g[i] = g[i] * s * d[i];
    }
    store<W>(grad_gate + at, u);
    store<W>(grad_up + at, g);
  }
}

extern "C" __global__ void silu_mul_backward(const float* gate, const float* up, i64 length, const float* grad,
                                             float* grad_gate, float* grad_up) {
  if (length % 4 == 0) silu_mul_backward_loop<4>(gate, up, length, grad, grad_gate, grad_up);
  else silu_mul_backward_loop<1>(gate, up, length, grad, grad_gate, grad_up);
}

// partial[block] = Σ of the block's share of x (· y), or of (x − y)² when `squares`. 256 threads.
extern "C" __global__ void sum_partial(const float* x, const float* y, i64 length, i64 squares, float* partial) {
  __shared__ float shared[8];
  float sum = 0.f;
  STRIDED(1) {
    const float v = x[at];
    if (squares) {
      const float d = v - y[at];
      sum += d * d;
    } else {
      sum += y ? v * y[at] : v;
    }
  }
  sum = group_reduce<Sum, 256>(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out[c] = alpha·Σ_i partial[i][c], i < count: one thread per column, chunks in order.
extern "C" __global__ void sum_finish(const float* partial, i64 count, i64 cols, double alpha, float* out) {
  const i64 c = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (c >= cols) return;
  double sum = 0.0;
  for (i64 i = 0; i < count; i++) sum += partial[i * cols + c];
  out[c] = (float)(alpha * sum);
}

// As sum_finish for one column and many partials. One block of 256 threads.
extern "C" __global__ void sum_finish_scalar(const float* partial, i64 count, double alpha, float* out) {
  __shared__ double sums[8];
  double sum = 0.0;
  for (i64 i = threadIdx.x; i < count; i += 256) sum += partial[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0.0;
  for (int i = 0; i < 8; i++) total += sums[i];
  *out = (float)(alpha * total);
}

// partial[chunk][c] = Σ over the chunk's rows of x (· y); a thread per column, grid.y chunks of rows.
extern "C" __global__ void sum_rows_partial(const float* x, const float* y, i64 rows, i64 cols, i64 chunk,
                                            float* partial) {
  const i64 c = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (c >= cols) return;
  const i64 first = blockIdx.y * chunk;
  const i64 end = first + chunk < rows ? first + chunk : rows;
  float sum = 0.f;
  for (i64 r = first; r < end; r++) sum += y ? x[r * cols + c] * y[r * cols + c] : x[r * cols + c];
  partial[blockIdx.y * cols + c] = sum;
}

// out[c] = max(out[c], |x[r][c]| of the chunk's rows). The bits of numbers ≥ 0 order as integers, and a maximum does not
// depend on the order of its terms.
extern "C" __global__ void column_maxima(const float* x, i64 rows, i64 cols, i64 chunk, float* out) {
  const i64 c = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (c >= cols) return;
  const i64 first = blockIdx.y * chunk;
  const i64 end = first + chunk < rows ? first + chunk : rows;
  float high = 0.f;
  for (i64 r = first; r < end; r++) high = fmaxf(high, fabsf(x[r * cols + c]));
  atomicMax((int*)out + c, __float_as_int(high));
}

template <int GROUP, int W>
__device__ __forceinline__ void sum_columns(const float* x, const float* y, i64 rows, i64 cols, double alpha,
                                            float* out, float* shared) {
  const i64 row = group_row<GROUP>();
  if (row >= rows) return;
  const int t = threadIdx.x % GROUP;
  float sum = 0.f;
  for (i64 c = t * W; c < cols; c += GROUP * W) {
    float v[W], o[W];
    load<W>(x + row * cols + c, v);
    if (y) load<W>(y + row * cols + c, o);
#pragma unroll
    for (int i = 0; i < W; i++) sum += y ? v[i] * o[i] : v[i];
  }
  sum = group_reduce<Sum, GROUP>(sum, shared);
  if (t == 0) out[row] = (float)(alpha * (double)sum);
}

ROW_KERNEL(sum_columns, (const float* x, const float* y, i64 rows, i64 cols, double alpha, float* out), x, y, rows,
           cols, alpha, out)

// In double: parameters are few next to activations, and corrections of late steps need it. bound < 0: none.
extern "C" __global__ void adamw(float* param, const float* grad, float* moment1, float* moment2, i64 length,
                                 double learning_rate, double beta1, double beta2, double epsilon, double decay,
                                 double grad_scale, double correction1, double correction2, double bound) {
  STRIDED(1) {
    const double g = grad[at] * grad_scale;
    const double m = beta1 * moment1[at] + (1.0 - beta1) * g;
    const double v = beta2 * moment2[at] + (1.0 - beta2) * g * g;
    moment1[at] = (float)m;
    moment2[at] = (float)v;
    const double update = m / correction1 / (sqrt(v / correction2) + epsilon);
    double next = param[at] * decay - learning_rate * update;
    if (bound >= 0.0) next = fmin(bound, fmax(-bound, next));
    param[at] = (float)next;
  }
}

// out[r][:] = table[ids[r]][:]; the smallest row with an id outside the table goes to *bad. A block per row.
extern "C" __global__ void gather_rows(const float* table, i64 table_rows, i64 cols, const int* ids, i64 rows,
                                       float* out, i64* bad) {
  for (i64 r = blockIdx.x; r < rows; r += gridDim.x) {
    const i64 id = ids[r];
    if (id < 0 || id >= table_rows) {
      if (threadIdx.x == 0) atomicMin(bad, r);
      continue;
    }
    for (i64 c = threadIdx.x; c < cols; c += blockDim.x) out[r * cols + c] = table[id * cols + c];
  }
}
