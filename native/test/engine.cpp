// The engine's kernels at awkward sizes, in exactly sized blocks: packed products, sites, the paged cache, plans.
#include "driver.h"

#include <cstring>

#include "../abi/plan.h"

namespace {

using Floats = std::vector<float>;

int packed(int kind, int64_t m, int64_t n, int64_t k, bool extras) {
  int64_t bytes = 0;
  if (const int code = pl_packed_bytes(kind, n, k, &bytes)) return code;
  const auto codes = pattern<int8_t>(n * k), a_codes = pattern<int8_t>(m * k);
  const auto reals = pattern<float>(n * k), a = pattern<float>(m * k);
  const auto a_scale = pattern<float>(m), b_scale = pattern<float>(n), bias = pattern<float>(n);
  std::vector<uint8_t> weights(static_cast<size_t>(bytes));
  const void* source = kind < 4 ? static_cast<const void*>(codes.data()) : reals.data();
  if (const int code = pl_pack_weights(kind, n, k, source, weights.data())) return code;
  Floats out(static_cast<size_t>(m * n));
  const void* left = kind < 2 ? static_cast<const void*>(a_codes.data()) : a.data();
  const bool scaled = extras || kind < 2;
  if (const int code =
          pl_packed_matmul(kind, m, n, k, left, kind < 2 ? a_scale.data() : nullptr, weights.data(),
                           scaled ? b_scale.data() : nullptr, extras ? bias.data() : nullptr, out.data(), extras))
    return code;
  if (kind < 5) return 0;
  const std::vector<int32_t> ids{static_cast<int32_t>(n - 1), 0};
  Floats rows(static_cast<size_t>(2 * k));
  return pl_packed_rows(kind, n, k, weights.data(), ids.data(), 2, rows.data());
}

DriverCase packed_products("packed products", [] {
  const int64_t sizes[][3] = {{1, 1, 1},    {1, 33, 63},   {2, 65, 64},    {4, 64, 7},  {5, 17, 130},
                              {13, 96, 65}, {17, 31, 257}, {70, 130, 129}, {16, 33, 31}};
  for (int kind = 0; kind < 7; kind++)
    for (const auto& s : sizes)
      for (int extras = 0; extras < 2; extras++)
        if (const int code = packed(kind, s[0], s[1], s[2], extras)) return code;
  return 0;
});

DriverCase group_products("packed products with groups", [] {
  const int64_t sizes[][4] = {{1, 1, 1, 16},   {2, 33, 3, 32},  {4, 65, 2, 64},
                              {5, 17, 1, 128}, {13, 96, 9, 16}, {31, 31, 2, 128}};
  for (int kind = 0; kind < 2; kind++)
    for (const auto& s : sizes)
      for (int form : {0, 1, 2 | 8 << 8, 3 | 8 << 8})
        for (int activations = 0; activations < 3; activations++) {
          const int64_t m = s[0], n = s[1], k = s[2] * s[3], group = s[3], span = activations > 0 ? group : k;
          int64_t bytes = 0;
          if (const int code = pl_group_bytes(kind, n, k, group, form, &bytes)) return code;
          const auto codes = pattern<int8_t>(n * k), a = pattern<int8_t>(m * k);
          const auto scale = pattern<float>(n * s[2]), a_scale = pattern<float>(m * k / span), bias = pattern<float>(n);
          std::vector<uint8_t> weights(static_cast<size_t>(bytes));
          if (const int code = pl_pack_groups(kind, n, k, group, form, codes.data(), scale.data(),
                                              form & 2 ? scale.data() : nullptr, weights.data()))
            return code;
          Floats out(static_cast<size_t>(m * n)), rows(static_cast<size_t>(2 * k));
          if (const int code = pl_group_matmul(kind, m, n, k, group, form, span, a.data(), a_scale.data(),
                                               activations == 2 ? a_scale.data() : nullptr, weights.data(),
                                               activations ? bias.data() : nullptr, out.data(), activations == 1))
            return code;
          const std::vector<int32_t> ids{static_cast<int32_t>(n - 1), 0};
          if (const int code = pl_group_rows(kind, n, k, group, form, weights.data(), ids.data(), 2, rows.data()))
            return code;
        }
  return 0;
});

// Sums in 16 bits must be widened in time: the largest products of one sign, over more k than any block.
DriverCase extremes("packed products of extreme codes over long sums", [] {
  const int64_t n = 17, k = 4099;
  for (int kind = 0; kind < 2; kind++)
    for (int a_code : {-128, 127, -8, 7})
      for (int code : {-8, 7})
        for (int64_t m : {1, 2, 7, 40}) {
          int64_t bytes = 0;
          if (const int failed = pl_packed_bytes(kind, n, k, &bytes)) return failed;
          const std::vector<int8_t> a(static_cast<size_t>(m * k), static_cast<int8_t>(a_code));
          const std::vector<int8_t> codes(static_cast<size_t>(n * k), static_cast<int8_t>(code));
          const Floats ones(static_cast<size_t>(m > n ? m : n), 1.0f);
          std::vector<uint8_t> weights(static_cast<size_t>(bytes));
          Floats out(static_cast<size_t>(m * n));
          if (const int failed = pl_pack_weights(kind, n, k, codes.data(), weights.data())) return failed;
          if (const int failed = pl_packed_matmul(kind, m, n, k, a.data(), ones.data(), weights.data(), ones.data(),
                                                  nullptr, out.data(), 0))
            return failed;
          for (const float value : out)
            if (value != static_cast<float>(k * a_code * code)) return 1;
        }
  return 0;
});

DriverCase sites("sites", [] {
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 4, 6}, {70, 3, 24}, {5, 8, 33}, {2, 24, 24}};
  for (const auto& s : sizes)
    for (int input = 0; input < 5; input++)
      for (int parts = 0; parts < 4; parts++)
        for (int bits : {4, 8, 16}) {
          const int64_t rows = s[0], width = s[1] * s[2], sets = 2;
          const auto x = pattern<float>(rows * width), gain = pattern<float>(width);
          const auto left = pattern<float>(s[1] * s[1]), right = pattern<float>(s[2] * s[2]);
          const auto clips = pattern<float>(2 * sets);
          std::vector<int8_t> codes(static_cast<size_t>(sets * rows * width));
          // One scale a row, or one for each of the right factor's lines, with offsets.
          const int64_t span = parts & 2 ? s[2] : width, scales = sets * rows * width / span;
          Floats scale(static_cast<size_t>(scales)), offset(static_cast<size_t>(scales));
          Floats out(static_cast<size_t>(rows * width));
          if (const int code =
                  pl_site(input, 1 + parts, x.data(), x.data(), rows, s[1], s[2], gain.data(),
                          parts & 1 ? gain.data() : nullptr, 1e-5f, parts & 1 ? left.data() : nullptr,
                          parts & 2 ? right.data() : nullptr, bits, span, sets, rows, clips.data(), codes.data(),
                          scale.data(), parts & 2 ? offset.data() : nullptr, out.data(), 1.5f, 2.0f))
            return code;
        }
  return 0;
});

