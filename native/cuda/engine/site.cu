// A site in one pass: from what a block holds to the codes that its linears read. Norm or gate·up or the joining of
// attention's splits, then the Kronecker transform on tensor cores, a scale per token after clipping, rounding, codes.
// Source: spec/flatquant.md, At run time. A block of threads works on one token at a time.
//
// Precision: a row is divided by a power of two near its largest value, so halves neither overflow nor, where it
// matters, lose bits; matrices are halves in the artifact already. TAIL 1 gives rows and the intermediate product as a
// sum of two halves (22 bits; what is dropped is below 2⁻²² of the row's largest value per term, as in f32); TAIL 0 as
// one (11 bits: an entry errs by at most 2⁻¹¹·Σ|x·P|, so a code on the grid of 2⁻³ of the row's maximum flips in
// some thousandths of cases, by one).
//
// Macros: LEFT, RIGHT: sizes of the row as LEFT×RIGHT; HAS_LEFT, HAS_RIGHT: whether there is a matrix; INPUT 0 plain,
// 1 RMS norm, 2 SiLU(x)·x2, 3 splits of attention; IN16: halves (INPUT 0, 2); TAIL; QMAX 7 or 127.
#include "engine/engine.cuh"

#ifndef LEFT
#define LEFT 64
#endif
#ifndef RIGHT
#define RIGHT 64
#endif
#ifndef HAS_LEFT
#define HAS_LEFT 1
#endif
#ifndef HAS_RIGHT
#define HAS_RIGHT 1
#endif
#ifndef INPUT
#define INPUT 1
#endif
#ifndef IN16
#define IN16 0
#endif
#ifndef TAIL
#define TAIL 1
#endif
#ifndef QMAX
#define QMAX 7
#endif

#define PLAIN 0
#define RMS 1
#define SILU_UP 2
#define SPLITS 3

