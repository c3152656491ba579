// Scaled dot-product attention in f32, forward and backward, for any head size up to 256; what the bf16 kernels
// (attention_mma.cu) need besides. Definitions: src/backend/contract/training-kernels.ts; backward as in Dao et al. 2022, section B.2.
//
// A warp owns one query (or one key of the backward pass for keys and values) and walks over the others in tiles of 32
// in shared memory, one per lane for scores, one element of the head per lane for sums. No T×T matrix exists anywhere.
#include "common.cuh"

#define ATTENTION_WARPS 8
#define ATTENTION_THREADS (ATTENTION_WARPS * 32)
#define MOST_PARTS 8  // head_dim / 32, rounded up

struct Shape {
  i64 heads, kv_heads, head_dim, query_length, key_length, causal, window;
  i64 q_batch, q_time, q_head, kv_batch, kv_time, kv_head, out_batch, out_time, out_head;
};

// First and one-past-last key that query t may see.
__device__ __forceinline__ void visible_keys(const Shape& s, i64 t, i64& first, i64& end) {
  const i64 position = t + s.key_length - s.query_length;
  end = s.key_length;
  if (s.causal) end = position + 1 < 0 ? 0 : position + 1 < s.key_length ? position + 1 : s.key_length;
  first = s.window > 0 && position + 1 - s.window > 0 ? position + 1 - s.window : 0;
  if (first > end) first = end;
}

// 32 vectors of head_dim elements, `stride` apart, into tile[32][head_dim + 1]; zero from `count` on.
__device__ __forceinline__ void load_vectors(const float* from, i64 stride, i64 count, int head_dim, float* tile) {
  for (int at = threadIdx.x; at < 32 * head_dim; at += ATTENTION_THREADS) {
    const int i = at / head_dim, d = at % head_dim;
    tile[i * (head_dim + 1) + d] = i < count ? from[i * stride + d] : 0.f;
  }
}

__device__ __forceinline__ float dot(const float* a, const float* b, int n) {
  float sum = 0.f;
  for (int d = 0; d < n; d++) sum += a[d] * b[d];
  return sum;
}

// sums[part] += Σ_lane weight(lane)·tile[lane][part·32 + own lane].
__device__ __forceinline__ void add_weighted(float weight, const float* tile, int head_dim, float (&sums)[MOST_PARTS]) {
  const int lane = threadIdx.x % 32;
  for (int j = 0; j < 32; j++) {
    const float w = __shfl_sync(FULL_MASK, weight, j);
#pragma unroll
    for (int part = 0; part < MOST_PARTS; part++) {
      const int d = part * 32 + lane;
      if (d < head_dim) sums[part] += w * tile[j * (head_dim + 1) + d];
    }
  }
}

// grid: (queries / 8, heads, batch).
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention(const float* q, const float* k, const float* v, float* out, float* log_sum_exp, double scale, Shape s) {
  extern __shared__ float memory[];
  const int head_dim = (int)s.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* query = memory + warp * head_dim;
  float* keys = memory + ATTENTION_WARPS * head_dim;
  float* values = keys + 32 * (head_dim + 1);
  const i64 h = blockIdx.y, b = blockIdx.z;
  const i64 first_query = blockIdx.x * (i64)ATTENTION_WARPS, t = first_query + warp;
  const bool active = t < s.query_length;
  const i64 kv_start = b * s.kv_batch + h * s.kv_heads / s.heads * s.kv_head;
  if (active)
    for (int d = lane; d < head_dim; d += 32) query[d] = q[b * s.q_batch + t * s.q_time + h * s.q_head + d];
  i64 first = 0, end = 0, from, until, unused;
  if (active) visible_keys(s, t, first, end);
  const i64 last_query =
      first_query + ATTENTION_WARPS < s.query_length ? first_query + ATTENTION_WARPS - 1 : s.query_length - 1;
  visible_keys(s, first_query, from, unused);
  visible_keys(s, last_query, unused, until);
  float sums[MOST_PARTS] = {};
  float high = -INFINITE, total = 0.f;
  for (i64 j0 = from; j0 < until; j0 += 32) {
    __syncthreads();
    load_vectors(k + kv_start + j0 * s.kv_time, s.kv_time, s.key_length - j0, head_dim, keys);
    load_vectors(v + kv_start + j0 * s.kv_time, s.kv_time, s.key_length - j0, head_dim, values);
    __syncthreads();
    const i64 j = j0 + lane;
    const bool visible = active && j >= first && j < end;
    const float score = visible ? dot(query, keys + lane * (head_dim + 1), head_dim) * (float)scale : -INFINITE;
    const float next = fmaxf(high, warp_reduce<Max>(score));
    if (next == -INFINITE) continue;
    const float weight = visible ? expf(score - next) : 0.f;
    const float shrink = expf(high - next);
    total = total * shrink + warp_reduce<Sum>(weight);
#pragma unroll
    for (int part = 0; part < MOST_PARTS; part++) sums[part] *= shrink;
    add_weighted(weight, values, head_dim, sums);
    high = next;
  }
  if (!active) return;
#pragma unroll
  for (int part = 0; part < MOST_PARTS; part++) {
    const int d = part * 32 + lane;
    if (d < head_dim)
      out[b * s.out_batch + t * s.out_time + h * s.out_head + d] = total == 0.f ? 0.f : sums[part] / total;
  }
  if (lane == 0 && log_sum_exp)
    log_sum_exp[(b * s.heads + h) * s.query_length + t] = total == 0.f ? -INFINITE : high + logf(total);
}

