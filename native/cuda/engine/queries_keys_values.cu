// Queries, keys and values on their way to attention, per head: RMS norm (optional), rotary embedding, P_k⁻ᵀ on queries
// and P_k on keys (optional), and the cache: asymmetric codes with a scale and a zero point per token and head, or halves.
// Source: docs/methods.md, Grids; the grid is that of native/kernels/cache.h.
//
// A block takes up to 64 rows of the step (a task) and some heads, one after another. A task never holds a part of a
// page's new tokens, so no two blocks write to one byte of a page. A row stays in the registers of four threads, from
// memory to memory: thread t has columns 32q + 8t + i (i < 8), which is what mma's operands hold once the rows and
// columns of the matrices are reordered on their way to shared memory. Warps have 16 rows each, or, in tasks of up to 16
// rows (decoding), 32 columns each. Matrices are halves, rows a sum of two halves (22 bits, as good as f32), or single
// halves where they came as halves.
//
// Macros: DIM (a multiple of 32, up to 128), MATRIX, BALANCE, BITS 4 or 16 (as kept), IN16 (q, k, v come as halves), OUT16
// (queries leave so); MOST_ROWS: rows of the longest task, which need no more than one path when they are 16 or fewer; EARLY 1
// where tables are read before the kernels ahead have ended.
#include "engine/engine.cuh"

#ifndef DIM
#define DIM 128
#endif
#ifndef BALANCE
#define BALANCE 0
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
#ifndef EARLY
#define EARLY 1
#endif
#ifndef MOST_ROWS
#define MOST_ROWS 64
#endif

constexpr int ROWS = 64, WARPS = 4, THREADS = WARPS * 32;
constexpr bool TAIL = !IN16;
constexpr int GROUPS = DIM / 32;
constexpr int STRIDE = DIM + 8;
// Rows of values wait in shared memory to be transposed: as codes, or as halves. The strides avoid bank conflicts.
constexpr int CODE_STRIDE = DIM + 8, HALF_STRIDE = DIM + 2;
typedef PageLayout<DIM, BITS> Page;

static_assert(GROUPS <= WARPS, "short tasks give a warp 32 columns");

struct Step {
  int row0, rows;
  int page_here, slot_here;  // of the row of this thread's number
  int *page, *slot;          // of the task's rows; in shared memory, filled when the first head needs them
  bool one_page, page_each;
};

// After the first head's rows were asked for, so that one wait serves both.
__device__ __forceinline__ void share_places(Step& step) {
  const int tid = threadIdx.x;
  if (tid < step.rows) step.page[tid] = step.page_here, step.slot[tid] = step.slot_here;
  __syncthreads();
  step.one_page = __syncthreads_and(tid >= step.rows || step.page_here == step.page[0]);
  step.page_each =
      __syncthreads_and(tid == 0 || tid >= step.rows || step.page_here != step.page[(tid + ROWS - 1) % ROWS]);
}

// What all rows of one head share.
struct Head {
  const void* source;
  i64 stride, column0;
  const float* gain;
  // Of this head, [DIM] each: after the turn, (x − shift)·factor. The shift may be null.
  const float *shift, *factor;
  bool turns, multiplies;
};

__device__ __forceinline__ void load8(const void* from, i64 at, float (&x)[8]) {
  if (IN16) {
    const uint4 w = *(const uint4*)((const u16*)from + at);
    x[0] = low_half(w.x), x[1] = high_half(w.x), x[2] = low_half(w.y), x[3] = high_half(w.y);
    x[4] = low_half(w.z), x[5] = high_half(w.z), x[6] = low_half(w.w), x[7] = high_half(w.w);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const f4 w = *(const f4*)((const float*)from + at + i);
      x[i] = w.x, x[i + 1] = w.y, x[i + 2] = w.z, x[i + 3] = w.w;
    }
  }
}

__device__ __forceinline__ void load_floats(const float* from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const f4 w = *(const f4*)(from + i);
    x[i] = w.x, x[i + 1] = w.y, x[i + 2] = w.z, x[i + 3] = w.w;
  }
}

__device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
  return make_uint4(pack_half(x[0], x[1]), pack_half(x[2], x[3]), pack_half(x[4], x[5]), pack_half(x[6], x[7]));
}

