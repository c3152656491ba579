// Queries, keys and values on their way to attention, per head: RMS norm (optional), rotary embedding, P_k⁻ᵀ on queries
// and P_k on keys (optional), and the cache: asymmetric codes with a scale and a zero point per token and head, or halves.
// Source: spec/flatquant.md, Quantizers; the grid is that of native/kernels/cache.h.
//
// A block takes up to 64 rows of the step (a task) and one head. A task never holds a part of a page's new tokens, so no
// two blocks write to one byte of a page. Matrices are halves, rows a sum of two halves (22 bits, as good as f32), or
// single halves where they came as halves.
//
// Macros: DIM (a multiple of 32), MATRIX, BITS 4 or 16 (as kept), IN16 (q, k, v come as halves), OUT16 (queries leave so).
#include "engine/engine.cuh"

#ifndef DIM
#define DIM 128
#endif
#ifndef MATRIX
#define MATRIX 1
#endif
#ifndef BITS
#define BITS 4
#endif
#ifndef IN16
#define IN16 0
#endif
#ifndef OUT16
#define OUT16 0
#endif

constexpr int ROWS = 64, THREADS = 256;
constexpr bool TAIL = !IN16;
constexpr int STRIDE = DIM + 8;
constexpr int FLOATS = DIM + 4;
typedef PageLayout<DIM, BITS> Page;

__device__ __forceinline__ float at(const void* x, i64 i) {
  return IN16 ? fromHalf(((const u16*)x)[i]) : ((const float*)x)[i];
}

__device__ __forceinline__ float2 pairAt(const void* x, i64 i) {
  if (!IN16) return *(const float2*)((const float*)x + i);
  const u32 pair = *(const u32*)((const u16*)x + i);
  return make_float2(lowHalf(pair), highHalf(pair));
}

// Four threads per row, a quarter of it each.
constexpr int QUARTER = DIM / 4;

