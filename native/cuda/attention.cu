// Scaled dot-product attention in f32, forward and backward, for any head size up to 256; what the bf16 kernels
// (attention_mma.cu) need besides. Definitions: src/backend/contract/training-kernels.ts; backward as in Dao et al. 2022, section B.2.
//
// A warp owns one query (or one key of the backward pass for keys and values) and walks over the others in tiles of 32
// in shared memory, one per lane for scores, one element of the head per lane for sums. No T×T matrix exists anywhere.
#include "common.cuh"

#define ATTENTION_WARPS 8
#define ATTENTION_THREADS (ATTENTION_WARPS * 32)
#define MOST_PARTS 8  // headDim / 32, rounded up

struct Shape {
  i64 heads, kvHeads, headDim, queryLength, keyLength, causal, window;
  i64 qBatch, qTime, qHead, kvBatch, kvTime, kvHead, outBatch, outTime, outHead;
};

// First and one-past-last key that query t may see.
__device__ __forceinline__ void visibleKeys(const Shape& s, i64 t, i64& first, i64& end) {
  const i64 position = t + s.keyLength - s.queryLength;
  end = s.keyLength;
  if (s.causal) end = position + 1 < 0 ? 0 : position + 1 < s.keyLength ? position + 1 : s.keyLength;
  first = s.window > 0 && position + 1 - s.window > 0 ? position + 1 - s.window : 0;
  if (first > end) first = end;
}

// 32 vectors of headDim elements, `stride` apart, into tile[32][headDim + 1]; zero from `count` on.
__device__ __forceinline__ void loadVectors(const float* from, i64 stride, i64 count, int headDim, float* tile) {
  for (int at = threadIdx.x; at < 32 * headDim; at += ATTENTION_THREADS) {
    const int i = at / headDim, d = at % headDim;
    tile[i * (headDim + 1) + d] = i < count ? from[i * stride + d] : 0.f;
  }
}

__device__ __forceinline__ float dot(const float* a, const float* b, int n) {
  float sum = 0.f;
  for (int d = 0; d < n; d++) sum += a[d] * b[d];
  return sum;
}

// sums[part] += Σ_lane weight(lane)·tile[lane][part·32 + own lane].
__device__ __forceinline__ void addWeighted(float weight, const float* tile, int headDim, float (&sums)[MOST_PARTS]) {
  const int lane = threadIdx.x % 32;
  for (int j = 0; j < 32; j++) {
    const float w = __shfl_sync(FULL_MASK, weight, j);
#pragma unroll
    for (int part = 0; part < MOST_PARTS; part++) {
      const int d = part * 32 + lane;
      if (d < headDim) sums[part] += w * tile[j * (headDim + 1) + d];
    }
  }
}

// grid: (queries / 8, heads, batch).
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention(const float* q, const float* k, const float* v, float* out, float* logSumExp, double scale, Shape s) {
  extern __shared__ float memory[];
  const int headDim = (int)s.headDim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* query = memory + warp * headDim;
  float* keys = memory + ATTENTION_WARPS * headDim;
  float* values = keys + 32 * (headDim + 1);
  const i64 h = blockIdx.y, b = blockIdx.z;
  const i64 firstQuery = blockIdx.x * (i64)ATTENTION_WARPS, t = firstQuery + warp;
  const bool active = t < s.queryLength;
  const i64 kvStart = b * s.kvBatch + h * s.kvHeads / s.heads * s.kvHead;
  if (active)
    for (int d = lane; d < headDim; d += 32) query[d] = q[b * s.qBatch + t * s.qTime + h * s.qHead + d];
  i64 first = 0, end = 0, from, until, unused;
  if (active) visibleKeys(s, t, first, end);
  const i64 lastQuery = firstQuery + ATTENTION_WARPS < s.queryLength ? firstQuery + ATTENTION_WARPS - 1 : s.queryLength - 1;
  visibleKeys(s, firstQuery, from, unused);
  visibleKeys(s, lastQuery, unused, until);
  float sums[MOST_PARTS] = {};
  float high = -INFINITE, total = 0.f;
  for (i64 j0 = from; j0 < until; j0 += 32) {
    __syncthreads();
    loadVectors(k + kvStart + j0 * s.kvTime, s.kvTime, s.keyLength - j0, headDim, keys);
    loadVectors(v + kvStart + j0 * s.kvTime, s.kvTime, s.keyLength - j0, headDim, values);
    __syncthreads();
    const i64 j = j0 + lane;
    const bool visible = active && j >= first && j < end;
    const float score = visible ? dot(query, keys + lane * (headDim + 1), headDim) * (float)scale : -INFINITE;
    const float next = fmaxf(high, warpReduce<Max>(score));
    if (next == -INFINITE) continue;
    const float weight = visible ? expf(score - next) : 0.f;
    const float shrink = expf(high - next);
    total = total * shrink + warpReduce<Sum>(weight);
#pragma unroll
    for (int part = 0; part < MOST_PARTS; part++) sums[part] *= shrink;
    addWeighted(weight, values, headDim, sums);
    high = next;
  }
  if (!active) return;
#pragma unroll
  for (int part = 0; part < MOST_PARTS; part++) {
    const int d = part * 32 + lane;
    if (d < headDim) out[b * s.outBatch + t * s.outTime + h * s.outHead + d] = total == 0.f ? 0.f : sums[part] / total;
  }
  if (lane == 0 && logSumExp)
    logSumExp[(b * s.heads + h) * s.queryLength + t] = total == 0.f ? -INFINITE : high + logf(total);
}