// Rotary embedding of a row: columns c < DIM/2 with their partners c + DIM/2.
__device__ __forceinline__ void turn(float (&x)[GROUPS][8], const float* cosine, const float* sine, int t4) {
  if constexpr (GROUPS % 2 == 0) {
#pragma unroll
    for (int q = 0; q < GROUPS / 2; q++) {
      float c[8], s[8];
      load_floats(cosine + 32 * q + 8 * t4, c), load_floats(sine + 32 * q + 8 * t4, s);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float a = x[q][i], b = x[q + GROUPS / 2][i];
        x[q][i] = a * c[i] - b * s[i], x[q + GROUPS / 2][i] = b * c[i] + a * s[i];
      }
    }
  } else {
    // The partner is two lanes away, in a group that depends on which half of the group one is in.
    float turned[GROUPS][8];
#pragma unroll
    for (int q = 0; q < GROUPS; q++) {
      const int column = 32 * q + 8 * t4;
      const bool first = column < DIM / 2;
      float c[8], s[8];
      load_floats(cosine + (first ? column : column - DIM / 2), c),
          load_floats(sine + (first ? column : column - DIM / 2), s);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float give = t4 < 2 ? x[(q + (GROUPS + 1) / 2) % GROUPS][i] : x[(q + (GROUPS - 1) / 2) % GROUPS][i];
        const float other = __shfl_xor_sync(FULL_MASK, give, 2);
        turned[q][i] = x[q][i] * c[i] + (first ? -other : other) * s[i];
      }
    }
#pragma unroll
    for (int q = 0; q < GROUPS; q++)
#pragma unroll
      for (int i = 0; i < 8; i++) x[q][i] = turned[q][i];
  }
}

// One head's rows as this warp needs them: y[h] is row m + lane/4 + 8h, in the columns of the warp's groups, from q0 on.
template <bool SHORT>
__device__ __forceinline__ void prepare(const Step& step, const Head& head, double epsilon, const float* cosine,
                                        const float* sine, const u16* matrix, float (&y)[2][SHORT ? 1 : GROUPS][8]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const int m = SHORT ? 0 : 16 * warp, q0 = SHORT ? warp : 0;
  float x[2][GROUPS][8];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = m + g + 8 * h;
#pragma unroll
    for (int q = 0; q < GROUPS; q++)
#pragma unroll
      for (int i = 0; i < 8; i++) x[h][q][i] = 0.f;
    if (row < step.rows) {
#pragma unroll
      for (int q = 0; q < GROUPS; q++)
        load8(head.source, (step.row0 + row) * head.stride + head.column0 + 32 * q + 8 * t4, x[h][q]);
    }
  }
  if (head.gain) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float square = 0.f;
#pragma unroll
      for (int q = 0; q < GROUPS; q++)
#pragma unroll
        for (int i = 0; i < 8; i++) square += x[h][q][i] * x[h][q][i];
      square += __shfl_xor_sync(FULL_MASK, square, 1), square += __shfl_xor_sync(FULL_MASK, square, 2);
      const float inverse = rsqrtf(square / DIM + (float)epsilon);
