// Attention on tensor cores: bf16 factors, f32 scores and sums, tiles of 64 queries by 64 keys in shared memory.
// Definitions: src/backend/contract/training-kernels.ts; method: Dao 2023 (FlashAttention-2). Compiled per HEAD_DIM (a multiple of 16, at
// most 128). Operands are packed [batch][heads][time][HEAD_DIM] (attention.cu, pack_heads); results are f32 in their
// own layouts. The backward pass recomputes the weights from log_sum_exp, once for queries and once for keys, so that
// every sum has one owner and a fixed order.
#include "mma.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

constexpr int TILE = 64;
constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;
constexpr int STRIDE = HEAD_DIM + 8;
constexpr int TILE_ELEMENTS = TILE * STRIDE;
constexpr int D16 = HEAD_DIM / 16;
constexpr int KEYS16 = TILE / 16;
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

struct Shape {
  i64 heads, kv_heads, head_dim, query_length, key_length, causal, window;
  i64 q_batch, q_time, q_head, kv_batch, kv_time, kv_head, out_batch, out_time, out_head;
};

__device__ __forceinline__ void copy16(u16* to, const u16* from, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Rows first … first+63 of a packed [length][HEAD_DIM] matrix; zero from `length` on.
__device__ __forceinline__ void load_tile(const u16* matrix, i64 first, i64 length, u16* to) {
  constexpr int CHUNKS = HEAD_DIM / 8;
  for (int at = threadIdx.x; at < TILE * CHUNKS; at += THREADS) {
    const int row = at / CHUNKS, d = at % CHUNKS * 8;
    const bool inside = first + row < length;
    copy16(to + row * STRIDE + d, inside ? matrix + (first + row) * HEAD_DIM + d : matrix, inside);
  }
}

__device__ __forceinline__ bool visible(const Shape& s, i64 t, i64 j) {
  const i64 position = t + s.key_length - s.query_length;
  if (j >= s.key_length || t >= s.query_length) return false;
  if (s.causal && j > position) return false;
  return s.window <= 0 || j > position - s.window;
}

// Whether every pair of the two tiles is visible, so that masking can be left out.
__device__ __forceinline__ bool all_visible(const Shape& s, i64 t0, i64 j0) {
  const i64 shift = s.key_length - s.query_length;
  if (t0 + TILE > s.query_length || j0 + TILE > s.key_length) return false;
  if (s.causal && j0 + TILE - 1 > t0 + shift) return false;
  return s.window <= 0 || j0 > t0 + TILE - 1 + shift - s.window;
}

// Key tiles that queries t0 … t0+63 see: from `first` (a multiple of TILE) up to `end`.
__device__ __forceinline__ void key_range(const Shape& s, i64 t0, i64& first, i64& end) {
  const i64 shift = s.key_length - s.query_length;
  const i64 last_query = t0 + TILE < s.query_length ? t0 + TILE - 1 : s.query_length - 1;
  end = s.key_length;
  if (s.causal && last_query + shift + 1 < end) end = last_query + shift + 1;
  first = 0;
  if (s.window > 0 && t0 + shift + 1 - s.window > 0) first = (t0 + shift + 1 - s.window) / TILE * TILE;
}

// c[n] (16 rows of this warp × 64) = A·Bᵀ: A's rows from `row`, both stored [.][HEAD_DIM] in shared memory.
__device__ __forceinline__ void scores(const u16* a, int row, const u16* b, float (&c)[KEYS16 * 2][4]) {
#pragma unroll
  for (int n = 0; n < KEYS16 * 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) c[n][i] = 0.f;
#pragma unroll
  for (int k = 0; k < D16; k++) {
    u32 fa[4];
    load_a<false>(fa, a, STRIDE, row, k * 16);
#pragma unroll
    for (int n = 0; n < KEYS16; n++) {
      u32 fb[4];
      load_b<true>(fb, b, STRIDE, k * 16, n * 16);
      mma(c[2 * n], fa, fb[0], fb[1]);
      mma(c[2 * n + 1], fa, fb[2], fb[3]);
    }
  }
}

// sum (16 × HEAD_DIM) += W·B: W in registers as `scores` leaves it, rounded to bf16; B stored [64][HEAD_DIM].
__device__ __forceinline__ void add_product(const float (&w)[KEYS16 * 2][4], const u16* b, float (&sum)[D16 * 2][4]) {
#pragma unroll
  for (int k = 0; k < KEYS16; k++) {
    const u32 fa[4] = {pack_bf16(w[2 * k][0], w[2 * k][1]), pack_bf16(w[2 * k][2], w[2 * k][3]),
                       pack_bf16(w[2 * k + 1][0], w[2 * k + 1][1]), pack_bf16(w[2 * k + 1][2], w[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < D16; n++) {
      u32 fb[4];
      load_b<false>(fb, b, STRIDE, k * 16, n * 16);
      mma(sum[2 * n], fa, fb[0], fb[1]);
      mma(sum[2 * n + 1], fa, fb[2], fb[3]);
    }
  }
}

__device__ __forceinline__ void clear(float (&sum)[D16 * 2][4]) {
#pragma unroll
  for (int n = 0; n < D16 * 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) sum[n][i] = 0.f;
}

// Stores 16 × HEAD_DIM sums times a factor per row into a strided f32 tensor; rows from `row`, up to `length`.
__device__ __forceinline__ void store_rows(float* to, i64 stride, i64 row, i64 length, int head_dim,
                                           const float (&sum)[D16 * 2][4], float factor0, float factor1) {
  const int lane = threadIdx.x % 32;
  const bool even = (stride & 1) == 0 && ((unsigned long long)to & 7) == 0;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const i64 r = row + lane / 4 + half * 8;
    if (r >= length) continue;
    const float factor = half ? factor1 : factor0;
#pragma unroll
    for (int n = 0; n < D16 * 2; n++) {
      const int d = n * 8 + lane % 4 * 2;
      const float v0 = sum[n][half * 2] * factor, v1 = sum[n][half * 2 + 1] * factor;
      float* at = to + r * stride + d;
      if (even && d + 1 < head_dim) *(float2*)at = make_float2(v0, v1);
      else {
        if (d < head_dim) at[0] = v0;
        if (d + 1 < head_dim) at[1] = v1;
      }
    }
  }
}

// grid: (query tiles, heads, batch); the longest rows first.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_forward(const u16* q, const u16* k, const u16* v, float* out, float* log_sum_exp, double scale, Shape s) {
  extern __shared__ __align__(16) u16 memory[];
  u16* tile_q = memory;
  u16* tile_k[2] = {tile_q + TILE_ELEMENTS, tile_q + 2 * TILE_ELEMENTS};
  u16* tile_v[2] = {tile_q + 3 * TILE_ELEMENTS, tile_q + 4 * TILE_ELEMENTS};
  const i64 h = blockIdx.y, b = blockIdx.z, t0 = (i64)(gridDim.x - 1 - blockIdx.x) * TILE;
  const i64 group = h * s.kv_heads / s.heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  q += (b * s.heads + h) * s.query_length * HEAD_DIM;
  k += (b * s.kv_heads + group) * s.key_length * HEAD_DIM;
  v += (b * s.kv_heads + group) * s.key_length * HEAD_DIM;
  i64 first, end;
  key_range(s, t0, first, end);
  const float factor = (float)scale * LOG2_E;
  load_tile(q, t0, s.query_length, tile_q);
  if (first < end) {
    load_tile(k, first, s.key_length, tile_k[0]);
    load_tile(v, first, s.key_length, tile_v[0]);
  }
  commit_copies();
  float sum[D16 * 2][4];
  clear(sum);
  float high[2] = {-INFINITE, -INFINITE}, total[2] = {0.f, 0.f};
  int stage = 0;
  for (i64 j0 = first; j0 < end; j0 += TILE, stage ^= 1) {
    if (j0 + TILE < end) {
      load_tile(k, j0 + TILE, s.key_length, tile_k[stage ^ 1]);
      load_tile(v, j0 + TILE, s.key_length, tile_v[stage ^ 1]);
    }
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    float c[KEYS16 * 2][4];
    scores(tile_q, warp * 16, tile_k[stage], c);
    const bool masked = !all_visible(s, t0, j0);
#pragma unroll
    for (int n = 0; n < KEYS16 * 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        c[n][i] *= factor;
        if (masked) {
          const i64 t = t0 + warp * 16 + lane / 4 + i / 2 * 8, j = j0 + n * 8 + lane % 4 * 2 + i % 2;
          if (!visible(s, t, j)) c[n][i] = -INFINITE;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float next = high[half];
#pragma unroll
      for (int n = 0; n < KEYS16 * 2; n++) next = fmaxf(next, fmaxf(c[n][2 * half], c[n][2 * half + 1]));
      next = fmaxf(next, __shfl_xor_sync(FULL_MASK, next, 1));
      next = fmaxf(next, __shfl_xor_sync(FULL_MASK, next, 2));
      // A row that has seen nothing yet keeps zeros; −∞ − −∞ must not arise.
      const float base = next == -INFINITE ? 0.f : next;
      const float shrink = exp2f(high[half] - base);
      high[half] = next;
      float part = 0.f;
#pragma unroll
      for (int n = 0; n < KEYS16 * 2; n++) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
          c[n][i] = exp2f(c[n][i] - base);
          part += c[n][i];
        }
      }
      total[half] = total[half] * shrink + part;
#pragma unroll
      for (int n = 0; n < D16 * 2; n++) sum[n][2 * half] *= shrink, sum[n][2 * half + 1] *= shrink;
    }
    add_product(c, tile_v[stage], sum);
    __syncthreads();
  }
  wait_copies<0>();
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    total[half] += __shfl_xor_sync(FULL_MASK, total[half], 1);
    total[half] += __shfl_xor_sync(FULL_MASK, total[half], 2);
    inverse[half] = total[half] == 0.f ? 0.f : 1.f / total[half];
    const i64 t = t0 + warp * 16 + lane / 4 + half * 8;
    if (log_sum_exp && lane % 4 == 0 && t < s.query_length)
      log_sum_exp[(b * s.heads + h) * s.query_length + t] =
          total[half] == 0.f ? -INFINITE : (high[half] + log2f(total[half])) * LN_2;
  }
  store_rows(out + b * s.out_batch + h * s.out_head, s.out_time, t0 + warp * 16, s.query_length, (int)s.head_dim, sum,
             inverse[0], inverse[1]);
}

