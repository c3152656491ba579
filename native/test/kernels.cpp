// The kernels of native/kernels at awkward sizes, in exactly sized blocks: no read or write past an end.
#include "driver.h"

namespace {

using Floats = std::vector<float>;

DriverCase attention_case("attention and its gradient", [] {
  const int64_t sizes[][6] = {{1, 1, 1, 1, 1, 1},    {2, 4, 2, 5, 7, 7},     {1, 3, 1, 17, 65, 65},
                              {1, 5, 2, 33, 3, 130}, {2, 2, 2, 64, 131, 70}, {1, 6, 3, 24, 49, 200}};
  for (const auto& s : sizes)
    for (int half = 0; half < 2; half++)
      for (int64_t window : {0, 20}) {
        const int64_t batch = s[0], heads = s[1], kv = s[2], dim = s[3], queries = s[4], keys = s[5];
        const int64_t q_count = batch * queries * heads * dim, k_count = batch * keys * kv * dim;
        const auto q = pattern<float>(q_count), k = pattern<float>(k_count), v = pattern<float>(k_count);
        const auto grad = pattern<float>(q_count);
        Floats out(q_count), lse(batch * heads * queries), grad_q(q_count), grad_k(k_count), grad_v(k_count);
        const int64_t qb = queries * heads * dim, qt = heads * dim, kb = keys * kv * dim, kt = kv * dim;
        int code = pl_attention(batch, heads, kv, dim, queries, keys, window == 0, window, window, 0.3f,
                                window > 0 ? 0.5f : 0.0f, window > 0 ? nullptr : grad.data(), q.data(), qb, qt, dim,
                                k.data(), v.data(), kb, kt, dim, out.data(), qb, qt, dim, lse.data(), half);
        if (code == 0)
          code = pl_attention_backward(batch, heads, kv, dim, queries, keys, window == 0, window, window, 0.3f,
                                       window > 0 ? 0.5f : 0.0f, window > 0 ? nullptr : grad.data(), q.data(), qb, qt,
                                       dim, k.data(), v.data(), kb, kt, dim, out.data(), grad.data(), qb, qt, dim,
                                       lse.data(), grad_q.data(), grad_k.data(), grad_v.data(), half);
        if (code != 0) return code;
      }
  return 0;
});

DriverCase kronecker_case("Kronecker transform and its gradient", [] {
  const int64_t sizes[][3] = {{1, 1, 1},    {3, 1, 5},  {7, 4, 6},    {65, 3, 24}, {33, 8, 16}, {5, 22, 32},
                              {40, 24, 24}, {2, 9, 64}, {19, 13, 13}, {3, 64, 65}, {300, 1, 20}};
  for (const auto& s : sizes)
    for (int parts = 0; parts < 8; parts++) {
      const int64_t rows = s[0], a = s[1], b = s[2], n = rows * a * b;
      const auto x = pattern<float>(n), grad = pattern<float>(n), left = pattern<float>(a * a);
      const auto right = pattern<float>(b * b), diag = pattern<float>(a * b);
      const float* l = parts & 1 ? left.data() : nullptr;
      const float* r = parts & 2 ? right.data() : nullptr;
      const float* d = parts & 4 ? diag.data() : nullptr;
      Floats out(n), grad_x(n), grad_left(a * a), grad_right(b * b), grad_diag(a * b);
      int code = pl_kronecker(x.data(), rows, a, b, l, r, d, out.data());
      if (code == 0)
        code = pl_kronecker_backward(x.data(), rows, a, b, l, r, d, grad.data(), grad_x.data(),
                                     l ? grad_left.data() : nullptr, r ? grad_right.data() : nullptr,
                                     d ? grad_diag.data() : nullptr);
      if (code == 0)
        code = pl_kronecker_backward(x.data(), rows, a, b, l, r, d, grad.data(), nullptr, nullptr, nullptr,
                                     d ? grad_diag.data() : nullptr);
      if (code != 0) return code;
    }
  return 0;
});

DriverCase flatten_case("split channels on a grid of the whole tensor", [] {
  for (int64_t rows : {1, 3, 70})
    for (int64_t cols : {1, 2, 15, 16, 17, 33, 100, 1025})
      for (int64_t extras : {int64_t{0}, int64_t{1}, cols / 3})
        for (int64_t padding : {0, 7}) {
          const int64_t stride = cols + extras + padding;
          const auto x = pattern<float>(rows * cols), factor = pattern<float>(cols);
          std::vector<int32_t> channel(extras), part(extras), copies(cols, 1), clipped(rows);
          for (int64_t e = 0; e < extras; e++) {
            channel[e] = static_cast<int32_t>((e * 7) % cols);
            part[e] = copies[channel[e]]++;
          }
          std::vector<int8_t> codes(rows * stride);
          Floats scale(rows);
          int code = pl_flatten_rows(x.data(), rows, cols, 4, 0.05f, nullptr, extras, channel.data(), part.data(),
                                     stride, copies.data(), codes.data(), scale.data(), clipped.data());
          code |= pl_flatten_rows(x.data(), rows, cols, 8, 1e-30f, factor.data(), extras, channel.data(), part.data(),
                                  stride, nullptr, codes.data(), nullptr, nullptr);
          if (code != 0) return code;
        }
  return 0;
});

DriverCase rows_case("grids, norms and losses over rows", [] {
  for (int64_t rows : {1, 3, 70})
    for (int64_t cols : {1, 2, 15, 16, 17, 31, 33, 64, 100, 4099}) {
      const int64_t n = rows * cols;
      const auto x = pattern<float>(n), y = pattern<float>(n), gain = pattern<float>(cols),
                 clips = pattern<float>(rows);
      std::vector<int8_t> codes(n);
      std::vector<int32_t> ids(rows, 0);
      Floats scale(rows), out(n), other(n), column(rows), row(cols), second(cols), first(rows);
      float up = 0, down = 0;
      const float clip = 2;
      int code = pl_quantize_rows(x.data(), rows, cols, 4, &clip, &clip, 0, y.data(), codes.data(), scale.data());
      code |= pl_quantize_rows_backward(x.data(), rows, cols, 4, &clip, &clip, 0, y.data(), codes.data(), scale.data(),
                                        y.data(), out.data(), &up, &down, other.data());
      code |= pl_dequantize_rows(codes.data(), scale.data(), rows, cols, out.data());
      code |= pl_fake_quantize_asym(x.data(), rows, cols, 3, &clip, &clip, out.data());
      code |= pl_fake_quantize_asym_backward(x.data(), rows, cols, 3, &clip, &clip, y.data(), out.data(), &up, &down);
      code |= pl_fake_quantize_offset(x.data(), rows, cols, 4, &clip, &clip, y.data(), out.data());
      code |= pl_fake_quantize_offset_backward(x.data(), rows, cols, 4, &clip, &clip, y.data(), y.data(), out.data(),
                                               &up, &down, other.data());
      code |= pl_clip_rows(x.data(), rows, cols, clips.data(), clips.data(), out.data());
      code |= pl_clip_rows_backward(x.data(), rows, cols, clips.data(), clips.data(), y.data(), out.data(),
                                    column.data(), first.data());
      for (int kind = 0; kind < 2; kind++) {
        code |= pl_norm(kind, x.data(), rows, 1, cols, gain.data(), kind ? gain.data() : nullptr, 1e-5f, out.data());
        code |= pl_norm_backward(kind, x.data(), rows, cols, gain.data(), 1e-5f, y.data(), out.data(), row.data(),
                                 second.data());
      }
      code |= pl_gather_rows(x.data(), rows, cols, ids.data(), rows, out.data());
      code |= pl_nll(x.data(), rows, cols, ids.data(), column.data());
      code |= pl_softmax_kl(x.data(), y.data(), rows, cols, column.data(), out.data(), 0.5f);
      for (int keep = 1; keep < 4; keep++)
        code |= pl_reduce(rows, cols, x.data(), keep == 2 ? nullptr : y.data(), keep, 2,
                          keep == 1   ? row.data()
                          : keep == 2 ? column.data()
                                      : &up);
      for (int broadcast = 0; broadcast < 4; broadcast++)
        code |= pl_binary(broadcast % 3, rows, cols, x.data(),
                          broadcast == 0   ? y.data()
                          : broadcast == 1 ? gain.data()
                          : broadcast == 2 ? clips.data()
                                           : &clip,
                          broadcast, out.data());
      if (cols % 2 == 0) {
        const auto table = pattern<float>(2 * cols / 2);
        code |= pl_rope(x.data(), rows, 1, cols, 2, table.data(), table.data(), rows % 2, out.data());
      }
      if (code != 0) return code;
    }
  return 0;
});

DriverCase flat_case("elementwise maps and the optimizer", [] {
  for (int64_t n : {0, 1, 7, 16, 33, 16384, 33001}) {
    const auto x = pattern<float>(n), y = pattern<float>(n), z = pattern<float>(n);
    Floats out(n), other(n), moment1(n), moment2(n);
    float loss = 0;
    int code = 0;
    for (int op = 0; op < 7; op++) {
      code |= pl_unary(op, x.data(), n, out.data());
      code |= pl_unary_backward(op, x.data(), n, y.data(), out.data());
    }
    code |= pl_scale(x.data(), n, 2, 0, out.data()) | pl_scale(x.data(), n, 2, 1, out.data());
    code |= pl_silu_mul(x.data(), y.data(), n, out.data());
    code |= pl_silu_mul_backward(x.data(), y.data(), n, z.data(), out.data(), other.data());
    code |= pl_mse(x.data(), y.data(), n > 0 ? n : 0, &loss);
    code |= pl_adam_w(out.data(), x.data(), moment1.data(), moment2.data(), n, 1, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 0.5);
    if (code != 0) return code;
  }
  return 0;
});

DriverCase matrices_case("inverse and Cayley", [] {
  for (int64_t n : {1, 2, 7, 16, 31, 33, 70}) {
    auto x = pattern<float>(n * n);
    for (int64_t i = 0; i < n; i++) x[i * n + i] += 10;
    Floats out(n * n), grad_seed(n * n);
    int code = pl_inverse(x.data(), n, out.data()) | pl_cayley(x.data(), n, out.data());
    code |= pl_cayley_backward(x.data(), n, out.data(), x.data(), grad_seed.data());
    if (code != 0) return code;
  }
  return 0;
});

DriverCase gptq_case("gptq's factor and rounding", [] {
  for (int64_t n : {1, 3, 31, 32, 33, 70, 97})
    for (int64_t rows : {1, 5, 32, 33, 65}) {
      auto weight = pattern<double>(rows * n);
      std::vector<double> moment(static_cast<size_t>(n * n), 0.5), factor(moment.size()),
          scale(static_cast<size_t>(rows), 7.0);
      std::vector<int32_t> order(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; i++) {
        moment[i * n + i] = 1 + static_cast<double>(i);
        order[i] = static_cast<int32_t>(n - 1 - i);
      }
      std::vector<int8_t> codes(static_cast<size_t>(rows * n));
      int32_t factored = 0;
      int code = pl_gptq_factor(n, moment.data(), order.data(), 0.1, factor.data(), &factored);
      for (int64_t scales : {rows, int64_t{1}})
        code |= pl_gptq_round(rows, n, weight.data(), scale.data(), scales, n, nullptr, 4, factor.data(), order.data(),
                              codes.data());
      if (code != 0 || factored != 1) return 1;
    }
  return 0;
});

}  // namespace