#pragma unroll
      for (int q = 0; q < GROUPS; q++) {
        float gain[8];
        load_floats(head.gain + 32 * q + 8 * t4, gain);
#pragma unroll
        for (int i = 0; i < 8; i++) x[h][q][i] *= inverse * gain[i];
      }
    }
  }
  if (head.turns) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      // Rows that do not exist are zero; they turn with the last one.
      const int row = m + g + 8 * h < step.rows ? m + g + 8 * h : step.rows - 1;
      const i64 at = (i64)(step.row0 + row) * (DIM / 2);
      turn(x[h], cosine + at, sine + at, t4);
    }
  }
  if (BALANCE && head.multiplies) {
#pragma unroll
    for (int q = 0; q < GROUPS; q++) {
      float shift[8], factor[8];
#pragma unroll
      for (int i = 0; i < 8; i++) shift[i] = 0.f;
      if (head.shift) load_floats(head.shift + 32 * q + 8 * t4, shift);
      load_floats(head.factor + 32 * q + 8 * t4, factor);
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 8; i++) x[h][q][i] = (x[h][q][i] - shift[i]) * factor[i];
    }
  }
  if (MATRIX && head.multiplies) {
    constexpr int TILES = SHORT ? 4 : DIM / 8;
    float acc[TILES][4];
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) acc[j][c] = 0.f;
    if (m < step.rows && (!SHORT || warp < GROUPS)) {
#pragma unroll
      for (int s = 0; s < DIM / 16; s++) {
        u32 a[4], tail[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
          const int i = s % 2 * 4 + c / 2 * 2;
          a[c] = pack_half(x[c % 2][s / 2][i], x[c % 2][s / 2][i + 1]);
          if (TAIL) tail[c] = pack_tail(x[c % 2][s / 2][i], x[c % 2][s / 2][i + 1], a[c]);
        }
#pragma unroll
        for (int j = 0; j < TILES; j += 2) {
          u32 b[4];
          piece_b<false>(b, matrix, STRIDE, 16 * s, 32 * q0 + 8 * j);
          mma_half(acc[j], a, b[0], b[1]), mma_half(acc[j + 1], a, b[2], b[3]);
          if (TAIL) mma_half(acc[j], tail, b[0], b[1]), mma_half(acc[j + 1], tail, b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) y[h][j / 4][j % 4 * 2 + e] = acc[j][2 * h + e];
    return;
  }
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int q = 0; q < GROUPS; q++)
      if (!SHORT || q == q0) {
#pragma unroll
        for (int i = 0; i < 8; i++) y[h][SHORT ? 0 : q][i] = x[h][q][i];
      }
}

// Codes of values, [row][CODE_STRIDE], to their places in pages: a word of a page holds 16 tokens of one column.
template <class PageOf>
__device__ __forceinline__ void put_value_codes(const Step& step, const u8* codes, PageOf page_of_row) {
  const int tid = threadIdx.x;
  if (step.page_each) {
    // Decoding: one nibble in each of DIM words; four of them in flight per thread.
    constexpr int AHEAD = 4;
    for (int base = tid; base < step.rows * DIM; base += THREADS * AHEAD) {
      u64* word[AHEAD];
      u64 old[AHEAD];
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        const int i = base + a * THREADS;
        if (i >= step.rows * DIM) break;
        const int row = i / DIM, c = i % DIM, t = step.slot[row] % 8 / 2;
        word[a] = (u64*)(page_of_row(row) + Page::VALUES) + ((c / 16 * 8 + c % 8) * 4 + t) * 2 + c / 8 % 2;
        old[a] = *word[a];
      }
#pragma unroll
      for (int a = 0; a < AHEAD; a++) {
        const int i = base + a * THREADS;
        if (i >= step.rows * DIM) break;
        const int s = step.slot[i / DIM], j = s / 8, shift = j / 4 * 32 + (j % 4 + 4 * (s % 2)) * 4;
        *word[a] = (old[a] & ~((u64)15 << shift)) | (u64)codes[i / DIM * CODE_STRIDE + i % DIM] << shift;
      }
    }
    return;
  }
  for (int first = 0, count; first < step.rows; first += count) {
    // A stretch of rows in one page.
    count = step.one_page ? step.rows : 1;
    while (first + count < step.rows && step.page[first + count] == step.page[first]) count++;
    const int from = step.slot[first];
    u64* const words = (u64*)(page_of_row(first) + Page::VALUES);
    const bool whole = count == PAGE_TOKENS;
    for (int w = tid; w < DIM * 4; w += THREADS) {
      const int t = w / 2 % 4, column = w / 64 * 16 + w % 2 * 8 + w / 8 % 8;
      u32 word[2] = {0, 0}, written[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int row = 8 * j + 2 * t + e - from, shift = (j % 4 + 4 * e) * 4;
          if (whole || (row >= 0 && row < count)) {
            word[j / 4] |= (u32)codes[(first + row) * CODE_STRIDE + column] << shift;
            written[j / 4] |= 15u << shift;
          }
        }
      u64 both = (u64)word[1] << 32 | word[0];
      const u64 mask = (u64)written[1] << 32 | written[0];
      if (mask == 0) continue;
      if (~mask != 0) both |= words[w] & ~mask;
      words[w] = both;
    }
  }
}

