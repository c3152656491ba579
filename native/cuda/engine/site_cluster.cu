// A site of few rows (site.cu), each on a cluster of blocks instead of one: a row alone is bound by what one multiprocessor
// can load and multiply, not by memory. A block has 32 columns of the row for the first product, whose result goes to the
// blocks that have its rows for the second one. Every sum has site.cu's terms in site.cu's order, and largest values do not
// depend on any, so the bits are the same.
//
// Blocks write to each other's shared memory, never read it: three barriers of the cluster, and none at the end. One row
// per cluster, so no place is written twice.
//
// Macros: site.cuh's, without INPUT 1 (its sum of squares would have another order) and IN16; RIGHT a multiple of 32 from 64
// to 256; LEFT·RIGHT a multiple of 128; HAS_LEFT 1; TAIL 1.
#define BM 16
#ifndef INPUT
#define INPUT 0
#endif
#ifndef RIGHT
#define RIGHT 128
#endif
#include "engine/site.cuh"

static_assert(INPUT != RMS && !IN16 && TAIL && HAS_LEFT && RIGHT % 32 == 0 && WIDTH % 128 == 0,
              "site.cu takes this row");

#if __CUDA_ARCH__ >= 900

constexpr int CLUSTER = COLS / 32, ROW_TILES = ROWS / 16;
// Tiles of 16 rows that a block has in the second product; the last block may have fewer, or none.
constexpr int TILES_EACH = (ROW_TILES + CLUSTER - 1) / CLUSTER, OWN_ROWS = TILES_EACH * 16;
constexpr int at_least(int a, int b) { return a > b ? a : b; }
// A warp computes 16×32; eight are there in any case, to load.
constexpr int WARPS = at_least(8, at_least(ROW_TILES, HAS_RIGHT ? TILES_EACH * CLUSTER : 0)), THREADS = WARPS * 32;
constexpr int PART_STRIDE = 32 + 8, PART = ROWS * PART_STRIDE;
constexpr int OWN = HAS_RIGHT ? OWN_ROWS * TILE_STRIDE : 0;
constexpr int ITEMS = (LEFT * 8 + THREADS - 1) / THREADS;

static_assert(CLUSTER > 1 && CLUSTER <= 8 && WARPS <= 32, "a row of this size does not fit a cluster");

__device__ __forceinline__ u32 of_peer(const void* mine, int peer) {
  u32 result;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(shared_at(mine)), "r"(peer));
  return result;
}

__device__ __forceinline__ void store_to_peer(u32 to, u32 value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

// Attention's splits joined, as site.cu does, with everything asked for at once as long as there are no more than HELD.
constexpr int HELD = 9;
__device__ __forceinline__ void join_splits(const float* from, int splits, int column, float (&v)[4]) {
  constexpr int STRIDE = RIGHT + 2;
  float most = -INFINITE, total = 0.f;
  const auto add = [&](float2 top, float2 a, float2 b) {
    const float weight = top.x == -INFINITE ? 0.f : power_of2(top.x - most);
    total += weight * top.y;
    v[0] += weight * a.x, v[1] += weight * a.y, v[2] += weight * b.x, v[3] += weight * b.y;
  };
  if (splits <= HELD) {
    float2 top[HELD], a[HELD], b[HELD];
#pragma unroll
    for (int s = 0; s < HELD; s++)
      if (s < splits) {
        const float* const part = from + s * STRIDE;
        top[s] = *(const float2*)(part + RIGHT);
        a[s] = *(const float2*)(part + column), b[s] = *(const float2*)(part + column + 2);
      }
#pragma unroll
    for (int s = 0; s < HELD; s++)
      if (s < splits) most = fmaxf(most, top[s].x);
#pragma unroll
    for (int s = 0; s < HELD; s++)
      if (s < splits) add(top[s], a[s], b[s]);
  } else {
    for (int s = 0; s < splits; s++) most = fmaxf(most, from[s * STRIDE + RIGHT]);
#pragma unroll 4
    for (int s = 0; s < splits; s++) {
      const float* const part = from + s * STRIDE;
      add(*(const float2*)(part + RIGHT), *(const float2*)(part + column), *(const float2*)(part + column + 2));
    }
  }
  const float inverse = total == 0.f ? 0.f : 1.f / total;
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] *= inverse;
}

