// Small dense algebra in double: Cayley's orthogonal matrices (many at once, a block each) and the inverse.
// Definitions: src/backend/contract/training-kernels.ts. Source: Golub & Van Loan, Matrix Computations, section 3.4 (Gauss–Jordan).
#include "common.cuh"

#define SOLVE_THREADS 1024
#define MOST_SOLVES 24

struct Solve {
  const float* seed;
  const float* q;     // backward: the forward result
  const float* grad;  // backward
  float* out;         // forward: Q; backward: gradient of the seed
  double* work;       // backward: 2n² doubles; and n² more where the matrix does not fit shared memory
  i64 n;
};

struct Solves {
  Solve item[MOST_SOLVES];
};

// Inverts m (n×n, row-major) in place by Gauss–Jordan elimination without exchanges. The matrices here have I as
// their symmetric part, which keeps every pivot at least 1 and growth small. row, column: n doubles each.
__device__ void invert_in_place(double* m, int n, double* row, double* column) {
  const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
  for (int p = 0; p < n; p++) {
    const double inverse = 1.0 / m[p * n + p];
    for (int i = threadIdx.x; i < n; i += SOLVE_THREADS) {
      row[i] = m[p * n + i] * inverse;
      column[i] = m[i * n + p];
    }
    __syncthreads();
    for (int j = tx; j < n; j += 32) {
      const double right = row[j];
      for (int i = ty; i < n; i += SOLVE_THREADS / 32) {
        double value;
        if (i == p) value = j == p ? inverse : right;
        else value = j == p ? -column[i] * inverse : m[i * n + j] - column[i] * right;
        m[i * n + j] = value;
      }
    }
    __syncthreads();
  }
}

// I − A/2 with A = tril(seed) − tril(seed)ᵀ.
__device__ void identity_minus_half_skew(const float* seed, double* m, int n) {
  const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
  for (int i = ty; i < n; i += SOLVE_THREADS / 32) {
    for (int j = tx; j < n; j += 32) {
      double value = 1.0;
      if (i > j) value = -0.5 * (double)seed[i * n + j];
      if (i < j) value = 0.5 * (double)seed[j * n + i];
      m[i * n + j] = value;
    }
  }
  __syncthreads();
}

// Q = (I − A/2)⁻¹(I + A/2) = 2(I − A/2)⁻¹ − I.
extern "C" __global__ void __launch_bounds__(SOLVE_THREADS, 1) cayley(Solves solves, i64 largest_shared) {
  extern __shared__ double memory[];
  const Solve s = solves.item[blockIdx.x];
  const int n = (int)s.n;
  double* row = memory;
  double* column = row + n;
  double* m = n <= largest_shared ? column + n : s.work;
  identity_minus_half_skew(s.seed, m, n);
  invert_in_place(m, n, row, column);
  const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
  for (int i = ty; i < n; i += SOLVE_THREADS / 32)
    for (int j = tx; j < n; j += 32) s.out[i * n + j] = (float)(2.0 * m[i * n + j] - (i == j ? 1.0 : 0.0));
}

