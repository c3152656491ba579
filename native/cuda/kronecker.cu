// The Kronecker transform of rows and its gradients on tensor cores. Definitions: src/backend/contract/training-kernels.ts.
//
// What the forward pass computes is rounded to 4 bits next, where an error of 2⁻⁹ would move many codes by a whole step.
// So it works on pairs of bf16, high and low part (together 16 bits), in three products: high·high, low·high, high·low.
// Gradients take the high parts only. Sums are f32. Compiled per shape: LEFT and RIGHT are the matrices' sizes, 0 where a matrix is absent;
// DIAG is 1 when the gradient of diag is wanted too.
//
// The work is a list of tiles. With both matrices a tile is one row, n_left×n_right. With only the right one, rows and
// their n_left parts are all alike, and a tile is 64 of them. With only the left one, columns are all alike, and a tile
// is one row's n_left × 128 columns. Each block holds the matrices and walks over tiles.
#include "mma.cuh"

#ifndef LEFT
#define LEFT 64
#endif
#ifndef RIGHT
#define RIGHT 64
#endif
#ifndef DIAG
#define DIAG 0
#endif

#define PAD16(n) (((n) + 15) / 16 * 16)
constexpr int ROWS = LEFT ? PAD16(LEFT) : 64;
constexpr int COLS = RIGHT ? PAD16(RIGHT) : 128;
// By the largest of the products that a block keeps in registers: the tile and both gradients.
constexpr int LARGEST = RIGHT && COLS > ROWS ? COLS : LEFT ? ROWS : COLS;
constexpr int WARPS = LARGEST > 96 ? 16 : 8;
constexpr int THREADS = WARPS * 32;
// Eight bf16 of padding put the rows that ldmatrix reads together into different banks.
constexpr int TILE_STRIDE = COLS + 8;
constexpr int LEFT_STRIDE = ROWS + 8;
constexpr int RIGHT_STRIDE = COLS + 8;
constexpr int R16 = ROWS / 16, C16 = COLS / 16;

struct Tile {
  i64 base;    // of its first element
  i64 stride;  // between its rows
  int rows, cols;
};

__device__ __forceinline__ Tile tile_at(i64 item, i64 rows, i64 n_left, i64 n_right) {
  Tile tile;
  tile.stride = n_right;
  if (LEFT && RIGHT) {
    tile.base = item * n_left * n_right;
    tile.rows = (int)n_left, tile.cols = (int)n_right;
  } else if (RIGHT) {
    const i64 left = rows * n_left - item * ROWS;
    tile.base = item * ROWS * n_right;
    tile.rows = left < ROWS ? (int)left : ROWS, tile.cols = (int)n_right;
  } else {
    const i64 chunks = (n_right + COLS - 1) / COLS, row = item / chunks, chunk = item - row * chunks;
    const i64 left = n_right - chunk * COLS;
    tile.base = row * n_left * n_right + chunk * COLS;
    tile.rows = (int)n_left, tile.cols = left < COLS ? (int)left : COLS;
  }
  return tile;
}

// Two neighbours as bf16, and what that rounding left.
__device__ __forceinline__ u32 high_parts(float v0, float v1) { return pack_bf16(v0, v1); }
__device__ __forceinline__ u32 low_parts(float v0, float v1, u32 high) {
  return pack_bf16(v0 - from_bf16((u16)high), v1 - from_bf16((u16)(high >> 16)));
}

// A tile of f32 as bf16 in shared memory, times diag (which only tiles of whole rows have), zero outside; low parts to
// `low` when given.
__device__ __forceinline__ void load_tile(const float* x, const Tile& tile, const float* diag, u16* to, u16* low) {
  const bool wide = tile.stride % 4 == 0;
  for (int at = threadIdx.x; at < ROWS * (COLS / 4); at += THREADS) {
    const int i = at / (COLS / 4), j = at % (COLS / 4) * 4;
    float v[4] = {0.f, 0.f, 0.f, 0.f};
    if (i < tile.rows && j < tile.cols) {
      const i64 from = (i64)i * tile.stride + j;
      if (wide && j + 4 <= tile.cols) {
        load<4>(x + tile.base + from, v);
        if (diag) {
          float d[4];
          load<4>(diag + from, d);
#pragma unroll
          for (int c = 0; c < 4; c++) v[c] *= d[c];
        }
      } else {
#pragma unroll
        for (int c = 0; c < 4; c++)
          if (j + c < tile.cols) v[c] = x[tile.base + from + c] * (diag ? diag[from + c] : 1.f);
      }
    }
    uint2 word;
    word.x = high_parts(v[0], v[1]), word.y = high_parts(v[2], v[3]);
    *(uint2*)(to + i * TILE_STRIDE + j) = word;
    if (low) {
      word.x = low_parts(v[0], v[1], word.x), word.y = low_parts(v[2], v[3], word.y);
      *(uint2*)(low + i * TILE_STRIDE + j) = word;
    }
  }
}