int cache(int64_t heads, int64_t kv, int64_t dim, int bits, int64_t window, int extras) {
  int64_t head_bytes = 0;
  if (const int code = pl_cache_head_bytes(dim, bits, &head_bytes)) return code;
  // Two sequences, one of them continued in the middle of a page.
  const std::vector<int32_t> table{0, 70, 0, 0, 70, 5, 62, 2};
  const std::vector<int32_t> pages{3, 0, 2, 1};
  const int64_t rows = 75, page_bytes = kv * head_bytes;
  std::vector<uint8_t> memory(static_cast<size_t>(4 * page_bytes));
  auto q = pattern<float>(rows * heads * dim), k = pattern<float>(rows * kv * dim), v = pattern<float>(rows * kv * dim);
  const auto gain = pattern<float>(dim), angles = pattern<float>(rows * (dim / 2)), matrix = pattern<float>(dim * dim);
  const std::vector<float> clips{1, 2, 3, 4};
  const auto scales = pattern<float>(rows), sinks = pattern<float>(heads);
  const float* const norm = extras ? gain.data() : nullptr;
  const float* const table_of = extras ? angles.data() : nullptr;
  const float* const square = extras ? matrix.data() : nullptr;
  const auto diag = pattern<float>(kv * dim), shift = pattern<float>(kv * dim);
  Floats out(q.size());
  if (const int code = pl_cache_write(2, table.data(), pages.data(), heads, kv, dim, q.data(), k.data(), v.data(), norm,
                                      norm, 1e-5f, table_of, table_of, square, square, extras ? diag.data() : nullptr,
                                      extras ? shift.data() : nullptr, extras ? 8 : 16, bits, clips.data(),
                                      memory.data(), page_bytes, extras ? scales.data() : nullptr))
    return code;
  if (const int code =
          pl_paged_attention(2, table.data(), pages.data(), heads, kv, dim, window, 2 * window, 0.1f,
                             window > 0 ? 0.5f : 0.0f, q.data(), bits, memory.data(), page_bytes, out.data(),
                             extras ? sinks.data() : nullptr, extras ? scales.data() : nullptr))
    return code;
  // Their last tokens alone: tasks that threads share.
  const std::vector<int32_t> last{0, 1, 69, 0, 1, 1, 66, 2};
  Floats queries(static_cast<size_t>(2 * heads * dim), 0.5f), mixed(queries.size());
  return pl_paged_attention(2, last.data(), pages.data(), heads, kv, dim, window, 2 * window, 0.1f,
                            window > 0 ? 0.5f : 0.0f, queries.data(), bits, memory.data(), page_bytes, mixed.data(),
                            extras ? sinks.data() : nullptr, extras ? scales.data() : nullptr);
}

DriverCase caches("the paged cache and attention over it", [] {
  const int64_t shapes[][3] = {{1, 1, 2}, {3, 1, 24}, {4, 2, 36}, {6, 2, 64}};
  for (const auto& s : shapes)
    for (int bits : {2, 4, 6, 8, 16})
      for (int64_t window : {0, 20})
        for (int extras = 0; extras < 2; extras++)
          if (const int code = cache(s[0], s[1], s[2], bits, window, extras)) return code;
  return 0;
});

DriverCase plans("a plan of a norm, and one that names no operation", [] {
  const int64_t rows = 3, cols = 17;
  auto x = pattern<float>(rows * cols);
  const auto gain = pattern<float>(cols);
  std::vector<int64_t> plan(planish::PLAN_WORDS);
  const auto word = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(p)); };
  const double epsilon = 1e-5;
  plan[0] = 6;
  plan[2] = word(x.data());
  plan[3] = 1;
  plan[4] = cols;
  plan[5] = word(gain.data());
  memcpy(&plan[7], &epsilon, sizeof epsilon);
  plan[8] = word(x.data());
  std::vector<double> seconds(7, 0.0);
  if (const int code = pl_run_plan(plan.data(), 1, rows, 1, seconds.data())) return code;
  plan[0] = 99;
  return pl_run_plan(plan.data(), 1, rows, 1, nullptr) == PL_BAD_ARGUMENT ? 0 : 1;
});

}  // namespace