// The same for values kept as halves, [row][HALF_STRIDE]: a word holds two tokens of one column.
template <class PageOf>
__device__ __forceinline__ void put_value_halves(const Step& step, const u16* tile, PageOf page_of_row) {
  const int tid = threadIdx.x;
  for (int first = 0, count; first < step.rows; first += count) {
    count = step.one_page ? step.rows : 1;
    while (first + count < step.rows && step.page[first + count] == step.page[first]) count++;
    const int from = step.slot[first];
    u32* const words = (u32*)(page_of_row(first) + Page::VALUES);
    if (count == 1) {
      u16* const halves = (u16*)words;
      const int j = from / 8, t = from % 8 / 2;
      for (int c = tid; c < DIM; c += THREADS)
        halves[((((c / 8) * 2 + j / 4) * 32 + c % 8 * 4 + t) * 4 + j % 4) * 2 + from % 2] =
            tile[first * HALF_STRIDE + c];
      continue;
    }
    for (int w = tid; w < DIM * 32; w += THREADS) {
      const int j = w % 4 + w / 128 % 2 * 4, t = w / 4 % 4, column = w / 256 * 8 + w / 16 % 8;
      const int row = 8 * j + 2 * t - from;
      const bool a = row >= 0 && row < count, b = row + 1 >= 0 && row + 1 < count;
      const u16 low = a ? tile[(first + row) * HALF_STRIDE + column] : 0,
                high = b ? tile[(first + row + 1) * HALF_STRIDE + column] : 0;
      if (a && b) words[w] = (u32)low | (u32)high << 16;
      else if (a) ((u16*)words)[2 * w] = low;
      else if (b) ((u16*)words)[2 * w + 1] = high;
    }
  }
}

struct Arguments {
  i64 num_heads, kv_heads;
  double epsilon;
  const float *cosine, *sine, *factors;
  i64 levels;
  void* q_out;
  u8* cache;
  i64 page_bytes;
};

// Queries (part 0), keys (1) or values (2) of one head.
template <bool SHORT>
__device__ __forceinline__ void one_head(Step& step, const Head& head, const Arguments& by, int part, i64 index,
                                         bool first, u16* memory, float* extremes) {
  constexpr int OWN = SHORT ? 1 : GROUPS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const int m = SHORT ? 0 : 16 * warp, q0 = SHORT ? warp : 0;
  const bool working = !SHORT || warp < GROUPS;
  float y[2][OWN][8];
  prepare<SHORT>(step, head, by.epsilon, by.cosine, by.sine, memory, y);
  if (part == 0) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = m + g + 8 * h;
      if (row >= step.rows || !working) continue;
#pragma unroll
      for (int o = 0; o < OWN; o++) {
        const i64 to = ((step.row0 + row) * by.num_heads + index) * DIM + 32 * (q0 + o) + 8 * t4;
        if (OUT16) {
          *(uint4*)((u16*)by.q_out + to) = pack8(y[h][o]);
        } else {
          f4* const out = (f4*)((float*)by.q_out + to);
          out[0] = f4{y[h][o][0], y[h][o][1], y[h][o][2], y[h][o][3]};
          out[1] = f4{y[h][o][4], y[h][o][5], y[h][o][6], y[h][o][7]};
        }
      }
    }
    return;
  }
  if (first) share_places(step);
  const auto page_of_row = [&](int row) { return by.cache + step.page[row] * by.page_bytes + index * Page::BYTES; };
  if (BITS == 16) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = m + g + 8 * h;
      if (row >= step.rows || !working) continue;
