// RMS and layer normalization of rows, rotary embedding, and row lookup.
// Sources: Zhang & Sennrich 2019; Ba, Kiros & Hinton 2016; Su et al. 2021. Definitions: src/backend/contract/training.ts.
#pragma once

#include "quantize.h"

namespace planish::PL_LEVEL {


struct Moments {
  float mean, inverse;
};

PL_INLINE Moments rowMoments(int32_t kind, const float* x, int64_t cols, float epsilon) {
  double mean = 0;
  if (kind == NORM_KIND_LAYER)
    mean = sumRow(cols, [&](int64_t i, int64_t count) { return loadUpTo(x + i, count); }) / static_cast<double>(cols);
  const float m = static_cast<float>(mean);
  const double square = sumRow(cols, [&](int64_t i, int64_t count) {
    vf centred = (count >= VL ? load(x + i) : load_part(x + i, count, m)) - m;
    return centred * centred;
  });
  return {m, static_cast<float>(1.0 / std::sqrt(square / static_cast<double>(cols) + static_cast<double>(epsilon)))};
}

inline int norm(int32_t kind, const float* x, int64_t rows, int64_t cols, const float* gain, const float* bias,
                float epsilon, float* out) {
  parallel_ranges(rows, rowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const xr = x + r * cols;
      float* const o = out + r * cols;
      const Moments m = rowMoments(kind, xr, cols, epsilon);
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        vf v = (loadUpTo(xr + i, count) - m.mean) * m.inverse * loadUpTo(gain + i, count);
        if (bias) v += loadUpTo(bias + i, count);
        if (count >= VL) store(o + i, v);
        else store_part(o + i, v, count);
      }
    }
  });
  return 0;
}

// Rows whose f32 sums are gathered before they join the double totals of gradGain and gradBias.
constexpr int64_t kFlushRows = 32;

inline int norm_backward(int32_t kind, const float* x, int64_t rows, int64_t cols, const float* gain, float epsilon,
                         const float* grad, float* gradX, float* gradGain, float* gradBias) {
  const int64_t wide = padded(cols);
  int64_t parts = rows / rowGrain(cols);
  if (parts > thread_count()) parts = thread_count();
  if (parts < 1) parts = 1;
  double* const totals = scratchOf<double>(0, parts * 2 * wide);
  float* const blocks = scratchOf<float>(1, parts * 2 * wide);
  if (!totals || !blocks) return fail(PL_OUT_OF_MEMORY, "norm_backward: no memory for %lld columns", (long long)cols);
  std::memset(totals, 0, static_cast<size_t>(parts * 2 * wide) * 8);
  std::memset(blocks, 0, static_cast<size_t>(parts * 2 * wide) * 4);
  const bool sums = gradGain || gradBias;
  parallel_for(parts, [&](int64_t part) {
    const int64_t begin = rows * part / parts, end = rows * (part + 1) / parts;
    float* const gainSum = blocks + part * 2 * wide;
    float* const biasSum = gainSum + wide;
    double* const gainTotal = totals + part * 2 * wide;
    const auto flush = [&] {
      for (int64_t i = 0; i < 2 * wide; ++i) {
        gainTotal[i] += static_cast<double>(gainSum[i]);
        gainSum[i] = 0.0f;
      }
    };
    for (int64_t r = begin; r < end; ++r) {
      const float* const xr = x + r * cols;
      const float* const gr = grad + r * cols;
      const Moments m = rowMoments(kind, xr, cols, epsilon);
      vf sumD = vf{}, sumDN = vf{};
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        const vf g = loadUpTo(gr + i, count);
        const vf n = (loadUpTo(xr + i, count) - m.mean) * m.inverse;
        const vf d = g * loadUpTo(gain + i, count);
        const vf gn = g * n;
        sumD += d;
        sumDN += d * n;
        if (sums) {
          store(gainSum + i, load(gainSum + i) + gn);
          store(biasSum + i, load(biasSum + i) + g);
        }
      }
      if (sums && (r - begin) % kFlushRows == kFlushRows - 1) flush();
      if (!gradX) continue;
      const float meanDN = sumLanes(sumDN) / static_cast<float>(cols);
      const float meanD = kind == NORM_KIND_LAYER ? sumLanes(sumD) / static_cast<float>(cols) : 0.0f;
      float* const o = gradX + r * cols;
      for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = cols - i;
        const vf n = (loadUpTo(xr + i, count) - m.mean) * m.inverse;
        const vf d = loadUpTo(gr + i, count) * loadUpTo(gain + i, count);
        const vf v = m.inverse * (d - n * meanDN - meanD);
        if (count >= VL) store(o + i, v);
        else store_part(o + i, v, count);
      }
    }
    if (sums) flush();
  });
  for (int64_t i = 0; i < cols; ++i) {
    double gainTotal = 0, biasTotal = 0;
    for (int64_t part = 0; part < parts; ++part) {
      gainTotal += totals[part * 2 * wide + i];
      biasTotal += totals[part * 2 * wide + wide + i];
    }
    if (gradGain) gradGain[i] = static_cast<float>(gainTotal);
    if (gradBias) gradBias[i] = static_cast<float>(biasTotal);
  }
  return 0;
}

inline int rope(const float* x, int64_t rows, int64_t heads, int64_t headDim, int64_t period, const float* cosine,
                const float* sine, int32_t inverse, float* out) {
  const int64_t half = headDim / 2;
  const float sign = inverse ? -1.0f : 1.0f;
  parallel_ranges(rows, rowGrain(heads * headDim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const c = cosine + r % period * half;
      const float* const s = sine + r % period * half;
      for (int64_t h = 0; h < heads; ++h) {
        const float* const xr = x + (r * heads + h) * headDim;
        float* const o = out + (r * heads + h) * headDim;
        for (int64_t i = 0; i < half; i += VL) {
          const int64_t count = half - i;
          const vf cv = loadUpTo(c + i, count), sv = loadUpTo(s + i, count) * sign;
          // Both halves are read before either is written: out may be x.
          const vf a = loadUpTo(xr + i, count), b = loadUpTo(xr + half + i, count);
          const vf first = a * cv - b * sv, second = b * cv + a * sv;
          if (count >= VL) {
            store(o + i, first);
            store(o + half + i, second);
          } else {
            store_part(o + i, first, count);
            store_part(o + half + i, second, count);
          }
        }
      }
    }
  });
  return 0;
}

/** Every id must lie in [0, tableRows). */
inline int gather_rows(const float* table, int64_t tableRows, int64_t cols, const int32_t* ids, int64_t rows, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    if (ids[r] < 0 || ids[r] >= tableRows)
      return fail(PL_BAD_ARGUMENT, "gatherRows: id %d of row %lld is not in the table; give 0 … %lld", ids[r],
                  (long long)r, (long long)(tableRows - 1));
  parallel_ranges(rows, rowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(out + r * cols, table + ids[r] * cols, static_cast<size_t>(cols) * 4);
  });
  return 0;
}

}  // namespace planish::PL_LEVEL