// delta[b,h,t] = Σ_d grad·out; a warp each.
extern "C" __global__ void attention_delta(const float* grad, const float* out, i64 batch, float* delta, Shape s) {
  const i64 row = blockIdx.x * (i64)(blockDim.x / 32) + threadIdx.x / 32;
  if (row >= batch * s.heads * s.queryLength) return;
  const i64 t = row % s.queryLength, h = row / s.queryLength % s.heads, b = row / s.queryLength / s.heads;
  const i64 start = b * s.outBatch + t * s.outTime + h * s.outHead;
  float sum = 0.f;
  for (i64 d = threadIdx.x % 32; d < s.headDim; d += 32) sum += grad[start + d] * out[start + d];
  sum = warpReduce<Sum>(sum);
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// grid: (queries / 8, heads, batch).
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_grad_q(const float* q, const float* k, const float* v, const float* grad, const float* logSumExp,
                     const float* delta, float* gradQ, double scale, Shape s) {
  extern __shared__ float memory[];
  const int headDim = (int)s.headDim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* query = memory + warp * 2 * headDim;
  float* upstream = query + headDim;
  float* keys = memory + ATTENTION_WARPS * 2 * headDim;
  float* values = keys + 32 * (headDim + 1);
  const i64 h = blockIdx.y, b = blockIdx.z;
  const i64 firstQuery = blockIdx.x * (i64)ATTENTION_WARPS, t = firstQuery + warp;
  const bool active = t < s.queryLength;
  const i64 kvStart = b * s.kvBatch + h * s.kvHeads / s.heads * s.kvHead;
  float lse = 0.f, correction = 0.f;
  if (active) {
    for (int d = lane; d < headDim; d += 32) {
      query[d] = q[b * s.qBatch + t * s.qTime + h * s.qHead + d];
      upstream[d] = grad[b * s.outBatch + t * s.outTime + h * s.outHead + d];
    }
    const i64 row = (b * s.heads + h) * s.queryLength + t;
    lse = logSumExp[row], correction = delta[row];
  }
  i64 first = 0, end = 0, from, until, unused;
  if (active) visibleKeys(s, t, first, end);
  const i64 lastQuery = firstQuery + ATTENTION_WARPS < s.queryLength ? firstQuery + ATTENTION_WARPS - 1 : s.queryLength - 1;
  visibleKeys(s, firstQuery, from, unused);
  visibleKeys(s, lastQuery, unused, until);
  float sums[MOST_PARTS] = {};
  for (i64 j0 = from; j0 < until; j0 += 32) {
    __syncthreads();
    loadVectors(k + kvStart + j0 * s.kvTime, s.kvTime, s.keyLength - j0, headDim, keys);
    loadVectors(v + kvStart + j0 * s.kvTime, s.kvTime, s.keyLength - j0, headDim, values);
    __syncthreads();
    const i64 j = j0 + lane;
    float gradScore = 0.f;
    if (active && j >= first && j < end) {
      const float weight = expf(dot(query, keys + lane * (headDim + 1), headDim) * (float)scale - lse);
      gradScore = weight * (dot(upstream, values + lane * (headDim + 1), headDim) - correction) * (float)scale;
    }
    addWeighted(gradScore, keys, headDim, sums);
  }
  if (!active) return;
#pragma unroll
  for (int part = 0; part < MOST_PARTS; part++) {
    const int d = part * 32 + lane;
    if (d < headDim) gradQ[b * s.qBatch + t * s.qTime + h * s.qHead + d] = sums[part];
  }
}

// grid: (keys / 8, kvHeads, batch); every query head of the group in turn.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_grad_kv(const float* q, const float* k, const float* v, const float* grad, const float* logSumExp,
                      const float* delta, float* gradK, float* gradV, double scale, Shape s) {
  extern __shared__ float memory[];
  const int headDim = (int)s.headDim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* key = memory + warp * 2 * headDim;
  float* value = key + headDim;
  float* queries = memory + ATTENTION_WARPS * 2 * headDim;
  float* upstream = queries + 32 * (headDim + 1);
  const i64 group = blockIdx.y, b = blockIdx.z, j = blockIdx.x * (i64)ATTENTION_WARPS + warp;
  const bool active = j < s.keyLength;
  const i64 kvAt = b * s.kvBatch + j * s.kvTime + group * s.kvHead;
  if (active)
    for (int d = lane; d < headDim; d += 32) key[d] = k[kvAt + d], value[d] = v[kvAt + d];
  float sumsK[MOST_PARTS] = {}, sumsV[MOST_PARTS] = {};
  for (i64 h = 0; h < s.heads; h++) {
    if (h * s.kvHeads / s.heads != group) continue;
    for (i64 t0 = 0; t0 < s.queryLength; t0 += 32) {
      __syncthreads();
      loadVectors(q + b * s.qBatch + t0 * s.qTime + h * s.qHead, s.qTime, s.queryLength - t0, headDim, queries);
      loadVectors(grad + b * s.outBatch + t0 * s.outTime + h * s.outHead, s.outTime, s.queryLength - t0, headDim,
                  upstream);
      __syncthreads();
      const i64 t = t0 + lane;
      float weight = 0.f, gradScore = 0.f;
      if (active && t < s.queryLength) {
        i64 first, end;
        visibleKeys(s, t, first, end);
        if (j >= first && j < end) {
          const i64 row = (b * s.heads + h) * s.queryLength + t;
          weight = expf(dot(key, queries + lane * (headDim + 1), headDim) * (float)scale - logSumExp[row]);
          gradScore = weight * (dot(value, upstream + lane * (headDim + 1), headDim) - delta[row]) * (float)scale;
        }
      }
      addWeighted(gradScore, queries, headDim, sumsK);
      addWeighted(weight, upstream, headDim, sumsV);
    }
  }
  if (!active) return;
#pragma unroll
  for (int part = 0; part < MOST_PARTS; part++) {
    const int d = part * 32 + lane;
    if (d < headDim) gradK[kvAt + d] = sumsK[part], gradV[kvAt + d] = sumsV[part];
  }
}