// dQ = Σ_j dS_tj·K_j. grid: (query tiles, heads, batch).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_q(const u16* q, const u16* k, const u16* v, const u16* grad, const float* log_sum_exp,
                         const float* delta, float* grad_q, double scale, Shape s) {
  extern __shared__ __align__(16) u16 memory[];
  u16* tile_q = memory;
  u16* tile_g = tile_q + TILE_ELEMENTS;
  u16* tile_k[2] = {tile_q + 2 * TILE_ELEMENTS, tile_q + 3 * TILE_ELEMENTS};
  u16* tile_v[2] = {tile_q + 4 * TILE_ELEMENTS, tile_q + 5 * TILE_ELEMENTS};
  const i64 h = blockIdx.y, b = blockIdx.z, t0 = (i64)(gridDim.x - 1 - blockIdx.x) * TILE;
  const i64 group = h * s.kv_heads / s.heads, row = (b * s.heads + h) * s.query_length;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  q += row * HEAD_DIM;
  grad += row * HEAD_DIM;
  k += (b * s.kv_heads + group) * s.key_length * HEAD_DIM;
  v += (b * s.kv_heads + group) * s.key_length * HEAD_DIM;
  i64 first, end;
  key_range(s, t0, first, end);
  const float factor = (float)scale * LOG2_E;
  load_tile(q, t0, s.query_length, tile_q);
  load_tile(grad, t0, s.query_length, tile_g);
  if (first < end) {
    load_tile(k, first, s.key_length, tile_k[0]);
    load_tile(v, first, s.key_length, tile_v[0]);
  }
  commit_copies();
  float lse[2], correction[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const i64 t = t0 + warp * 16 + lane / 4 + half * 8;
    const bool inside = t < s.query_length;
    lse[half] = inside ? log_sum_exp[row + t] * LOG2_E : 0.f;
    correction[half] = inside ? delta[row + t] : 0.f;
  }
  float sum[D16 * 2][4];
  clear(sum);
  int stage = 0;
  for (i64 j0 = first; j0 < end; j0 += TILE, stage ^= 1) {
    if (j0 + TILE < end) {
      load_tile(k, j0 + TILE, s.key_length, tile_k[stage ^ 1]);
      load_tile(v, j0 + TILE, s.key_length, tile_v[stage ^ 1]);
    }
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    float weight[KEYS16 * 2][4], c[KEYS16 * 2][4];
    scores(tile_q, warp * 16, tile_k[stage], weight);
    scores(tile_g, warp * 16, tile_v[stage], c);
    const bool masked = !all_visible(s, t0, j0);
#pragma unroll
    for (int n = 0; n < KEYS16 * 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const i64 t = t0 + warp * 16 + lane / 4 + i / 2 * 8, j = j0 + n * 8 + lane % 4 * 2 + i % 2;
        float w = exp2f(weight[n][i] * factor - lse[i / 2]);
        if (masked && !visible(s, t, j)) w = 0.f;
        c[n][i] = w * (c[n][i] - correction[i / 2]) * (float)scale;
      }
    }
    add_product(c, tile_k[stage], sum);
    __syncthreads();
  }
  wait_copies<0>();
  store_rows(grad_q + b * s.q_batch + h * s.q_head, s.q_time, t0 + warp * 16, s.query_length, (int)s.head_dim, sum, 1.f,
             1.f);
}