// delta[b,h,t] = Σ_d grad·out; a warp each.
extern "C" __global__ void attention_delta(const float* grad, const float* out, i64 batch, float* delta, Shape s) {
  const i64 row = blockIdx.x * (i64)(blockDim.x / 32) + threadIdx.x / 32;
  if (row >= batch * s.heads * s.query_length) return;
  const i64 t = row % s.query_length, h = row / s.query_length % s.heads, b = row / s.query_length / s.heads;
  const i64 start = b * s.out_batch + t * s.out_time + h * s.out_head;
  float sum = 0.f;
  for (i64 d = threadIdx.x % 32; d < s.head_dim; d += 32) sum += grad[start + d] * out[start + d];
  sum = warp_reduce<Sum>(sum);
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// grid: (queries / 8, heads, batch).
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_grad_q(const float* q, const float* k, const float* v, const float* grad, const float* log_sum_exp,
                     const float* delta, float* grad_q, double scale, Shape s) {
  extern __shared__ float memory[];
  const int head_dim = (int)s.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* query = memory + warp * 2 * head_dim;
  float* upstream = query + head_dim;
  float* keys = memory + ATTENTION_WARPS * 2 * head_dim;
  float* values = keys + 32 * (head_dim + 1);
  const i64 h = blockIdx.y, b = blockIdx.z;
  const i64 first_query = blockIdx.x * (i64)ATTENTION_WARPS, t = first_query + warp;
  const bool active = t < s.query_length;
  const i64 kv_start = b * s.kv_batch + h * s.kv_heads / s.heads * s.kv_head;
  float lse = 0.f, correction = 0.f;
  if (active) {
    for (int d = lane; d < head_dim; d += 32) {
      query[d] = q[b * s.q_batch + t * s.q_time + h * s.q_head + d];
      upstream[d] = grad[b * s.out_batch + t * s.out_time + h * s.out_head + d];
    }
    const i64 row = (b * s.heads + h) * s.query_length + t;
    lse = log_sum_exp[row], correction = delta[row];
  }
  i64 first = 0, end = 0, from, until, unused;
  if (active) visible_keys(s, t, first, end);
  const i64 last_query =
      first_query + ATTENTION_WARPS < s.query_length ? first_query + ATTENTION_WARPS - 1 : s.query_length - 1;
  visible_keys(s, first_query, from, unused);
  visible_keys(s, last_query, unused, until);
  float sums[MOST_PARTS] = {};
  for (i64 j0 = from; j0 < until; j0 += 32) {
    __syncthreads();
    load_vectors(k + kv_start + j0 * s.kv_time, s.kv_time, s.key_length - j0, head_dim, keys);
    load_vectors(v + kv_start + j0 * s.kv_time, s.kv_time, s.key_length - j0, head_dim, values);
    __syncthreads();
    const i64 j = j0 + lane;
    float grad_score = 0.f;
    if (active && j >= first && j < end) {
      const float weight = expf(dot(query, keys + lane * (head_dim + 1), head_dim) * (float)scale - lse);
      grad_score = weight * (dot(upstream, values + lane * (head_dim + 1), head_dim) - correction) * (float)scale;
    }
    add_weighted(grad_score, keys, head_dim, sums);
  }
  if (!active) return;
#pragma unroll
  for (int part = 0; part < MOST_PARTS; part++) {
    const int d = part * 32 + lane;
    if (d < head_dim) grad_q[b * s.q_batch + t * s.q_time + h * s.q_head + d] = sums[part];
  }
}

// grid: (keys / 8, kv_heads, batch); every query head of the group in turn.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_grad_kv(const float* q, const float* k, const float* v, const float* grad, const float* log_sum_exp,
                      const float* delta, float* grad_k, float* grad_v, double scale, Shape s) {
  extern __shared__ float memory[];
  const int head_dim = (int)s.head_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* key = memory + warp * 2 * head_dim;
  float* value = key + head_dim;
  float* queries = memory + ATTENTION_WARPS * 2 * head_dim;
  float* upstream = queries + 32 * (head_dim + 1);
  const i64 group = blockIdx.y, b = blockIdx.z, j = blockIdx.x * (i64)ATTENTION_WARPS + warp;
  const bool active = j < s.key_length;
  const i64 kv_at = b * s.kv_batch + j * s.kv_time + group * s.kv_head;
  if (active)
    for (int d = lane; d < head_dim; d += 32) key[d] = k[kv_at + d], value[d] = v[kv_at + d];
  float sums_k[MOST_PARTS] = {}, sums_v[MOST_PARTS] = {};
  for (i64 h = 0; h < s.heads; h++) {
    if (h * s.kv_heads / s.heads != group) continue;
    for (i64 t0 = 0; t0 < s.query_length; t0 += 32) {
      __syncthreads();
      load_vectors(q + b * s.q_batch + t0 * s.q_time + h * s.q_head, s.q_time, s.query_length - t0, head_dim, queries);
      load_vectors(grad + b * s.out_batch + t0 * s.out_time + h * s.out_head, s.out_time, s.query_length - t0, head_dim,
                   upstream);
      __syncthreads();
      const i64 t = t0 + lane;
      float weight = 0.f, grad_score = 0.f;
      if (active && t < s.query_length) {
        i64 first, end;
        visible_keys(s, t, first, end);
        if (j >= first && j < end) {
          const i64 row = (b * s.heads + h) * s.query_length + t;
          weight = expf(dot(key, queries + lane * (head_dim + 1), head_dim) * (float)scale - log_sum_exp[row]);
          grad_score = weight * (dot(value, upstream + lane * (head_dim + 1), head_dim) - delta[row]) * (float)scale;
        }
      }
      add_weighted(grad_score, queries, head_dim, sums_k);
      add_weighted(weight, upstream, head_dim, sums_v);
    }
  }
  if (!active) return;
#pragma unroll
  for (int part = 0; part < MOST_PARTS; part++) {
    const int d = part * 32 + lane;
    if (d < head_dim) grad_k[kv_at + d] = sums_k[part], grad_v[kv_at + d] = sums_v[part];
  }
}