constexpr int upTo(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// A warp computes BM×32 of the row.
constexpr int BM = LEFT * RIGHT > 8192 ? 32 : 16;
constexpr int ROWS = upTo(LEFT, BM), COLS = upTo(RIGHT, 32);
constexpr int WARPS = (ROWS / BM) * (COLS / 32);
constexpr int THREADS = WARPS * 32;
constexpr int TILE_STRIDE = COLS + 8, LEFT_STRIDE = ROWS + 8, RIGHT_STRIDE = COLS + 8;
constexpr int WIDTH = LEFT * RIGHT, BLOCKS = upTo(WIDTH, 128) / 128;
// Elements that a thread loads at once, and how often.
constexpr int V = RIGHT % 4 == 0 ? 4 : 1;
constexpr int ITEMS = (WIDTH / V + THREADS - 1) / THREADS;
constexpr int TILE = ROWS * TILE_STRIDE;
constexpr int LEFT_HALVES = HAS_LEFT ? ROWS * LEFT_STRIDE : 0;

static_assert(WARPS <= 32, "a row of this size does not fit one block");

__device__ __forceinline__ void loadValues(const void* from, i64 at, float (&v)[V]) {
  if (IN16) {
    const u16* p = (const u16*)from + at;
    if (V == 4) {
      const uint2 w = *(const uint2*)p;
      v[0] = lowHalf(w.x), v[V > 1 ? 1 : 0] = highHalf(w.x), v[V > 2 ? 2 : 0] = lowHalf(w.y), v[V > 3 ? 3 : 0] = highHalf(w.y);
    } else {
      v[0] = fromHalf(*p);
    }
  } else {
    const float* p = (const float*)from + at;
    if (V == 4) {
      const f4 w = *(const f4*)p;
      v[0] = w.x, v[V > 1 ? 1 : 0] = w.y, v[V > 2 ? 2 : 0] = w.z, v[V > 3 ? 3 : 0] = w.w;
    } else {
      v[0] = *p;
    }
  }
}

// The largest of `a`, the largest of `b` and the sum of `c` over the block.
__device__ __forceinline__ void reduce(float& a, float& b, float& c, float* shared) {
  a = warpReduce<Max>(a), b = warpReduce<Max>(b), c = warpReduce<Sum>(c);
  const int warp = threadIdx.x / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[warp] = a, shared[32 + warp] = b, shared[64 + warp] = c;
  __syncthreads();
  a = shared[0], b = shared[32], c = shared[64];
#pragma unroll
  for (int i = 1; i < WARPS; i++) a = fmaxf(a, shared[i]), b = fmaxf(b, shared[32 + i]), c += shared[64 + i];
}

// acc (BM×32 of this warp) = A · B: A at row m, B at column n, DEPTH/16 steps.
template <bool TRANSPOSED_A, int DEPTH>
__device__ __forceinline__ void product(float (&acc)[BM / 16][4][4], const u16* a, int aStride, int aTail, const u16* b,
                                        int bStride, int bTail, int m, int n) {
#pragma unroll 2
  for (int k = 0; k < DEPTH; k += 16) {
    u32 fb[2][4], ft[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      pieceB<false>(fb[i], b, bStride, k, n + 16 * i);
      if (bTail) pieceB<false>(ft[i], b + bTail, bStride, k, n + 16 * i);
    }
#pragma unroll
    for (int i = 0; i < BM / 16; i++) {
      u32 fa[4];
      pieceA<TRANSPOSED_A>(fa, a, aStride, m + 16 * i, k);
#pragma unroll
      for (int j = 0; j < 4; j++) mmaHalf(acc[i][j], fa, fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      if (bTail) {
#pragma unroll
        for (int j = 0; j < 4; j++) mmaHalf(acc[i][j], fa, ft[j / 2][j % 2 * 2], ft[j / 2][j % 2 * 2 + 1]);
      }
      if (aTail) {
        pieceA<TRANSPOSED_A>(fa, a + aTail, aStride, m + 16 * i, k);
#pragma unroll
        for (int j = 0; j < 4; j++) mmaHalf(acc[i][j], fa, fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

// x (and x2): [tokens][stride]. left, right: halves as they lie in shared memory, [ROWS][LEFT_STRIDE] and
// [COLS][RIGHT_STRIDE]. clips: factors σ(c) [sets][2]. codes: [sets][block][capacity][128], scales [sets][capacity].
// SPLITS: x is [token][RIGHT-wide heads][splits][RIGHT + 2]: sums, their maximum score and total weight.
extern "C" __global__ void __launch_bounds__(THREADS)
    site(const void* x, const void* x2, i64 tokens, i64 stride, const float* gain, double epsilon, const u16* left,
         const u16* right, const float* clips, i64 sets, i64 capacity, i8* codes, float* scales, i64 splits) {
  extern __shared__ __align__(16) u16 memory[];
  __shared__ float shared[96];
  u16* const tile = memory;
  u16* const matrixLeft = tile + (TAIL ? 2 : 1) * TILE;
  u16* const matrixRight = matrixLeft + LEFT_HALVES;
  constexpr int tail = TAIL ? TILE : 0;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const int m0 = warp / (COLS / 32) * BM, n0 = warp % (COLS / 32) * 32;
  releaseNext();
  if (HAS_LEFT)
    for (int i = threadIdx.x; i < ROWS * LEFT_STRIDE / 8; i += THREADS) ((uint4*)matrixLeft)[i] = ((const uint4*)left)[i];
  if (HAS_RIGHT)
    for (int i = threadIdx.x; i < COLS * RIGHT_STRIDE / 8; i += THREADS) ((uint4*)matrixRight)[i] = ((const uint4*)right)[i];
  // What lies outside the row stays zero.
  for (int i = threadIdx.x; i < (TAIL ? 2 : 1) * TILE / 8; i += THREADS) ((uint4*)tile)[i] = make_uint4(0, 0, 0, 0);
  waitForEarlier();
  for (i64 token = blockIdx.x; token < tokens; token += gridDim.x) {
    float v[ITEMS][V];
    float top = 0.f, unused = 0.f, square = 0.f;
#pragma unroll
    for (int it = 0; it < ITEMS; it++) {
      const int e = (threadIdx.x + it * THREADS) * V;
#pragma unroll
      for (int i = 0; i < V; i++) v[it][i] = 0.f;
      if (e >= WIDTH) continue;
      if (INPUT == SPLITS) {
        const float* from = (const float*)x + (token * LEFT + e / RIGHT) * splits * (RIGHT + 2);
        float most = -INFINITE, total = 0.f;
        for (int s = 0; s < splits; s++) most = fmaxf(most, from[s * (RIGHT + 2) + RIGHT]);
        for (int s = 0; s < splits; s++) {
          const float* part = from + s * (RIGHT + 2);
          const float weight = part[RIGHT] == -INFINITE ? 0.f : powerOf2(part[RIGHT] - most);
          total += weight * part[RIGHT + 1];
#pragma unroll
          for (int i = 0; i < V; i++) v[it][i] += weight * part[e % RIGHT + i];
        }
        const float inverse = total == 0.f ? 0.f : 1.f / total;
#pragma unroll
        for (int i = 0; i < V; i++) v[it][i] *= inverse;
      } else {
        loadValues(x, token * stride + e, v[it]);
        if (INPUT == SILU_UP) {
          float up[V];
          loadValues(x2, token * stride + e, up);
#pragma unroll
          for (int i = 0; i < V; i++) v[it][i] = v[it][i] * sigmoidf(v[it][i]) * up[i];
        }
      }
#pragma unroll
      for (int i = 0; i < V; i++) {
        if (INPUT == RMS) square += v[it][i] * v[it][i], v[it][i] *= gain[e + i];
        top = fmaxf(top, fabsf(v[it][i]));
      }
    }
    reduce(top, unused, square, shared);
    // 2^-exponent brings the largest value into [1, 2).
    int exponent = top == 0.f ? 0 : (int)((__float_as_uint(top) >> 23) & 255) - 127;
    exponent = exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
    const float shrink = __uint_as_float((u32)(127 - exponent) << 23);
    float grow = __uint_as_float((u32)(127 + exponent) << 23);
    if (INPUT == RMS) grow *= rsqrtf(square / WIDTH + (float)epsilon);
#pragma unroll
    for (int it = 0; it < ITEMS; it++) {
      const int e = (threadIdx.x + it * THREADS) * V;
      if (e >= WIDTH) continue;
      u16* to = tile + e / RIGHT * TILE_STRIDE + e % RIGHT;
#pragma unroll
      for (int i = 0; i < V; i++) v[it][i] *= shrink;
      if (V == 4) {
        const u32 a = packHalf(v[it][0], v[it][V > 1 ? 1 : 0]), b = packHalf(v[it][V > 2 ? 2 : 0], v[it][V > 3 ? 3 : 0]);
        *(uint2*)to = make_uint2(a, b);
        if (TAIL)
          *(uint2*)(to + TILE) = make_uint2(packTail(v[it][0], v[it][V > 1 ? 1 : 0], a),
                                            packTail(v[it][V > 2 ? 2 : 0], v[it][V > 3 ? 3 : 0], b));
      } else {
        to[0] = toHalf(v[it][0]);
        if (TAIL) to[TILE] = toHalf(v[it][0] - fromHalf(to[0]));
      }
    }
    __syncthreads();
    float acc[BM / 16][4][4];
#pragma unroll
    for (int i = 0; i < BM / 16; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) acc[i][j][c] = 0.f;
    // Visits this warp's pairs of columns: row, column, and the two sums.
    const auto each = [&](auto visit) {
#pragma unroll
      for (int i = 0; i < BM / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int h = 0; h < 2; h++)
            visit(m0 + 16 * i + g + 8 * h, n0 + 8 * j + 2 * t4, acc[i][j][2 * h], acc[i][j][2 * h + 1]);
    };
    if (HAS_LEFT) product<true, ROWS>(acc, matrixLeft, LEFT_STRIDE, 0, tile, TILE_STRIDE, tail, m0, n0);
    if (HAS_LEFT && HAS_RIGHT) {
      __syncthreads();
      each([&](int i, int j, float& a, float& b) {
        const u32 head = packHalf(a, b);
        *(u32*)(tile + i * TILE_STRIDE + j) = head;
        if (TAIL) *(u32*)(tile + TILE + i * TILE_STRIDE + j) = packTail(a, b, head);
        a = 0.f, b = 0.f;
      });
      __syncthreads();
    }
    if (HAS_RIGHT) product<false, COLS>(acc, tile, TILE_STRIDE, tail, matrixRight, RIGHT_STRIDE, 0, m0, n0);
    if (!HAS_LEFT && !HAS_RIGHT)
      each([&](int i, int j, float& a, float& b) {
        const u16* at = tile + i * TILE_STRIDE + j;
        a = fromHalf(at[0]) + (TAIL ? fromHalf(at[TILE]) : 0.f), b = fromHalf(at[1]) + (TAIL ? fromHalf(at[TILE + 1]) : 0.f);
      });
    // Padding holds zeros, which the extremes include anyway.
    float hi = 0.f, lo = 0.f, none = 0.f;
    each([&](int, int, float& a, float& b) {
      a *= grow, b *= grow;
      hi = fmaxf(hi, fmaxf(a, b)), lo = fmaxf(lo, fmaxf(-a, -b));
    });
    reduce(hi, lo, none, shared);
    i8* const row = (i8*)tile;
    for (i64 set = 0; set < sets; set++) {
      const float raw = fmaxf(hi * clips[2 * set], lo * clips[2 * set + 1]) / QMAX;
      const float scale = raw == 0.f ? 1.f : raw, inverse = 1.f / scale;
      const auto code = [&](float value) {
        return __float2int_rn(fminf(fmaxf(value * inverse, -QMAX - 1.f), (float)QMAX));
      };
      each([&](int i, int j, float& a, float& b) {
        if (i >= LEFT || j >= RIGHT) return;
        const int qa = code(a), qb = code(b);
        if (RIGHT % 2 == 0) {
          *(u16*)(row + i * RIGHT + j) = (u16)((qa & 255) | (qb & 255) << 8);
        } else {
          row[i * RIGHT + j] = (i8)qa;
          if (j + 1 < RIGHT) row[i * RIGHT + j + 1] = (i8)qb;
        }
      });
      for (int i = WIDTH + threadIdx.x; i < BLOCKS * 128; i += THREADS) row[i] = 0;
      if (threadIdx.x == 0) scales[set * capacity + token] = scale;
      __syncthreads();
      for (int piece = threadIdx.x; piece < BLOCKS * 8; piece += THREADS)
        *(uint4*)(codes + set * BLOCKS * capacity * 128 + codeOffset(capacity, token, piece * 16)) = *(const uint4*)(row + piece * 16);
      __syncthreads();
    }
    // The codes lay where padding must be zero again. (An intermediate product has zeros there by itself.)
    if (ROWS != LEFT || COLS != RIGHT)
      for (int i = threadIdx.x; i < BLOCKS * 8; i += THREADS) ((uint4*)tile)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
  }
}
