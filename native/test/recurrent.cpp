// Short convolutions and recurrences at awkward sizes, in exactly sized blocks, whole and in chunks.
#include <cmath>

#include "driver.h"

namespace {

using Floats = std::vector<float>;

// Rows of sequences, their first positions, and which state they have.
struct Chunks {
  std::vector<int32_t> table, slots;
  int64_t count, rows;
};

Chunks chunks_of(int64_t rows) { return {{0, 1, 0, 0, 1, static_cast<int32_t>(rows - 1), 5, 0}, {2, 0}, 2, rows}; }

DriverCase convolution_case("short convolutions", [] {
  const int64_t sizes[][4] = {{1, 1, 1, 1}, {2, 2, 37, 4}, {1, 9, 300, 3}, {3, 5, 16, 2}};
  for (const auto& s : sizes) {
    const int64_t batch = s[0], time = s[1], channels = s[2], taps = s[3], n = batch * time * channels;
    const auto x = pattern<float>(n), weight = pattern<float>(channels * taps), bias = pattern<float>(channels);
    Floats out(n), state(batch * (taps - 1) * channels + 1), states(3 * ((taps - 1) * channels + 1));
    int code =
        pl_causal_conv(batch, time, channels, taps, x.data(), weight.data(), bias.data(), state.data(), out.data());
    if (code == 0) code = pl_causal_conv_backward(batch, time, channels, taps, weight.data(), x.data(), out.data());
    if (code != 0) return code;
    if (batch * time < 2) continue;
    const Chunks c = chunks_of(batch * time);
    code = pl_carry_conv(c.count, c.table.data(), c.slots.data(), channels, taps, x.data(), weight.data(), nullptr,
                         states.data(), (taps - 1) * channels + 1, out.data());
    if (code != 0) return code;
  }
  return 0;
});

DriverCase recurrence_case("recurrences and their gradient", [] {
  const int64_t sizes[][6] = {{1, 1, 1, 1, 1, 1}, {2, 33, 4, 2, 7, 13}, {1, 70, 2, 1, 19, 67}, {1, 40, 6, 3, 16, 33}};
  for (const auto& s : sizes)
    for (int delta = 0; delta < 2; delta++) {
      const int64_t batch = s[0], time = s[1], heads = s[2], shared = s[3], keys = s[4], values = s[5];
      const int64_t rows = batch * time, width = heads * values + 2 * shared * keys, size = heads * keys * values;
      const int64_t k_at = heads * values, q_at = k_at + shared * keys;
      const auto x = pattern<float>(rows * width), step = pattern<float>(rows * heads), skip = pattern<float>(heads);
      const auto grad = pattern<float>(rows * heads * values);
      const float* const beta = delta ? step.data() : nullptr;
      const float epsilon = delta ? 1e-6f : -1.0f;
      Floats out(rows * heads * values), state(batch * size), states(3 * size);
      Floats grad_x(rows * width), grad_step(rows * heads), grad_beta(rows * heads);
      int code =
          pl_recurrence(batch, time, heads, shared, keys, values, width, q_at, k_at, 0, 0.3f, epsilon, 0.1f, 1.0f,
                        x.data(), step.data(), beta, skip.data(), skip.data(), skip.data(), state.data(), out.data());
      if (code == 0)
        code = pl_recurrence_backward(batch, time, heads, shared, keys, values, width, q_at, k_at, 0, 0.3f, epsilon,
                                      0.1f, 1.0f, x.data(), step.data(), beta, skip.data(), skip.data(), skip.data(),
                                      grad.data(), grad_x.data(), grad_step.data(), delta ? grad_beta.data() : nullptr);
      if (code != 0) return code;
      if (rows < 2) continue;
      const Chunks c = chunks_of(rows);
      code = pl_carry_recurrence(c.count, c.table.data(), c.slots.data(), heads, shared, keys, values, width, q_at,
                                 k_at, 0, 0.3f, epsilon, 0.0f, INFINITY, x.data(), step.data(), beta, skip.data(),
                                 skip.data(), nullptr, states.data(), size, out.data());
      if (code != 0) return code;
    }
  return 0;
});

DriverCase grouped_norm_case("norms of groups", [] {
  for (int64_t cols : {1, 5, 16, 33})
    for (int64_t gains : {1, 3}) {
      const auto x = pattern<float>(7 * 3 * cols), gain = pattern<float>(gains * cols);
      Floats out(7 * 3 * cols);
      const int code = pl_grouped_norm(0, x.data(), 7, 3, cols, gain.data(), gains, 1e-5f, out.data());
      if (code != 0) return code;
    }
  return 0;
});

}  // namespace