__device__ __forceinline__ void load_matrix(const float* matrix, int n, int padded, int stride, u16* to, u16* low) {
  for (int at = threadIdx.x; at < padded * padded; at += THREADS) {
    const int i = at / padded, j = at % padded;
    const float value = i < n && j < n ? matrix[i * n + j] : 0.f;
    const u16 high = to_bf16(value);
    to[i * stride + j] = high;
    if (low) low[i * stride + j] = to_bf16(value - from_bf16(high));
  }
}

// Rounds a product into shared memory; low parts to `low` when given.
template <class Product>
__device__ __forceinline__ void keep(float (&acc)[Product::PER_WARP][8], u16* to, u16* low) {
  Product::each(acc, [&](int i, int j, float v0, float v1) {
    const u32 high = high_parts(v0, v1);
    *(u32*)(to + i * TILE_STRIDE + j) = high;
    if (low) *(u32*)(low + i * TILE_STRIDE + j) = low_parts(v0, v1, high);
  });
}

__device__ __forceinline__ void store_pair(float* to, const Tile& tile, int i, int j, float v0, float v1) {
  if (i >= tile.rows) return;
  float* at = to + tile.base + (i64)i * tile.stride + j;
  if (j + 1 < tile.cols && tile.stride % 2 == 0) *(float2*)at = make_float2(v0, v1);
  else {
    if (j < tile.cols) at[0] = v0;
    if (j + 1 < tile.cols) at[1] = v1;
  }
}

typedef TileProduct<R16, C16, R16, true, false, WARPS> LeftTransposed;   // Lᵀ·X
typedef TileProduct<R16, C16, R16, false, false, WARPS> LeftPlain;       // L·G
typedef TileProduct<R16, C16, C16, false, false, WARPS> RightPlain;      // X·R
typedef TileProduct<R16, C16, C16, false, true, WARPS> RightTransposed;  // U·Rᵀ
typedef TileProduct<R16, R16, C16, false, true, WARPS> GradLeft;         // T·Gᵀ
typedef TileProduct<C16, C16, R16, true, false, WARPS> GradRight;        // Tᵀ·G

extern "C" __global__ void __launch_bounds__(THREADS)
    kronecker(const float* x, i64 items, i64 rows, i64 n_left, i64 n_right, const float* left, const float* right,
              const float* diag, float* out) {
  extern __shared__ __align__(16) u16 memory[];
  u16* tile_x = memory;
  u16* tile_low = tile_x + ROWS * TILE_STRIDE;
  u16* matrix_left = tile_low + ROWS * TILE_STRIDE;
  u16* left_low = matrix_left + (LEFT ? ROWS * LEFT_STRIDE : 0);
  u16* matrix_right = left_low + (LEFT ? ROWS * LEFT_STRIDE : 0);
  u16* right_low = matrix_right + (RIGHT ? COLS * RIGHT_STRIDE : 0);
  if (LEFT) load_matrix(left, LEFT, ROWS, LEFT_STRIDE, matrix_left, left_low);
  if (RIGHT) load_matrix(right, RIGHT, COLS, RIGHT_STRIDE, matrix_right, right_low);
  for (i64 item = blockIdx.x; item < items; item += gridDim.x) {
    const Tile tile = tile_at(item, rows, n_left, n_right);
    __syncthreads();
    load_tile(x, tile, diag, tile_x, tile_low);
    __syncthreads();
    float acc[LeftTransposed::PER_WARP][8];
    LeftTransposed::clear(acc);
    if (LEFT) LeftTransposed::run_parts(matrix_left, left_low, LEFT_STRIDE, tile_x, tile_low, TILE_STRIDE, acc);
    if (LEFT && RIGHT) {
      __syncthreads();
      keep<LeftTransposed>(acc, tile_x, tile_low);
      __syncthreads();
      LeftTransposed::clear(acc);
    }
    if (RIGHT) RightPlain::run_parts(tile_x, tile_low, TILE_STRIDE, matrix_right, right_low, RIGHT_STRIDE, acc);
    RightPlain::each(acc, [&](int i, int j, float v0, float v1) { store_pair(out, tile, i, j, v0, v1); });
  }
}

