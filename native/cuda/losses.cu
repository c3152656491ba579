// Losses over rows of logits. Definitions: src/backend/contract/training-kernels.ts. A block of 256 threads per row.
#include "common.cuh"

// max and log Σ exp of a row; every thread gets it.
__device__ __forceinline__ float row_log_sum_exp(const float* x, i64 cols, float* shared) {
  float high = -INFINITE;
  for (i64 c = threadIdx.x; c < cols; c += 256) high = fmaxf(high, x[c]);
  high = group_reduce<Max, 256>(high, shared);
  float sum = 0.f;
  for (i64 c = threadIdx.x; c < cols; c += 256) sum += expf(x[c] - high);
  sum = group_reduce<Sum, 256>(sum, shared);
  return high + logf(sum);
}

extern "C" __global__ void __launch_bounds__(256)
    nll(const float* logits, i64 rows, i64 cols, const int* targets, float* out, i64* bad) {
  __shared__ float shared[8];
  const i64 row = blockIdx.x;
  const i64 target = targets[row];
  if (target < -1 || target >= cols) {
    if (threadIdx.x == 0) atomicMin(bad, row);
    return;
  }
  if (target == -1) {
    if (threadIdx.x == 0) out[row] = 0.f;
    return;
  }
  logits += row * cols;
  const float lse = row_log_sum_exp(logits, cols, shared);
  if (threadIdx.x == 0) out[row] = lse - logits[target];
}

extern "C" __global__ void __launch_bounds__(256)
    softmax_kl(const float* teacher, const float* student, i64 rows, i64 cols, float* kl, float* grad_student,
               double grad_scale) {
  __shared__ float shared[8];
  const i64 row = blockIdx.x;
  teacher += row * cols;
  student += row * cols;
  const float teacher_lse = row_log_sum_exp(teacher, cols, shared);
  const float student_lse = row_log_sum_exp(student, cols, shared);
  float sum = 0.f;
  for (i64 c = threadIdx.x; c < cols; c += 256) {
    const float log_p = teacher[c] - teacher_lse, log_q = student[c] - student_lse;
    const float p = expf(log_p);
    sum += p * (log_p - log_q);
    if (grad_student) grad_student[row * cols + c] = (float)grad_scale * (expf(log_q) - p);
  }
  sum = group_reduce<Sum, 256>(sum, shared);
  if (threadIdx.x == 0) kl[row] = sum;
}