// dK = Σ_t dS_tj·Q_t and dV = Σ_t P_tj·G_t over all query heads of the group. A warp owns 16 keys; scores are held
// transposed, keys by queries. grid: (key tiles, kv_heads, batch).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_kv(const u16* q, const u16* k, const u16* v, const u16* grad, const float* log_sum_exp,
                          const float* delta, float* grad_k, float* grad_v, double scale, Shape s) {
  extern __shared__ __align__(16) u16 memory[];
  u16* tile_k = memory;
  u16* tile_v = tile_k + TILE_ELEMENTS;
  u16* tile_q[2] = {tile_k + 2 * TILE_ELEMENTS, tile_k + 3 * TILE_ELEMENTS};
  u16* tile_g[2] = {tile_k + 4 * TILE_ELEMENTS, tile_k + 5 * TILE_ELEMENTS};
  float* row_values = (float*)(tile_k + 6 * TILE_ELEMENTS);  // [stage][lse, delta][TILE]
  const i64 group = blockIdx.y, b = blockIdx.z, j0 = (i64)blockIdx.x * TILE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  k += (b * s.kv_heads + group) * s.key_length * HEAD_DIM;
  v += (b * s.kv_heads + group) * s.key_length * HEAD_DIM;
  const i64 shift = s.key_length - s.query_length;
  const float factor = (float)scale * LOG2_E;
  // Queries that see any of these keys.
  i64 from = 0, until = s.query_length;
  if (s.causal && j0 - shift > 0) from = (j0 - shift) / TILE * TILE;
  if (s.window > 0 && j0 + TILE - 1 + s.window - shift < until) until = j0 + TILE - 1 + s.window - shift;
  if (until < from) until = from;
  const i64 tiles = (until - from + TILE - 1) / TILE;
  const i64 first_head = (group * s.heads + s.kv_heads - 1) / s.kv_heads;
  const i64 end_head = ((group + 1) * s.heads + s.kv_heads - 1) / s.kv_heads;
  const i64 steps = tiles * (end_head - first_head);
  load_tile(k, j0, s.key_length, tile_k);
  load_tile(v, j0, s.key_length, tile_v);
  auto fetch = [&](i64 step, int stage) {
    const i64 row = (b * s.heads + first_head + step / tiles) * s.query_length, t0 = from + step % tiles * TILE;
    load_tile(q + row * HEAD_DIM, t0, s.query_length, tile_q[stage]);
    load_tile(grad + row * HEAD_DIM, t0, s.query_length, tile_g[stage]);
    if (threadIdx.x < TILE) {
      const i64 t = t0 + threadIdx.x;
      const bool inside = t < s.query_length;
      row_values[stage * 2 * TILE + threadIdx.x] = inside ? log_sum_exp[row + t] * LOG2_E : 0.f;
      row_values[stage * 2 * TILE + TILE + threadIdx.x] = inside ? delta[row + t] : 0.f;
    }
  };
  if (steps > 0) fetch(0, 0);
  commit_copies();
  float sum_k[D16 * 2][4], sum_v[D16 * 2][4];
  clear(sum_k);
  clear(sum_v);
  int stage = 0;
  for (i64 step = 0; step < steps; step++, stage ^= 1) {
    if (step + 1 < steps) fetch(step + 1, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    const i64 t0 = from + step % tiles * TILE;
    const float* lse = row_values + stage * 2 * TILE;
    const float* correction = lse + TILE;
    float weight[KEYS16 * 2][4], c[KEYS16 * 2][4];
    scores(tile_k, warp * 16, tile_q[stage], weight);
    scores(tile_v, warp * 16, tile_g[stage], c);
    const bool masked = !all_visible(s, t0, j0);
#pragma unroll
    for (int n = 0; n < KEYS16 * 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        float w = exp2f(weight[n][i] * factor - lse[column]);
        if (masked && !visible(s, t0 + column, j0 + warp * 16 + lane / 4 + i / 2 * 8)) w = 0.f;
        weight[n][i] = w;
        c[n][i] = w * (c[n][i] - correction[column]) * (float)scale;
      }
    }
    add_product(weight, tile_g[stage], sum_v);
    add_product(c, tile_q[stage], sum_k);
    __syncthreads();
  }
  wait_copies<0>();
  const i64 at = b * s.kv_batch + group * s.kv_head;
  store_rows(grad_k + at, s.kv_time, j0 + warp * 16, s.key_length, (int)s.head_dim, sum_k, 1.f, 1.f);
  store_rows(grad_v + at, s.kv_time, j0 + warp * 16, s.key_length, (int)s.head_dim, sum_v, 1.f, 1.f);
}