// out[b][h][t][padded] in bf16 from a strided f32 tensor; columns from headDim on are zero. Eight columns a thread.
extern "C" __global__ void pack_heads(const float* x, i64 batch, i64 heads, i64 time, i64 headDim, i64 batchStride,
                                      i64 timeStride, i64 headStride, i64 padded, u16* out) {
  const u32 groups = (u32)(padded / 8);
  const i64 total = batch * heads * time * groups;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < total; at += (i64)gridDim.x * blockDim.x) {
    const i64 vector = at / groups;
    const int d = (int)(at - vector * groups) * 8;
    const i64 t = vector % time, h = vector / time % heads, b = vector / time / heads;
    const float* from = x + b * batchStride + t * timeStride + h * headStride + d;
    float v[8];
    if (d + 8 <= headDim && ((unsigned long long)from & 15) == 0) {
      const float4 low = *(const float4*)from, high = *(const float4*)(from + 4);
      v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
      v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = d + i < headDim ? from[i] : 0.f;
    }
    uint4 word;
    word.x = packBf16(v[0], v[1]), word.y = packBf16(v[2], v[3]);
    word.z = packBf16(v[4], v[5]), word.w = packBf16(v[6], v[7]);
    *(uint4*)(out + vector * padded + d) = word;
  }
}
