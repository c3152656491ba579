// Preparing and finishing matrix products: operands gathered into dense bf16 or f32, epilogues.
#include "common.cuh"

// out[b][r][c] (dense rows of out_stride) = source[b][r][c] · (row_scale[r]) · (col_scale[c]); columns from cols up to
// out_stride are zero. Source is f32 or i8 codes.
template <class Source, bool BF16>
__device__ void pack(const Source* source, i64 rows, i64 cols, i64 stride, i64 batch_stride, const float* row_scale,
                     const float* col_scale, void* out, i64 out_stride) {
  const i64 batch = blockIdx.z;
  source += batch * batch_stride;
  // Eight columns per thread: out_stride is a multiple of 8.
  const i64 groups = out_stride / 8;
  const i64 total = rows * groups;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < total; at += (i64)gridDim.x * blockDim.x) {
    const i64 r = at / groups, c = (at - r * groups) * 8;
    const float scale = row_scale ? row_scale[r] : 1.f;
    const Source* from = source + r * stride + c;
    float v[8];
    if (sizeof(Source) == 4 && c + 8 <= cols && ((unsigned long long)from & 15) == 0) {
      const f4 a = *(const f4*)from, b = *(const f4*)((const float*)from + 4);
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else if (sizeof(Source) == 1 && c + 8 <= cols && ((unsigned long long)from & 7) == 0) {
      const unsigned long long word = *(const unsigned long long*)from;
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = (float)(i8)(word >> (8 * i));
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = c + i < cols ? (float)from[i] : 0.f;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      v[i] *= scale;
      if (col_scale) v[i] *= c + i < cols ? col_scale[c + i] : 0.f;
    }
    const i64 to = (batch * rows + r) * out_stride + c;
    if (BF16) {
      uint4 word;
      word.x = pack_bf16(v[0], v[1]), word.y = pack_bf16(v[2], v[3]);
      word.z = pack_bf16(v[4], v[5]), word.w = pack_bf16(v[6], v[7]);
      *(uint4*)((u16*)out + to) = word;
    } else {
      const f4 a = make_float4(v[0], v[1], v[2], v[3]), b = make_float4(v[4], v[5], v[6], v[7]);
      *(f4*)((float*)out + to) = a;
      *(f4*)((float*)out + to + 4) = b;
    }
  }
}

extern "C" __global__ void pack_f32_bf16(const float* source, i64 rows, i64 cols, i64 stride, i64 batch_stride,
                                         const float* row_scale, const float* col_scale, void* out, i64 out_stride) {
  pack<float, true>(source, rows, cols, stride, batch_stride, row_scale, col_scale, out, out_stride);
}

extern "C" __global__ void pack_i8_bf16(const i8* source, i64 rows, i64 cols, i64 stride, i64 batch_stride,
                                        const float* row_scale, const float* col_scale, void* out, i64 out_stride) {
  pack<i8, true>(source, rows, cols, stride, batch_stride, row_scale, col_scale, out, out_stride);
}

extern "C" __global__ void pack_f32_f32(const float* source, i64 rows, i64 cols, i64 stride, i64 batch_stride,
                                        const float* row_scale, const float* col_scale, void* out, i64 out_stride) {
  pack<float, false>(source, rows, cols, stride, batch_stride, row_scale, col_scale, out, out_stride);
}

extern "C" __global__ void pack_i8_f32(const i8* source, i64 rows, i64 cols, i64 stride, i64 batch_stride,
                                       const float* row_scale, const float* col_scale, void* out, i64 out_stride) {
  pack<i8, false>(source, rows, cols, stride, batch_stride, row_scale, col_scale, out, out_stride);
}

// out[b][r][c] = product[b][r][c]·n_scale[c] + bias[c] (+ out[b][r][c]); product is dense, out has strides.
extern "C" __global__ void matmul_epilogue(const float* product, i64 rows, i64 cols, const float* n_scale,
                                           const float* bias, float* out, i64 out_stride, i64 out_batch,
                                           i64 accumulate) {
  const i64 batch = blockIdx.z;
  product += batch * rows * cols;
  out += batch * out_batch;
  const i64 total = rows * cols;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < total; at += (i64)gridDim.x * blockDim.x) {
    const i64 r = at / cols, c = at - r * cols;
    float value = product[at];
    if (n_scale) value *= n_scale[c];
    if (bias) value += bias[c];
    float* to = out + r * out_stride + c;
    *to = accumulate ? *to + value : value;
  }
}

// In place: 32-bit sums to a_scale[r]·b_scale[c]·sum + bias[c]. cols is a multiple of 4.
extern "C" __global__ void int_epilogue(float* out, i64 rows, i64 cols, const float* a_scale, const float* b_scale,
                                        const float* bias) {
  const i64 quads = cols / 4, total = rows * quads;
  for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < total; at += (i64)gridDim.x * blockDim.x) {
    const i64 r = at / quads, c = (at - r * quads) * 4;
    const float scale = a_scale[r];
    const int4 sums = *(const int4*)(out + r * cols + c);
    f4 value = make_float4(scale * b_scale[c] * (float)sums.x, scale * b_scale[c + 1] * (float)sums.y,
                           scale * b_scale[c + 2] * (float)sums.z, scale * b_scale[c + 3] * (float)sums.w);
    if (bias) value.x += bias[c], value.y += bias[c + 1], value.z += bias[c + 2], value.w += bias[c + 3];
    *(f4*)(out + r * cols + c) = value;
  }
}

// The exact integer product for sizes that the 8-bit matrix units do not take: a 32×32 tile per block of 256 threads.
extern "C" __global__ void int_matmul(const i8* a, const i8* b, i64 m, i64 n, i64 k, const float* a_scale,
                                      const float* b_scale, const float* bias, float* out) {
  __shared__ i8 tile_a[32][36], tile_b[32][36];
  const i64 row0 = (i64)blockIdx.y * 32, col0 = (i64)blockIdx.x * 32;
  const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
  int sums[4] = {0, 0, 0, 0};
  for (i64 k0 = 0; k0 < k; k0 += 32) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = ty + 8 * i;
      const bool inside = k0 + tx < k;
      tile_a[r][tx] = inside && row0 + r < m ? a[(row0 + r) * k + k0 + tx] : 0;
      tile_b[r][tx] = inside && col0 + r < n ? b[(col0 + r) * k + k0 + tx] : 0;
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < 32; kk += 4) {
      const int right = *(const int*)&tile_b[tx][kk];
#pragma unroll
      for (int i = 0; i < 4; i++) sums[i] = __dp4a(*(const int*)&tile_a[ty + 8 * i][kk], right, sums[i]);
    }
    __syncthreads();
  }
  const i64 c = col0 + tx;
  if (c >= n) return;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const i64 r = row0 + ty + 8 * i;
    if (r < m) out[r * n + c] = a_scale[r] * b_scale[c] * (float)sums[i] + (bias ? bias[c] : 0.f);
  }
}
