// Attention of one new token per sequence over the paged cache, split over the sequence. Limited by reading the cache.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1; Flash-Decoding for the split.
//
// A warp takes a page at a time, straight from memory to the operands of mma: codes less their zero point are small
// integers, exact as halves; queries and weights are sums of two halves (rows 0 … 7 of an operand: the group's heads,
// rows 8 … 15: their tails), so the products are as good as f32's.
//
// Macros: DIM (a multiple of 32), BITS 4 or 16; EARLY 1 where tables are read, and pages asked for, before the kernels ahead
// have ended.
#include "engine/attention.cuh"

#ifndef EARLY
#define EARLY 1
#endif

constexpr int WARPS = 4, KEY_WORDS = DIM / 32;

// q: f32 [row][heads·DIM]. sequences: {row, tokens in the cache, offset into pages}. blockIdx: split, KV head × groups of
// eight query heads, sequence. partial: [row][head][split][DIM + 2]: sums of values, their maximum weight, total. The tables
// are no kernel's work, and so may be read before the kernels ahead have ended.
extern "C" __global__ void __launch_bounds__(WARPS * 32, BITS == 4 ? 3 : 2)
    attention_decode(const float* q, const int* sequences, const int* pages, i64 numHeads, i64 kvHeads, i64 window,
                     double scale, const u8* cache, i64 pageBytes, float* partial) {
  __shared__ float sums[WARPS][8][DIM], tops[WARPS][8], totals[WARPS][8];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const i64 kvHead = blockIdx.y % kvHeads, group = numHeads / kvHeads, firstHead = kvHead * group + blockIdx.y / kvHeads * 8;
  const int headsHere = (int)(group - blockIdx.y / kvHeads * 8 < 8 ? group - blockIdx.y / kvHeads * 8 : 8);
  releaseNext();
  if (!EARLY) waitForEarlier();
  const i64 row = sequences[3 * blockIdx.z];
  const int length = sequences[3 * blockIdx.z + 1];
  const int* const list = pages + sequences[3 * blockIdx.z + 2];
  const int firstVisible = window > 0 && length > window ? length - (int)window : 0;
  const int firstPage = firstVisible / PAGE_TOKENS, pageCount = (length + PAGE_TOKENS - 1) / PAGE_TOKENS - firstPage;
  const int begin = firstPage + (int)((i64)pageCount * blockIdx.x / gridDim.x);
  const int end = firstPage + (int)((i64)pageCount * (blockIdx.x + 1) / gridDim.x);
  if (EARLY) {
    // The last page is being written to; in the cache it is as new as in memory.
    if (lane == 0)
      for (int index = begin + warp; index < end; index += WARPS)
        prefetch(cache + list[index] * pageBytes + kvHead * Page::BYTES, Page::BYTES);
    waitForEarlier();
  }
  // Operand A: the columns 4s … 4s + 3 of this thread's quarter (4 bits), or pieces of eight (16 bits), per step.
  u32 a[DIM / 16][4];
#pragma unroll
  for (int s = 0; s < DIM / 16; s++) {
    const int column = BITS == 4 ? t4 * (DIM / 4) + 4 * s : s / 2 * 32 + t4 * 8 + s % 2 * 4;
    f4 x = {0.f, 0.f, 0.f, 0.f};
    if (g < headsHere) x = *(const f4*)(q + (row * numHeads + firstHead + g) * DIM + column);
    const float m = (float)scale * LOG2E;
    x.x *= m, x.y *= m, x.z *= m, x.w *= m;
    a[s][0] = packHalf(x.x, x.y), a[s][1] = packTail(x.x, x.y, a[s][0]);
    a[s][2] = packHalf(x.z, x.w), a[s][3] = packTail(x.z, x.w, a[s][2]);
  }
  float o[DIM / 8][4] = {};
  float top = -INFINITE, total = 0.f;
  for (int index = begin + warp; index < end; index += WARPS) {
    const u8* const page = cache + list[index] * pageBytes + kvHead * Page::BYTES;
    const int here = length - index * PAGE_TOKENS, hidden = firstVisible - index * PAGE_TOKENS;
    float scores[8][4] = {};
    u32 values[BITS == 4 ? DIM / 16 : 1][4];
    if (BITS == 4) {
      u32 words[8][KEY_WORDS];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const u8* from = page + Page::KEYS + (8 * i + g) * (DIM / 2) + t4 * (DIM / 8);
        if (KEY_WORDS == 4) {
          const uint4 w = *(const uint4*)from;
          words[i][0] = w.x, words[i][KEY_WORDS > 1 ? 1 : 0] = w.y, words[i][KEY_WORDS > 2 ? 2 : 0] = w.z,
          words[i][KEY_WORDS > 3 ? 3 : 0] = w.w;
        } else {
#pragma unroll
          for (int j = 0; j < KEY_WORDS; j++) words[i][j] = ((const u32*)from)[j];
        }
      }
#pragma unroll
      for (int i = 0; i < DIM / 16; i++) {
        const uint4 w = *(const uint4*)(page + Page::VALUES + ((i * 8 + g) * 4 + t4) * 16);
        values[BITS == 4 ? i : 0][0] = w.x, values[BITS == 4 ? i : 0][1] = w.y, values[BITS == 4 ? i : 0][2] = w.z,
        values[BITS == 4 ? i : 0][3] = w.w;
      }
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const u32 z = *(const u16*)(page + Page::KEY_ZERO + (8 * i + g) * 2);
        u32 zero, zero16;
        zeroForms(z | z << 16, zero, zero16);
#pragma unroll
        for (int s = 0; s < DIM / 16; s++)
          mmaHalf(scores[i], a[s], nibblePair(words[i][s / 2], s % 2 * 2, zero, zero16),
                  nibblePair(words[i][s / 2], s % 2 * 2 + 1, zero, zero16));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int c = 0; c < DIM / 32; c++) {
          const uint4 w = *(const uint4*)(page + Page::KEYS + ((8 * i + g) * DIM + c * 32 + t4 * 8) * 2);
          mmaHalf(scores[i], a[2 * c], w.x, w.y);
          mmaHalf(scores[i], a[2 * c + 1], w.z, w.w);
        }
    }
    // Scores of this thread's head g at tokens 8i + 2·t4 + e.
    float weight[8][2], inverse[8][2];
    float highest = -INFINITE;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float2 keyScale = make_float2(1.f, 1.f), valueScale = make_float2(1.f, 1.f);
      if (BITS == 4) {
        keyScale = *(const float2*)(page + Page::KEY_SCALE + (8 * i + 2 * t4) * 4);
        valueScale = *(const float2*)(page + Page::VALUE_SCALE + (8 * i + 2 * t4) * 4);
      }
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int token = 8 * i + 2 * t4 + e;
        const bool seen = token < here && token >= hidden;
        const float vs = e ? valueScale.y : valueScale.x;
        weight[i][e] = (scores[i][e] + scores[i][2 + e]) * (e ? keyScale.y : keyScale.x);
        inverse[i][e] = 1.f;
        if (BITS == 4) weight[i][e] += __log2f(vs), inverse[i][e] = reciprocal(vs);
        // What no token wrote may hold anything.
        if (!seen) weight[i][e] = -INFINITE, inverse[i][e] = 0.f;
        highest = fmaxf(highest, weight[i][e]);
      }
    }
    highest = fmaxf(highest, __shfl_xor_sync(FULL_MASK, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(FULL_MASK, highest, 2));
    const float before = top;
    top = fmaxf(top, highest);
    const float shrink = before == -INFINITE ? 0.f : powerOf2(before - top);
    total *= shrink;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) o[n][c] *= shrink;
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        weight[i][e] = top == -INFINITE ? 0.f : powerOf2(weight[i][e] - top);
        total += weight[i][e] * inverse[i][e];
      }