// 80 registers: a block then finds room beside the blocks of the kernel before, attention's or a product's, and has its
// matrices when that ends.
// Parameters: site.cu's, so that launches differ in nothing else. blockIdx.x: token × block of the cluster. At most 8 sets.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, THREADS > 256 ? 1 : 3)
    site_cluster(const float* x, const float* x2, i64 tokens, i64 stride, const float* gain, double epsilon,
                 const u16* left, const u16* right, const float* clips, i64 sets, i64 capacity, i8* codes,
                 float* scales, i64 splits) {
  extern __shared__ __align__(16) u16 memory[];
  // Written by all blocks of the cluster: largest value before, largest of both signs after, per warp.
  __shared__ float tops[CLUSTER * WARPS], highs[CLUSTER * WARPS], lows[CLUSTER * WARPS];
  __shared__ float factors[16];
  u16* const part = memory;
  u16* const matrix_left = part + 2 * PART;
  u16* const own = matrix_left + ROWS * LEFT_STRIDE;  // written by all blocks of the cluster
  u16* const matrix_right = own + 2 * OWN;
  i8* const row = (i8*)(matrix_right + (HAS_RIGHT ? COLS * RIGHT_STRIDE : 0));
  const int rank = blockIdx.x % CLUSTER, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  const i64 token = blockIdx.x / CLUSTER;
  // Nobody writes to a block that has not begun.
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  release_next();
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * LEFT_STRIDE / 8; i += THREADS)
    ((uint4*)matrix_left)[i] = ((const uint4*)left)[i];
  if (HAS_RIGHT) {
#pragma unroll 4
    for (int i = threadIdx.x; i < COLS * RIGHT_STRIDE / 8; i += THREADS)
      ((uint4*)matrix_right)[i] = ((const uint4*)right)[i];
  }
  for (int i = LEFT * PART_STRIDE + threadIdx.x; i < PART; i += THREADS) part[i] = part[PART + i] = 0;
  if (threadIdx.x < 2 * sets) factors[threadIdx.x] = clips[threadIdx.x];
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  wait_for_earlier();

  // Item n of this block: columns 4·(n % 8) … + 3 of its 32, in row n / 8.
  float v[ITEMS][4];
  float top = 0.f;
  if constexpr (INPUT == SPLITS) {
#pragma unroll
    for (int it = 0; it < ITEMS; it++) {
      const int n = threadIdx.x + it * THREADS;
#pragma unroll
      for (int i = 0; i < 4; i++) v[it][i] = 0.f;
      if (n < LEFT * 8)
        join_splits(x + (token * LEFT + n / 8) * splits * (RIGHT + 2), (int)splits, 32 * rank + n % 8 * 4, v[it]);
    }
  } else {
    f4 raw[ITEMS], up[INPUT == SILU_UP ? ITEMS : 1];
#pragma unroll
    for (int it = 0; it < ITEMS; it++) {
      const int n = threadIdx.x + it * THREADS;
      const i64 at = token * stride + n / 8 * RIGHT + 32 * rank + n % 8 * 4;
      raw[it] = f4{0.f, 0.f, 0.f, 0.f};
      if (INPUT == SILU_UP) up[it] = raw[it];
      if (n >= LEFT * 8) continue;
      raw[it] = *(const f4*)(x + at);
      if (INPUT == SILU_UP) up[it] = *(const f4*)(x2 + at);
    }
#pragma unroll
    for (int it = 0; it < ITEMS; it++) {
      v[it][0] = raw[it].x, v[it][1] = raw[it].y, v[it][2] = raw[it].z, v[it][3] = raw[it].w;
      if (INPUT == SILU_UP) {
        const float by[4] = {up[it].x, up[it].y, up[it].z, up[it].w};
#pragma unroll
        for (int i = 0; i < 4; i++) v[it][i] = v[it][i] * sigmoidf(v[it][i]) * by[i];
      }
    }
  }
#pragma unroll
  for (int it = 0; it < ITEMS; it++)
#pragma unroll
    for (int i = 0; i < 4; i++) top = fmaxf(top, fabsf(v[it][i]));
  top = warp_largest(top);
  if (lane < CLUSTER) store_to_peer(of_peer(tops + rank * WARPS + warp, lane), __float_as_uint(top));
  cluster_sync();
  top = 0.f;
  for (int i = lane; i < CLUSTER * WARPS; i += 32) top = fmaxf(top, tops[i]);
  const int exponent = range_of<100>(warp_largest(top));
  const float shrink = __uint_as_float((u32)(127 - exponent) << 23),
              grow = __uint_as_float((u32)(127 + exponent) << 23);