// tasks: {first row, rows} of i32. pageOf, slotOf: of each row. cosine, sine: [rows][DIM/2] or null. q: [row][qStride],
// k and v: [row][kvStride]; head h of each begins at h·DIM. blockIdx.y: query heads, then KV heads for keys, then for
// values. factors: σ(c) of keys' max and min, values' max and min. cache: this layer's part of page 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    heads(const int* tasks, const int* pageOf, const int* slotOf, i64 numHeads, i64 kvHeads, const void* q, i64 qStride,
          const void* k, const void* v, i64 kvStride, const float* qGain, const float* kGain, double epsilon, const float* cosine,
          const float* sine, const u16* qMatrix, const u16* kMatrix, const float* factors, i64 levels, void* qOut,
          u8* cache, i64 pageBytes) {
  extern __shared__ __align__(16) u16 memory[];
  __shared__ int page[ROWS], slot[ROWS];
  float* const values = (float*)memory;                       // [ROWS][FLOATS]
  u16* const tile = memory + 2 * ROWS * FLOATS;               // heads and tails of rows
  u16* const matrix = tile + (MATRIX ? (TAIL ? 2 : 1) * ROWS * STRIDE : 0);  // [DIM][STRIDE]
  u8* const codes = (u8*)tile;                                // [ROWS][DIM], after the product
  const int row0 = tasks[2 * blockIdx.x], rows = tasks[2 * blockIdx.x + 1];
  const int part = blockIdx.y < numHeads ? 0 : blockIdx.y < numHeads + kvHeads ? 1 : 2;
  const i64 head = part == 0 ? blockIdx.y : part == 1 ? blockIdx.y - numHeads : blockIdx.y - numHeads - kvHeads;
  const int tid = threadIdx.x, r = tid / 4, quarter = tid % 4;
  releaseNext();
  if (MATRIX && part < 2) {
    const uint4* from = (const uint4*)(part == 0 ? qMatrix : kMatrix);
    for (int i = tid; i < DIM * STRIDE / 8; i += THREADS) ((uint4*)matrix)[i] = from[i];
  }
  waitForEarlier();
  if (tid < rows) page[tid] = pageOf[row0 + tid], slot[tid] = slotOf[row0 + tid];
  const void* source = part == 0 ? q : part == 1 ? k : v;
  const i64 stride = part == 0 ? qStride : kvStride, column0 = head * DIM;
  const float* gain = part == 0 ? qGain : kGain;
  const bool normed = part < 2 && gain;
  float* const mine = values + r * FLOATS;
  if (normed) {
    for (int i = tid; i < rows * DIM; i += THREADS) values[i / DIM * FLOATS + i % DIM] = at(source, (row0 + i / DIM) * stride + column0 + i % DIM);
    __syncthreads();
    float square = 0.f;
    if (r < rows)
      for (int i = 0; i < QUARTER; i++) square += mine[quarter * QUARTER + i] * mine[quarter * QUARTER + i];
    square += __shfl_xor_sync(FULL_MASK, square, 1), square += __shfl_xor_sync(FULL_MASK, square, 2);
    const float inverse = rsqrtf(square / DIM + (float)epsilon);
    if (r < rows)
      for (int i = 0; i < QUARTER; i++) mine[quarter * QUARTER + i] *= inverse * gain[quarter * QUARTER + i];
    __syncthreads();
  }
  // Rotary embedding on the way to shared memory: two columns of the first half and their partners of the second.
  const bool turns = part < 2 && cosine, multiplies = MATRIX && part < 2;
  const int padded = multiplies ? (rows + 15) / 16 * 16 : rows;
  for (int i = tid; i < padded * (DIM / 4); i += THREADS) {
    const int row = i / (DIM / 4), j = i % (DIM / 4) * 2;
    float2 a = make_float2(0.f, 0.f), b = a;
    if (row < rows) {
      if (normed) {
        a = *(const float2*)(values + row * FLOATS + j), b = *(const float2*)(values + row * FLOATS + DIM / 2 + j);
      } else {
        a = pairAt(source, (row0 + row) * stride + column0 + j), b = pairAt(source, (row0 + row) * stride + column0 + DIM / 2 + j);
      }
      if (turns) {
        const float2 c = *(const float2*)(cosine + (i64)(row0 + row) * (DIM / 2) + j), s = *(const float2*)(sine + (i64)(row0 + row) * (DIM / 2) + j);
        const float2 x = a, y = b;
        a = make_float2(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y);
        b = make_float2(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y);
      }
    }
    if (multiplies) {
      u16* const to = tile + row * STRIDE + j;
      const u32 first = packHalf(a.x, a.y), second = packHalf(b.x, b.y);
      *(u32*)to = first, *(u32*)(to + DIM / 2) = second;
      if (TAIL) *(u32*)(to + ROWS * STRIDE) = packTail(a.x, a.y, first), *(u32*)(to + ROWS * STRIDE + DIM / 2) = packTail(b.x, b.y, second);
    } else {
      *(float2*)(values + row * FLOATS + j) = a, *(float2*)(values + row * FLOATS + DIM / 2 + j) = b;
    }
  }
  __syncthreads();
  const auto putQuery = [&](int row, int j, float a, float b) {
    const i64 to = ((row0 + row) * numHeads + head) * DIM + j;
    if (OUT16) *(u32*)((u16*)qOut + to) = packHalf(a, b);
    else *(float2*)((float*)qOut + to) = make_float2(a, b);
  };
  if (multiplies) {
    const int warp = tid / 32, lane = tid % 32, g = lane / 4, t4 = lane % 4;
    // Warps: four rows of tiles, two halves of the columns.
    const int m = warp % 4 * 16;
    constexpr int N = DIM / 2 / 16;
    if (m < rows) {
      float acc[N][8] = {};
#pragma unroll
      for (int s = 0; s < DIM; s += 16) {
        u32 a[4], tail[4];
        pieceA<false>(a, tile, STRIDE, m, s);
        if (TAIL) pieceA<false>(tail, tile + ROWS * STRIDE, STRIDE, m, s);
#pragma unroll
        for (int j = 0; j < N; j++) {
          u32 b[4];
          pieceB<false>(b, matrix, STRIDE, s, warp / 4 * (DIM / 2) + 16 * j);
          mmaHalf(acc[j], a, b[0], b[1]), mmaHalf(acc[j] + 4, a, b[2], b[3]);
          if (TAIL) mmaHalf(acc[j], tail, b[0], b[1]), mmaHalf(acc[j] + 4, tail, b[2], b[3]);
        }
      }
#pragma unroll
      for (int j = 0; j < N; j++)
#pragma unroll
        for (int c = 0; c < 8; c += 2) {
          const int row = m + g + c / 2 % 2 * 8, column = warp / 4 * (DIM / 2) + 16 * j + c / 4 * 8 + 2 * t4;
          if (part == 1) *(float2*)(values + row * FLOATS + column) = make_float2(acc[j][c], acc[j][c + 1]);
          else if (row < rows) putQuery(row, column, acc[j][c], acc[j][c + 1]);
        }
    }
    if (part == 0) return;
    __syncthreads();
  }
  if (part == 0) {
    for (int i = tid; i < rows * (DIM / 2); i += THREADS) {
      const int row = i / (DIM / 2), j = i % (DIM / 2) * 2;
      putQuery(row, j, values[row * FLOATS + j], values[row * FLOATS + j + 1]);
    }
    return;
  }
  const auto pageOfRow = [&](int row) { return cache + page[row] * pageBytes + head * Page::BYTES; };
  if (BITS == 16 && part == 1) {
    for (int i = tid; i < rows * (DIM / 2); i += THREADS) {
      const int row = i / (DIM / 2), j = i % (DIM / 2) * 2;
      *(u32*)((u16*)(pageOfRow(row) + Page::KEYS) + slot[row] * DIM + j) = packHalf(values[row * FLOATS + j], values[row * FLOATS + j + 1]);
    }
    return;
  }
  // Stretches of rows in one page.
  const auto stretchAt = [&](int first) {
    int count = 1;
    while (first + count < rows && page[first + count] == page[first]) count++;
    return count;
  };
  if (BITS == 16) {
    for (int first = 0; first < rows;) {
      const int count = stretchAt(first), from = slot[first];
      u32* const words = (u32*)(pageOfRow(first) + Page::VALUES);
      if (count == 1) {
        u16* const halves = (u16*)words;
        const int j = from / 8, t = from % 8 / 2;
        for (int c = tid; c < DIM; c += THREADS)
          halves[((((c / 8) * 2 + j / 4) * 32 + c % 8 * 4 + t) * 4 + j % 4) * 2 + from % 2] = toHalf(values[first * FLOATS + c]);
      } else {
        for (int w = tid; w < DIM * 32; w += THREADS) {
          const int j = w % 4 + w / 128 % 2 * 4, t = w / 4 % 4, column = w / 256 * 8 + w / 16 % 8;
          const int row = 8 * j + 2 * t - from;
          const bool a = row >= 0 && row < count, b = row + 1 >= 0 && row + 1 < count;
          const u32 pair = packHalf(a ? values[(first + row) * FLOATS + column] : 0.f, b ? values[(first + row + 1) * FLOATS + column] : 0.f);
          if (a && b) words[w] = pair;
          else if (a) ((u16*)words)[2 * w] = (u16)pair;
          else if (b) ((u16*)words)[2 * w + 1] = (u16)(pair >> 16);
        }
      }
      first += count;
    }
    return;
  }
  float hi = 0.f, lo = 0.f;
  float x[QUARTER];
  if (r < rows) {
#pragma unroll
    for (int i = 0; i < QUARTER; i += 4) {
      const f4 word = *(const f4*)(mine + quarter * QUARTER + i);
      x[i] = word.x, x[i + 1] = word.y, x[i + 2] = word.z, x[i + 3] = word.w;
    }
#pragma unroll
    for (int i = 0; i < QUARTER; i++) hi = fmaxf(hi, x[i]), lo = fminf(lo, x[i]);
  }
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2)
    hi = fmaxf(hi, __shfl_xor_sync(FULL_MASK, hi, offset)), lo = fminf(lo, __shfl_xor_sync(FULL_MASK, lo, offset));
  const bool empty = hi == 0.f && lo == 0.f;
  hi = empty ? 1.f : hi * factors[part == 1 ? 0 : 2], lo = empty ? -1.f : lo * factors[part == 1 ? 1 : 3];
  const float scale = (hi - lo) / levels, zero = rintf(-lo / scale), inverse = 1.f / scale;
  if (r < rows) {
    u8* const to = pageOfRow(r);
    if (quarter == 0) {
      ((float*)(to + (part == 1 ? Page::KEY_SCALE : Page::VALUE_SCALE)))[slot[r]] = scale;
      ((u16*)(to + (part == 1 ? Page::KEY_ZERO : Page::VALUE_ZERO)))[slot[r]] = toHalf(zero);
    }
    const auto code = [&](int i) {
      return (u32)fminf(fmaxf(rintf(x[i] * inverse) + zero, 0.f), (float)levels);
    };
    if (part == 1) {
#pragma unroll
      for (int w = 0; w < QUARTER / 8; w++) {
        u32 word = 0;
#pragma unroll
        for (int p = 0; p < 4; p++) {
          const int i = 8 * w + 2 * p;
          word |= code(i) << (4 * p) | code(i + 1) << (4 * p + 16);
        }
        ((u32*)(to + Page::KEYS))[(slot[r] * DIM + quarter * QUARTER) / 8 + w] = word;
      }
    } else {
#pragma unroll
      for (int i = 0; i < QUARTER; i += 4)
        *(u32*)(codes + r * DIM + quarter * QUARTER + i) = code(i) | code(i + 1) << 8 | code(i + 2) << 16 | code(i + 3) << 24;
    }
  }
  if (part == 1) return;
  __syncthreads();
  // A word of the page holds 16 tokens of one column.
  bool alone = true;
  for (int i = 1; i < rows; i++) alone = alone && page[i] != page[i - 1];
  if (alone) {
    // Decoding: one token per page, one nibble in each of DIM words; four of them in flight per thread.
    constexpr int AHEAD = 4;
    for (int base = tid; base < rows * DIM; base += THREADS * AHEAD) {
      u64* word[AHEAD];
      u64 old[AHEAD];
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        const int i = base + a * THREADS;
        if (i >= rows * DIM) break;
        const int row = i / DIM, c = i % DIM, t = slot[row] % 8 / 2;
        word[a] = (u64*)(pageOfRow(row) + Page::VALUES) + ((c / 16 * 8 + c % 8) * 4 + t) * 2 + c / 8 % 2;
        old[a] = *word[a];
      }
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        const int i = base + a * THREADS;
        if (i >= rows * DIM) break;
        const int s = slot[i / DIM], j = s / 8, shift = j / 4 * 32 + (j % 4 + 4 * (s % 2)) * 4;
        *word[a] = (old[a] & ~((u64)15 << shift)) | (u64)codes[i] << shift;
      }
    }
    return;
  }
  for (int first = 0; first < rows;) {
    const int count = stretchAt(first), from = slot[first];
    u64* const words = (u64*)(pageOfRow(first) + Page::VALUES);
    for (int w = tid; w < DIM * 4; w += THREADS) {
      const int t = w / 2 % 4, column = w / 64 * 16 + w % 2 * 8 + w / 8 % 8;
      u64 word = 0, written = 0;
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int row = 8 * j + 2 * t + e - from;
          const int shift = j / 4 * 32 + (j % 4 + 4 * e) * 4;
          if (row >= 0 && row < count) {
            word |= (u64)codes[(first + row) * DIM + column] << shift;
            written |= (u64)15 << shift;
          }
        }
      if (written == 0) continue;
      if (~written != 0) word |= words[w] & ~written;
      words[w] = word;
    }
    first += count;
  }
}