// partial_left, partial_right, partial_diag: one slice per block, summed afterwards in order. grad_x may be null; the
// gradient of diag needs both matrices.
extern "C" __global__ void __launch_bounds__(THREADS, LARGEST <= 64 ? 3 : 1)
    kronecker_backward(const float* x, i64 items, i64 rows, i64 n_left, i64 n_right, const float* left,
                       const float* right, const float* diag, const float* grad, float* grad_x, float* partial_left,
                       float* partial_right, float* partial_diag) {
  extern __shared__ __align__(16) u16 memory[];
  u16* tile_x = memory;
  u16* tile_g = tile_x + ROWS * TILE_STRIDE;
  u16* tile_t = tile_g + ROWS * TILE_STRIDE;
  u16* matrix_left = tile_t + ROWS * TILE_STRIDE;
  u16* matrix_right = matrix_left + (LEFT ? ROWS * LEFT_STRIDE : 0);
  float* sum_diag = (float*)(matrix_right + (RIGHT ? COLS * RIGHT_STRIDE : 0));
  if (LEFT) load_matrix(left, LEFT, ROWS, LEFT_STRIDE, matrix_left, nullptr);
  if (RIGHT) load_matrix(right, RIGHT, COLS, RIGHT_STRIDE, matrix_right, nullptr);
  if (DIAG)
    for (int at = threadIdx.x; at < ROWS * COLS; at += THREADS) sum_diag[at] = 0.f;
  float acc_left[GradLeft::PER_WARP][8];
  float acc_right[GradRight::PER_WARP][8];
  if (LEFT) GradLeft::clear(acc_left);
  if (RIGHT) GradRight::clear(acc_right);
  const bool wants_x = grad_x || DIAG;
  for (i64 item = blockIdx.x; item < items; item += gridDim.x) {
    const Tile tile = tile_at(item, rows, n_left, n_right);
    __syncthreads();
    load_tile(x, tile, diag, tile_x, nullptr);
    load_tile(grad, tile, nullptr, tile_g, nullptr);
    __syncthreads();
    if (LEFT && partial_left) {
      if (RIGHT) {
        float acc[RightPlain::PER_WARP][8];
        RightPlain::clear(acc);
        RightPlain::run(tile_x, TILE_STRIDE, matrix_right, RIGHT_STRIDE, acc);
        keep<RightPlain>(acc, tile_t, nullptr);
        __syncthreads();
      }
      GradLeft::run(RIGHT ? tile_t : tile_x, TILE_STRIDE, tile_g, TILE_STRIDE, acc_left);
      __syncthreads();
    }
    if (RIGHT && partial_right) {
      if (LEFT) {
        float acc[LeftTransposed::PER_WARP][8];
        LeftTransposed::clear(acc);
        LeftTransposed::run(matrix_left, LEFT_STRIDE, tile_x, TILE_STRIDE, acc);
        keep<LeftTransposed>(acc, tile_t, nullptr);
        __syncthreads();
      }
      GradRight::run(LEFT ? tile_t : tile_x, TILE_STRIDE, tile_g, TILE_STRIDE, acc_right);
      __syncthreads();
    }
    if (wants_x) {
      float acc[LeftPlain::PER_WARP][8];
      LeftPlain::clear(acc);
      if (LEFT) LeftPlain::run(matrix_left, LEFT_STRIDE, tile_g, TILE_STRIDE, acc);
      if (LEFT && RIGHT) {
        keep<LeftPlain>(acc, tile_t, nullptr);
        __syncthreads();
        LeftPlain::clear(acc);
      }
      if (RIGHT) RightTransposed::run(LEFT ? tile_t : tile_g, TILE_STRIDE, matrix_right, RIGHT_STRIDE, acc);
      RightTransposed::each(acc, [&](int i, int j, float v0, float v1) {
        if (i >= tile.rows) return;
        const i64 within = (i64)i * tile.stride + j;
        if (DIAG) {
          // Each position belongs to one thread throughout.
          if (j < tile.cols) sum_diag[i * COLS + j] += v0 * x[tile.base + within];
          if (j + 1 < tile.cols) sum_diag[i * COLS + j + 1] += v1 * x[tile.base + within + 1];
        }
        if (diag) {
          if (j < tile.cols) v0 *= diag[within];
          if (j + 1 < tile.cols) v1 *= diag[within + 1];
        }
        if (grad_x) store_pair(grad_x, tile, i, j, v0, v1);
      });
    }
  }
  __syncthreads();
  if (LEFT && partial_left) {
    float* to = partial_left + (i64)blockIdx.x * LEFT * LEFT;
    GradLeft::each(acc_left, [&](int i, int j, float v0, float v1) {
      if (i < LEFT && j < LEFT) to[i * LEFT + j] = v0;
      if (i < LEFT && j + 1 < LEFT) to[i * LEFT + j + 1] = v1;
    });
  }
  if (RIGHT && partial_right) {
    float* to = partial_right + (i64)blockIdx.x * RIGHT * RIGHT;
    GradRight::each(acc_right, [&](int i, int j, float v0, float v1) {
      if (i < RIGHT && j < RIGHT) to[i * RIGHT + j] = v0;
      if (i < RIGHT && j + 1 < RIGHT) to[i * RIGHT + j + 1] = v1;
    });
  }
  if (DIAG) {
    float* to = partial_diag + (i64)blockIdx.x * n_left * n_right;
    for (int at = threadIdx.x; at < ROWS * COLS; at += THREADS) {
      const int i = at / COLS, j = at % COLS;
      if (i < n_left && j < n_right) to[i * n_right + j] = sum_diag[at];
    }
  }
}