#pragma unroll
      for (int o = 0; o < OWN; o++) {
        const int column = 32 * (q0 + o) + 8 * t4;
        const uint4 halves = pack8(y[h][o]);
        if (part == 1) {
          *(uint4*)((u16*)(page_of_row(row) + Page::KEYS) + step.slot[row] * DIM + column) = halves;
        } else {
          u32* const to = (u32*)(memory + row * HALF_STRIDE + column);
          to[0] = halves.x, to[1] = halves.y, to[2] = halves.z, to[3] = halves.w;
        }
      }
    }
    if (part == 1) return;
    __syncthreads();
    put_value_halves(step, memory, page_of_row);
    __syncthreads();
    return;
  }
  float hi[2] = {0.f, 0.f}, lo[2] = {0.f, 0.f};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (working) {
#pragma unroll
      for (int o = 0; o < OWN; o++)
#pragma unroll
        for (int i = 0; i < 8; i++) hi[h] = fmaxf(hi[h], y[h][o][i]), lo[h] = fminf(lo[h], y[h][o][i]);
    }
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2)
      hi[h] = fmaxf(hi[h], __shfl_xor_sync(FULL_MASK, hi[h], offset)),
      lo[h] = fminf(lo[h], __shfl_xor_sync(FULL_MASK, lo[h], offset));
    if (SHORT && t4 == 0) extremes[warp * 32 + g + 8 * h] = hi[h], extremes[warp * 32 + 16 + g + 8 * h] = lo[h];
  }
  if (SHORT) {
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int w = 0; w < GROUPS; w++)
        hi[h] = fmaxf(hi[h], extremes[w * 32 + g + 8 * h]), lo[h] = fminf(lo[h], extremes[w * 32 + 16 + g + 8 * h]);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = m + g + 8 * h;
    if (row >= step.rows || !working) continue;
    const bool empty = hi[h] == 0.f && lo[h] == 0.f;
    const float top = empty ? 1.f : hi[h] * by.factors[part == 1 ? 0 : 2],
                bottom = empty ? -1.f : lo[h] * by.factors[part == 1 ? 1 : 3];
    const float scale = (top - bottom) / by.levels, zero = rintf(-bottom / scale), inverse = 1.f / scale;
    u8* const to = page_of_row(row);
    const int slot = step.slot[row];
    if (t4 == 0 && q0 == 0) {
      ((float*)(to + (part == 1 ? Page::KEY_SCALE : Page::VALUE_SCALE)))[slot] = scale;
      ((u16*)(to + (part == 1 ? Page::KEY_ZERO : Page::VALUE_ZERO)))[slot] = to_half(zero);
    }
    // Adding 1.5·2²³ rounds to the nearest integer, which is then in the low bits.
    const float least = -zero, most = (float)by.levels - zero;
#pragma unroll
    for (int o = 0; o < OWN; o++) {
      u32 code[8];
#pragma unroll
      for (int i = 0; i < 8; i++)
        code[i] = __float_as_uint(fminf(fmaxf(y[h][o][i] * inverse, least), most) + 12582912.f + zero) & 15u;
      const int column = 32 * (q0 + o) + 8 * t4;
      if (part == 1) {
        u32 word = 0;
#pragma unroll
        for (int p = 0; p < 4; p++) word |= code[2 * p] << (4 * p) | code[2 * p + 1] << (4 * p + 16);
        ((u32*)(to + Page::KEYS))[(slot * DIM + column) / 8] = word;
      } else {
        *(uint2*)((u8*)memory + row * CODE_STRIDE + column) =
            make_uint2(code[0] | code[1] << 8 | code[2] << 16 | code[3] << 24,
                       code[4] | code[5] << 8 | code[6] << 16 | code[7] << 24);
      }
    }
  }
  if (SHORT || part == 2) __syncthreads();
  if (part == 1) return;
  put_value_codes(step, (const u8*)memory, page_of_row);
  __syncthreads();
}