#pragma unroll
    for (int u = 0; u < 4; u++) {
      u32 p[4], zero[2], zero16[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int i = 2 * u + h;
        p[2 * h] = packSmall(weight[i][0], weight[i][1]);
        p[2 * h + 1] = packTail(weight[i][0], weight[i][1], p[2 * h]);
        if (BITS == 4) zeroForms(*(const u32*)(page + Page::VALUE_ZERO + (8 * i + 2 * t4) * 2), zero[h], zero16[h]);
      }
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) {
        u32 b0, b1;
        if (BITS == 4) {
          const u32 w = values[BITS == 4 ? n / 2 : 0][n % 2 * 2 + u / 2];
          b0 = nibblePair(w, 2 * u % 4, zero[0], zero16[0]), b1 = nibblePair(w, 2 * u % 4 + 1, zero[1], zero16[1]);
        } else {
          const uint2 w = *(const uint2*)(page + Page::VALUES + (((n * 2 + u / 2) * 32 + lane) * 4 + u % 2 * 2) * 4);
          b0 = w.x, b1 = w.y;
          // 0 · infinity must not arise from what nobody wrote.
          if (8 * (2 * u) + 2 * t4 >= here) b0 = 0;
          else if (8 * (2 * u) + 2 * t4 + 1 >= here) b0 &= 0xffffu;
          if (8 * (2 * u + 1) + 2 * t4 >= here) b1 = 0;
          else if (8 * (2 * u + 1) + 2 * t4 + 1 >= here) b1 &= 0xffffu;
        }
        mmaHalf(o[n], p, b0, b1);
      }
    }
  }
  total += __shfl_xor_sync(FULL_MASK, total, 1);
  total += __shfl_xor_sync(FULL_MASK, total, 2);
  if (g < headsHere) {
    if (t4 == 0) tops[warp][g] = top, totals[warp][g] = total;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      sums[warp][g][8 * n + 2 * t4] = o[n][0] + o[n][2];
      sums[warp][g][8 * n + 2 * t4 + 1] = o[n][1] + o[n][3];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < headsHere * (DIM + 2); i += WARPS * 32) {
    const int h = i / (DIM + 2), c = i % (DIM + 2);
    float most = -INFINITE, value = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float part = tops[w][h] == -INFINITE ? 0.f : powerOf2(tops[w][h] - most);
      value += part * (c < DIM ? sums[w][h][c < DIM ? c : 0] : totals[w][h]);
    }
    if (c == DIM) value = most;
    partial[((row * numHeads + firstHead + h) * gridDim.x + blockIdx.x) * (DIM + 2) + c] = value;
  }
}

// The splits of attention joined: out [row][heads·DIM], for sites without the joining of their own (FP16).
extern "C" __global__ void attention_join(const float* partial, i64 rows, i64 numHeads, i64 splits, void* out) {
  releaseNext();
  waitForEarlier();
  const i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
  if (i >= rows * numHeads * DIM) return;
  const float* from = partial + i / DIM * splits * (DIM + 2);
  float most = -INFINITE, total = 0.f, value = 0.f;
  for (int s = 0; s < splits; s++) most = fmaxf(most, from[s * (DIM + 2) + DIM]);
  for (int s = 0; s < splits; s++) {
    const float* part = from + s * (DIM + 2);
    const float weight = part[DIM] == -INFINITE ? 0.f : powerOf2(part[DIM] - most);
    total += weight * part[DIM + 1], value += weight * part[i % DIM];
  }
  value = total == 0.f ? 0.f : value / total;
  if (OUT16) ((u16*)out)[i] = toHalf(value);
  else ((float*)out)[i] = value;
}