#pragma unroll
  for (int it = 0; it < ITEMS; it++) {
    const int n = threadIdx.x + it * THREADS;
    if (n >= LEFT * 8) continue;
    const float a = v[it][0] * shrink, b = v[it][1] * shrink, c = v[it][2] * shrink, d = v[it][3] * shrink;
    const u32 ab = pack_half(a, b), cd = pack_half(c, d);
    u16* const to = part + n / 8 * PART_STRIDE + n % 8 * 4;
    *(uint2*)to = make_uint2(ab, cd);
    *(uint2*)(to + PART) = make_uint2(pack_tail(a, b, ab), pack_tail(c, d, cd));
  }
  __syncthreads();

  float acc[1][4][4];
  const auto clear = [&] {
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int c = 0; c < 4; c++) acc[0][j][c] = 0.f;
  };
  clear();
  if (warp < ROW_TILES) product<true, ROWS>(acc, matrix_left, LEFT_STRIDE, 0, part, PART_STRIDE, PART, 16 * warp, 0);
  // Where this warp's sums lie in the row.
  bool working = warp < ROW_TILES;
  int m0 = 16 * warp, n0 = 32 * rank;
  if (HAS_RIGHT) {
    if (working) {
      const u32 to = of_peer(own + warp % TILES_EACH * 16 * TILE_STRIDE + n0, warp / TILES_EACH);
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float a = acc[0][j][2 * h], b = acc[0][j][2 * h + 1];
          const u32 head = pack_half(a, b), at = to + ((g + 8 * h) * TILE_STRIDE + 8 * j + 2 * t4) * 2;
          store_to_peer(at, head), store_to_peer(at + OWN * 2, pack_tail(a, b, head));
        }
    }
    cluster_sync();
    clear();
    m0 = (rank * TILES_EACH + warp / CLUSTER) * 16, n0 = warp % CLUSTER * 32;
    working = warp < TILES_EACH * CLUSTER && m0 < ROWS;
    if (working)
      product<false, COLS>(acc, own, TILE_STRIDE, OWN, matrix_right, RIGHT_STRIDE, 0, warp / CLUSTER * 16, n0);
  }
  // Padding holds zeros, which the extremes include anyway.
  float hi = 0.f, lo = 0.f;
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int c = 0; c < 4; c++) hi = fmaxf(hi, acc[0][j][c]), lo = fminf(lo, acc[0][j][c]);
  hi = warp_largest(hi), lo = warp_largest(fabsf(lo));
  if (lane < CLUSTER) {
    store_to_peer(of_peer(highs + rank * WARPS + warp, lane), __float_as_uint(hi));
    store_to_peer(of_peer(lows + rank * WARPS + warp, lane), __float_as_uint(lo));
  }
  cluster_sync();
  // From here on nobody writes to another block: each may end when it is done.
  hi = lo = 0.f;
  for (int i = lane; i < CLUSTER * WARPS; i += 32) hi = fmaxf(hi, highs[i]), lo = fmaxf(lo, lows[i]);
  hi = warp_largest(hi) * grow, lo = warp_largest(lo) * grow;
  // This block's codes lie together in shared memory: whole rows after a second product, 32 columns of every row else.
  const int first = HAS_RIGHT ? rank * OWN_ROWS : 0, width = HAS_RIGHT ? RIGHT : 32,
            column0 = HAS_RIGHT ? 0 : 32 * rank;
  const int rows = LEFT - first < (HAS_RIGHT ? OWN_ROWS : LEFT) ? LEFT - first : HAS_RIGHT ? OWN_ROWS : LEFT;
  for (i64 set = 0; set < sets; set++) {
    const float largest = fmaxf(hi * factors[2 * set], lo * factors[2 * set + 1]) / QMAX;
    const float scale = largest == 0.f ? 1.f : largest, inverse = grow / scale;
    // Adding 1.5·2²³ rounds to the nearest integer, whose low byte is then the code.
    const auto code = [&](float value) {
      return __float_as_uint(fminf(fmaxf(value * inverse, -QMAX - 1.f), (float)QMAX) + 12582912.f);
    };
    if (working) {
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int i = m0 + g + 8 * h;
          if (ROWS != LEFT && i >= LEFT) continue;
          const u32 qa = code(acc[0][j][2 * h]), qb = code(acc[0][j][2 * h + 1]);
          *(u16*)(row + (i - first) * width + n0 - column0 + 8 * j + 2 * t4) = (u16)__byte_perm(qa, qb, 0x0040);
        }
    }
    if (rank == 0 && threadIdx.x == 0) scales[set * capacity + token] = scale;
    __syncthreads();
    for (int piece = threadIdx.x; piece < rows * width / 16; piece += THREADS) {
      const int column = (first + piece * 16 / width) * RIGHT + column0 + piece * 16 % width;
      *(uint4*)(codes + set * BLOCKS * capacity * 128 + code_offset(capacity, token, column)) =
          *(const uint4*)(row + piece * 16);
    }
    if (set + 1 < sets) __syncthreads();
  }
}

#endif