// tasks: {first row, rows} of i32. page_of, slot_of: of each row. cosine, sine: [rows][DIM/2] or null. q: [row][q_stride],
// k and v: [row][kv_stride], 16-byte aligned; head h of each begins at h·DIM. blockIdx.y: `heads_each` query heads, then as
// many KV heads for keys, then for values. With BALANCE, of each KV head:
// keys less k_shift times k_factor, queries times q_factor, before their matrices. factors: σ(c) of keys' max and min, values' max and min. cache: this layer's
// part of page 0. The tables are no kernel's work, and so may be read before the kernels ahead have ended.
extern "C" __global__ void __launch_bounds__(THREADS, IN16 || MOST_ROWS <= 16 ? 3 : 2)
    queries_keys_values(const int* tasks, const int* page_of, const int* slot_of, i64 num_heads, i64 kv_heads,
                        const void* q, i64 q_stride, const void* k, const void* v, i64 kv_stride, const float* q_gain,
                        const float* k_gain, double epsilon, const float* cosine, const float* sine,
                        const u16* q_matrix, const u16* k_matrix, const float* k_shift, const float* k_factor,
                        const float* q_factor, const float* factors, i64 levels, void* q_out, u8* cache, i64 page_bytes,
                        i64 heads_each) {
  extern __shared__ __align__(16) u16 memory[];  // [DIM][STRIDE] of a matrix, or rows of values
  __shared__ int page[ROWS], slot[ROWS];
  __shared__ float extremes[WARPS * 32];
  const int tid = threadIdx.x, each = (int)heads_each;
  const int query_blocks = ((int)num_heads + each - 1) / each, kv_blocks = ((int)kv_heads + each - 1) / each;
  const int part = blockIdx.y < query_blocks ? 0 : blockIdx.y < query_blocks + kv_blocks ? 1 : 2;
  const int first = ((int)blockIdx.y - (part == 0 ? 0 : query_blocks + (part - 1) * kv_blocks)) * each;
  const int most = part == 0 ? (int)num_heads : (int)kv_heads, end = first + each < most ? first + each : most;
  release_next();
  if (MATRIX && part < 2) {
    // Row 32q + 8t + 4u + 2h + e goes to 32q + 16u + 8h + 2t + e, column 32q + 8t + 2m + e to 32q + 8m + 2t + e.
    const u16* from = part == 0 ? q_matrix : k_matrix;
#pragma unroll 4
    for (int i = tid; i < DIM * DIM / 8; i += THREADS) {
      const int row = i / (DIM / 8), piece = i % (DIM / 8);
      const uint4 w = *(const uint4*)(from + row * STRIDE + 8 * piece);
      u16* const to = memory +
                      (row / 32 * 32 + row % 8 / 4 * 16 + row % 4 / 2 * 8 + row % 32 / 8 * 2 + row % 2) * STRIDE +
                      piece / 4 * 32 + piece % 4 * 2;
      *(u32*)to = w.x, *(u32*)(to + 8) = w.y, *(u32*)(to + 16) = w.z, *(u32*)(to + 24) = w.w;
    }
  }
  Step step;
  step.row0 = tasks[2 * blockIdx.x], step.rows = tasks[2 * blockIdx.x + 1];
  step.page = page, step.slot = slot;
  __syncthreads();
  if (!EARLY) wait_for_earlier();
  step.page_here = step.slot_here = 0;
  if (tid < step.rows) step.page_here = page_of[step.row0 + tid], step.slot_here = slot_of[step.row0 + tid];
  if (EARLY) {
    // Values of single tokens are put among those that are there.
    if (part == 2 && BITS == 4 && tid < step.rows && step.rows <= 16)
      for (int index = first; index < end; index++)
        prefetch(cache + step.page_here * page_bytes + index * Page::BYTES + Page::VALUES,
                 Page::KEY_SCALE - Page::VALUES);
    wait_for_earlier();
  }
  const Arguments by = {num_heads, kv_heads, epsilon, cosine, sine, factors, levels, q_out, cache, page_bytes};
  Head head;
  head.source = part == 0 ? q : part == 1 ? k : v;
  head.stride = part == 0 ? q_stride : kv_stride;
  head.gain = part == 0 ? q_gain : part == 1 ? k_gain : nullptr;
  head.turns = part < 2 && cosine, head.multiplies = part < 2;
  head.shift = head.factor = nullptr;
  for (int index = first; index < end; index++) {
    if (BALANCE && part < 2) {
      const i64 owner = (part == 0 ? index * kv_heads / num_heads : index) * DIM;
      head.factor = (part == 0 ? q_factor : k_factor) + owner;
      head.shift = part == 0 ? nullptr : k_shift + owner;
    }
    head.column0 = (i64)index * DIM;
    if (MOST_ROWS <= 16 || step.rows <= 16)
      one_head<true>(step, head, by, part, index, index == first, memory, extremes);
    else one_head<false>(step, head, by, part, index, index == first, memory, extremes);
  }
}
