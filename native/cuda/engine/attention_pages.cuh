// Pages of the cache for attention of many queries: from memory to registers while a page before is multiplied, and from
// there to halves in shared memory (codes less their zero point, exact); keys that are halves go there at once. A block of
// PAGE_THREADS threads does it together.
#pragma once
#include "engine/attention.cuh"

constexpr int PAGE_THREADS = 256;
// 16-byte groups of packed keys (and as many of values) per thread.
constexpr int GROUPS = PAGE_TOKENS * DIM * BITS / 8 / 16;
constexpr int PER_THREAD = (GROUPS + PAGE_THREADS - 1) / PAGE_THREADS;

struct Packed {
  uint4 keys[BITS == 4 ? PER_THREAD : 1], values[PER_THREAD];
  u16 key_zero[PER_THREAD];
  u32 value_zero[BITS == 4 ? 8 : 1];
  float key_scale, value_scale;
};

__device__ __forceinline__ void copy_ahead(u16* to, const u8* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_at(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Tile::key(token, piece): where eight columns of a key go; Tile::value(row, piece): eight tokens of a value's column.
// `here`: tokens of this page that were written; the others' scales become harmless. `keys`: where `unpack` will be told
// to put them; nobody reads there any more.
template <class Tile>
__device__ __forceinline__ void fetch(Packed& p, const u8* page, int here, u16* keys) {
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int group = threadIdx.x + i * PAGE_THREADS;
    if (group >= GROUPS) break;
    const u8* const from = page + Page::KEYS + group * 16;
    if (BITS == 4) p.keys[BITS == 4 ? i : 0] = *(const uint4*)from;
    else copy_ahead(keys + Tile::key(group * 8 / DIM, group * 8 % DIM / 8), from);
    p.values[i] = *(const uint4*)(page + Page::VALUES + group * 16);
    if (BITS == 4) p.key_zero[i] = *(const u16*)(page + Page::KEY_ZERO + group * 32 / DIM * 2);
  }
  if (BITS == 4) {
#pragma unroll
    for (int j = 0; j < 8; j++)
      p.value_zero[BITS == 4 ? j : 0] = *(const u32*)(page + Page::VALUE_ZERO + (8 * j + 2 * (threadIdx.x % 4)) * 2);
    if (threadIdx.x < PAGE_TOKENS) {
      const bool written = threadIdx.x < here;
      p.key_scale = written ? ((const float*)(page + Page::KEY_SCALE))[threadIdx.x] : 1.f;
      p.value_scale = written ? ((const float*)(page + Page::VALUE_SCALE))[threadIdx.x] : 1.f;
    }
  }
}

// Per page and token: the key's scale times `scale`, log₂ of the value's scale, and 1 over it.
constexpr int SCALES = 3 * PAGE_TOKENS;

// Mask of a pair of tokens of which those before `here` were written.
__device__ __forceinline__ u32 written(int token, int here) {
  return token >= here ? 0u : token + 1 >= here ? 0xffffu : 0xffffffffu;
}

// To shared memory. A weight of 0 must not meet what nobody wrote, were it infinite or no number.
template <class Tile>
__device__ __forceinline__ void unpack(Packed& p, u16* keys, u16* values, float* scales, float scale, int here) {
  const u32 magic = halves1024();
  if (here < PAGE_TOKENS) {
    const int token = 2 * (threadIdx.x % 4);
    if (BITS == 4) {
#pragma unroll
      for (int j = 0; j < 8; j++) p.value_zero[BITS == 4 ? j : 0] &= written(token + 8 * j, here);
    } else {
#pragma unroll
      for (int i = 0; i < PER_THREAD; i++) {
        const int first = token + (threadIdx.x + i * PAGE_THREADS) / 32 % 2 * 32;
        uint4& v = p.values[i];
        v.x &= written(first, here), v.y &= written(first + 8, here);
        v.z &= written(first + 16, here), v.w &= written(first + 24, here);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++) {
    const int group = threadIdx.x + i * PAGE_THREADS;
    if (group >= GROUPS) break;
    const u32 v[4] = {p.values[i].x, p.values[i].y, p.values[i].z, p.values[i].w};
    if (BITS == 4) {
      const int token = group * 32 / DIM, piece = group * 32 % DIM / 8;
      // Threads with the columns from 64 on begin with the other half of their words: eight threads then write to
      // different banks also where both halves of a row have the same.
      const int turn = piece >= 8 ? 2 : 0;
      const uint4 w = p.keys[BITS == 4 ? i : 0];
      const u32 k[4] = {turn ? w.z : w.x, turn ? w.w : w.y, turn ? w.x : w.z, turn ? w.y : w.w};
      u32 zero, zero16;
      zero_pair(p.key_zero[i] | (u32)p.key_zero[i] << 16, zero, zero16);
#pragma unroll
      for (int n = 0; n < 4; n++)
        *(uint4*)(keys + Tile::key(token, piece + (n ^ turn))) =
            make_uint4(nibble_pair(k[n], 0, zero, zero16, magic), nibble_pair(k[n], 1, zero, zero16, magic),
                       nibble_pair(k[n], 2, zero, zero16, magic), nibble_pair(k[n], 3, zero, zero16, magic));
      const int t = group % 4, first = group / 32 * 16 + group / 4 % 8;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        u32 less, less16;
        zero_pair(p.value_zero[BITS == 4 ? j : 0], less, less16);
#pragma unroll
        for (int half = 0; half < 2; half++)
          *(u32*)(values + Tile::value(first + 8 * half, j) + 2 * t) =
              nibble_pair(v[2 * half + j / 4], j % 4, less, less16, magic);
      }
    } else {
      const int j0 = group / 32 % 2 * 4, t = group % 4, g = group / 4 % 8, n = group / 64;
#pragma unroll
      for (int j = 0; j < 4; j++) *(u32*)(values + Tile::value(8 * n + g, j0 + j) + 2 * t) = v[j];
    }
  }
  if (BITS == 4 && threadIdx.x < PAGE_TOKENS) {
    scales[threadIdx.x] = p.key_scale * scale;
    scales[PAGE_TOKENS + threadIdx.x] = __log2f(p.value_scale);
    scales[2 * PAGE_TOKENS + threadIdx.x] = reciprocal(p.value_scale);
  }
  if (BITS == 16) wait_for_copies();
}