// d_a = ½·Y·(I + Q)ᵀ with (I − A/2)ᵀ·Y = grad; gradSeed = d_a − dAᵀ below the diagonal.
extern "C" __global__ void __launch_bounds__(SOLVE_THREADS, 1) cayley_backward(Solves solves, i64 largest_shared) {
  extern __shared__ double memory[];
  const Solve s = solves.item[blockIdx.x];
  const int n = (int)s.n;
  double* row = memory;
  double* column = row + n;
  double* y = s.work;
  double* d_a = y + (i64)n * n;
  double* m = n <= largest_shared ? column + n : d_a + (i64)n * n;
  identity_minus_half_skew(s.seed, m, n);
  invert_in_place(m, n, row, column);
  const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
  for (int i = ty; i < n; i += SOLVE_THREADS / 32) {
    for (int j = tx; j < n; j += 32) {
      double sum = 0.0;
      for (int k = 0; k < n; k++) sum += m[k * n + i] * (double)s.grad[k * n + j];
      y[i * n + j] = sum;
    }
  }
  __syncthreads();
  // The inverse is done with: its place takes Qᵀ, which is read along rows.
  for (int i = ty; i < n; i += SOLVE_THREADS / 32)
    for (int j = tx; j < n; j += 32) m[i * n + j] = (double)s.q[j * n + i];
  __syncthreads();
  for (int i = ty; i < n; i += SOLVE_THREADS / 32) {
    for (int j = tx; j < n; j += 32) {
      double sum = y[i * n + j];
      for (int c = 0; c < n; c++) sum += y[i * n + c] * m[c * n + j];
      d_a[i * n + j] = 0.5 * sum;
    }
  }
  __syncthreads();
  for (int i = ty; i < n; i += SOLVE_THREADS / 32)
    for (int j = tx; j < n; j += 32) s.out[i * n + j] = j < i ? (float)(d_a[i * n + j] - d_a[j * n + i]) : 0.f;
}

// out = x⁻¹ by Gauss–Jordan with partial pivoting; work: n² doubles in global memory. *bad becomes the smaller of
// itself and the first pivot that is zero or not a number.
extern "C" __global__ void __launch_bounds__(SOLVE_THREADS, 1)
    inverse(const float* x, i64 size, float* out, double* work, i64* bad) {
  extern __shared__ double memory[];
  const int n = (int)size;
  double* row = memory;
  double* column = row + n;
  int* exchanged = (int*)(column + n);
  __shared__ int pivot;
  const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
  double* m = work;
  for (int i = threadIdx.x; i < n * n; i += SOLVE_THREADS) m[i] = (double)x[i];
  __syncthreads();
  for (int p = 0; p < n; p++) {
    if (threadIdx.x < 32) {
      double best = -1.0;
      int at = p;
      for (int i = p + (int)threadIdx.x; i < n; i += 32) {
        const double size = fabs(m[i * n + p]);
        if (size > best) best = size, at = i;
      }
      for (int offset = 16; offset > 0; offset /= 2) {
        const double other = __shfl_xor_sync(FULL_MASK, best, offset);
        const int other_at = __shfl_xor_sync(FULL_MASK, at, offset);
        // Ties go to the smaller row, so that all lanes agree.
        if (other > best || (other == best && other_at < at)) best = other, at = other_at;
      }
      if (threadIdx.x == 0) {
        pivot = at;
        exchanged[p] = at;
        if (!(best > 0.0 && best < 1e300)) atomicMin(bad, (i64)p);
      }
    }
    __syncthreads();
    const int q = pivot;
    if (q != p) {
      for (int j = threadIdx.x; j < n; j += SOLVE_THREADS) {
        const double kept = m[p * n + j];
        m[p * n + j] = m[q * n + j];
        m[q * n + j] = kept;
      }
    }
    __syncthreads();
    const double inverse = 1.0 / m[p * n + p];
    for (int i = threadIdx.x; i < n; i += SOLVE_THREADS) {
      row[i] = m[p * n + i] * inverse;
      column[i] = m[i * n + p];
    }
    __syncthreads();
    for (int j = tx; j < n; j += 32) {
      const double right = row[j];
      for (int i = ty; i < n; i += SOLVE_THREADS / 32) {
        double value;
        if (i == p) value = j == p ? inverse : right;
        else value = j == p ? -column[i] * inverse : m[i * n + j] - column[i] * right;
        m[i * n + j] = value;
      }
    }
    __syncthreads();
  }
  // Row exchanges of x are column exchanges of its inverse, undone from the last.
  for (int i = threadIdx.x; i < n; i += SOLVE_THREADS) {
    for (int p = n - 1; p >= 0; p--) {
      const int q = exchanged[p];
      if (q == p) continue;
      const double kept = m[i * n + p];
      m[i * n + p] = m[i * n + q];
      m[i * n + q] = kept;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n * n; i += SOLVE_THREADS) out[i] = (float)m[i];
}
