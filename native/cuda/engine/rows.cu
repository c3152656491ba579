// Steps of a block that no other kernel of the engine computes: norms whose result something else than a site reads, or that
// subtract a mean, sums and products of two values, activation functions, values times a number, and rotary tables beside
// those that the embedding fills. Values are columns of rows in f32: an address and a stride. Sums go in a fixed order.
//
// Macros: KIND 0 RMS norm, 1 layer norm; OP: of `activate` 0 SiLU, 1 ReLU, 2 ReLU squared, 3 GELU, 4 GELU by tanh, 5 sigmoid,
// 6 the clamped gate; of `pair` 0 sum, 1 product.
#include "engine/engine.cuh"

#ifndef KIND
#define KIND 0
#endif
#ifndef OP
#define OP 0
#endif

// Of row blockIdx.x, group blockIdx.y of `cols` columns: out = (x − mean)/√(variance + epsilon)·gain + bias; RMS norms have
// no mean. gains: 1, or a gain for each group. `out` may be `x`.
extern "C" __global__ void __launch_bounds__(256)
    norm_rows(const float* x, i64 x_stride, i64 cols, const float* gain, const float* bias, i64 gains, double epsilon,
              float* out, i64 out_stride) {
  __shared__ float shared[8];
  release_next();
  wait_for_earlier();
  const float* const from = x + blockIdx.x * x_stride + blockIdx.y * cols;
  float* const to = out + blockIdx.x * out_stride + blockIdx.y * cols;
  const i64 first = gains > 1 ? blockIdx.y * cols : 0;
  float mean = 0.f;
  if (KIND == 1) {
    for (i64 i = threadIdx.x; i < cols; i += 256) mean += from[i];
    mean = group_reduce<Sum, 256>(mean, shared) / cols;
  }
  float square = 0.f;
  for (i64 i = threadIdx.x; i < cols; i += 256) square += (from[i] - mean) * (from[i] - mean);
  square = group_reduce<Sum, 256>(square, shared);
  const float inverse = rsqrtf(square / cols + (float)epsilon);
  for (i64 i = threadIdx.x; i < cols; i += 256) {
    const float value = (from[i] - mean) * inverse * gain[first + i];
    to[i] = bias ? value + bias[first + i] : value;
  }
}

// out = a + b, or a·b. `out` may be either.
extern "C" __global__ void __launch_bounds__(256) pair_rows(const float* a, i64 a_stride, const float* b, i64 b_stride,
                                                            i64 rows, i64 cols, float* out, i64 out_stride) {
  release_next();
  wait_for_earlier();
  const i64 at = blockIdx.x * 256ll + threadIdx.x, row = at / cols, column = at % cols;
  if (row >= rows) return;
  const float x = a[row * a_stride + column], y = b[row * b_stride + column];
  out[row * out_stride + column] = OP == 0 ? x + y : x * y;
}

__device__ __forceinline__ float activated(float x) {
  if (OP == 0) return x * sigmoidf(x);
  if (OP == 1) return fmaxf(x, 0.f);
  if (OP == 2) return x > 0.f ? x * x : 0.f;
  if (OP == 3) return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  if (OP == 4) return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  return sigmoidf(x);
}

// out = f(gate)·x, or f(x) without a gate. The clamped gate (OP 6): (x + 1)·g·σ(alpha·g) with g = gate up to `limit` and x
// within ±limit.
extern "C" __global__ void __launch_bounds__(256)
    activate_rows(const float* gate, i64 gate_stride, const float* x, i64 x_stride, i64 rows, i64 cols, double alpha,
                  double limit, float* out, i64 out_stride) {
  release_next();
  wait_for_earlier();
  const i64 at = blockIdx.x * 256ll + threadIdx.x, row = at / cols, column = at % cols;
  if (row >= rows) return;
  const float value = x[row * x_stride + column];
  float result;
  if (OP == 6) {
    const float most = (float)limit, g = fminf(gate[row * gate_stride + column], most);
    result = (fminf(fmaxf(value, -most), most) + 1.f) * g * sigmoidf((float)alpha * g);
  } else {
    result = gate ? activated(gate[row * gate_stride + column]) * value : activated(value);
  }
  out[row * out_stride + column] = result;
}

// out = x·factor, or x times the number at `by`. `out` may be `x`.
extern "C" __global__ void __launch_bounds__(256)
    scale_rows(const float* x, i64 x_stride, i64 rows, i64 cols, double factor, const float* by, float* out,
               i64 out_stride) {
  release_next();
  wait_for_earlier();
  const i64 at = blockIdx.x * 256ll + threadIdx.x, row = at / cols, column = at % cols;
  if (row >= rows) return;
  out[row * out_stride + column] = x[row * x_stride + column] * (by ? by[0] : (float)factor);
}

// Rotary tables [rows][half] of positions; the first `turning` pairs are multiplied by `factor`.
extern "C" __global__ void __launch_bounds__(128)
    rotary_tables(const int* positions, const double* frequencies, i64 half, i64 turning, double factor, float* cosine,
                  float* sine) {
  release_next();
  wait_for_earlier();
  const i64 row = blockIdx.x;
  for (i64 i = threadIdx.x; i < half; i += 128) {
    const double angle = positions[row] * frequencies[i], size = i < turning ? factor : 1.;
    cosine[row * half + i] = (float)(size * cos(angle));
    sine[row * half + i] = (float)(size * sin(angle));
  }
}