// out[b][h][t][padded] in bf16 from a strided f32 tensor; columns from head_dim on are zero. Eight columns a thread.
extern "C" __global__ void pack_heads(const float* x, i64 batch, i64 heads, i64 time, i64 head_dim, i64 batch_stride,
                                      i64 time_stride, i64 head_stride, i64 padded, u16* out) {
  const u32 groups = (u32)(padded / 8);
  const i64 total = batch * heads * time * groups;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < total; at += (i64)gridDim.x * blockDim.x) {
    const i64 vector = at / groups;
    const int d = (int)(at - vector * groups) * 8;
    const i64 t = vector % time, h = vector / time % heads, b = vector / time / heads;
    const float* from = x + b * batch_stride + t * time_stride + h * head_stride + d;
    float v[8];
    if (d + 8 <= head_dim && ((unsigned long long)from & 15) == 0) {
      const float4 low = *(const float4*)from, high = *(const float4*)(from + 4);
      v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
      v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = d + i < head_dim ? from[i] : 0.f;
    }
    uint4 word;
    word.x = pack_bf16(v[0], v[1]), word.y = pack_bf16(v[2], v[3]);
    word.z = pack_bf16(v[4], v[5]), word.w = pack_bf16(v[6], v[7]);
    *(uint4*)(out + vector * padded + d) = word;
  }
}
