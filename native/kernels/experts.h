// Mixtures of experts: which experts a row goes to, and the experts themselves, each on the rows that chose it. An expert is
// a plan of its own (plan.cpp), so that everything a dense block is made of serves it too.
#pragma once

#include "rows.h"

namespace planish::PL_LEVEL {

/** Keeps weights from being divided by zero. */
constexpr double SMALLEST_SUM = 1e-20;

/** The best of `count` numbers that is not taken; of equal ones the first. */
static inline int64_t best_of(const double* values, const uint8_t* closed, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!closed[i] && (best < 0 || values[i] > values[best])) best = i;
  return best;
}

/** Closes every group but the best: a group is as good as the sum of its two highest numbers. */
static inline void close_groups(const double* choice, int64_t experts, int64_t groups, int64_t open, double* worth,
                                uint8_t* closed) {
  const int64_t size = experts / groups;
  for (int64_t g = 0; g < groups; ++g) {
    double first = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      const double value = choice[e];
      if (value > first) {
        second = first;
        first = value;
      } else if (value > second) {
        second = value;
      }
    }
    worth[g] = size > 1 ? first + second : first;
  }
  std::memset(closed, 1, static_cast<size_t>(experts));
  uint8_t* const taken = closed + experts;
  std::memset(taken, 0, static_cast<size_t>(groups));
  for (int64_t i = 0; i < open; ++i) {
    const int64_t g = best_of(worth, taken, groups);
    taken[g] = 1;
    std::memset(closed + g * size, 0, static_cast<size_t>(size));
  }
}

/**
 * ids and weights [rows, chosen], best first. Logits are summed in a fixed order, so that a row's experts do not depend on
 * what it is computed with.
 */
inline int route(const float* x, int64_t rows, int64_t width, const float* router, const float* bias,
                 const float* correction, int64_t experts, int64_t chosen, int32_t scores, int32_t normalize,
                 float factor, int64_t groups, int64_t open_groups, float* weights, int32_t* ids) {
  if (chosen < 1 || chosen > experts)
    return fail(PL_BAD_ARGUMENT, "route: %lld of %lld experts", (long long)chosen, (long long)experts);
  if (groups < 1 || experts % groups != 0 || open_groups < 1 || open_groups > groups ||
      open_groups * (experts / groups) < chosen)
    return fail(PL_BAD_ARGUMENT, "route: %lld of %lld groups of %lld experts", (long long)open_groups,
                (long long)groups, (long long)experts);
  double* const logits = scratch_of<double>(6, rows * experts);
  if (!logits) return fail(PL_OUT_OF_MEMORY, "route: no memory for %lld rows", (long long)rows);
  parallel_ranges(rows * experts, 65536 / (width + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / experts, e = i % experts;
      const float *const a = x + r * width, *const b = router + e * width;
      logits[i] = sum_row(width, [&](int64_t k,
                                     int64_t count) { return load_up_to(a + k, count) * load_up_to(b + k, count); }) +
                  (bias ? static_cast<double>(bias[e]) : 0.0);
    }
  });
  std::atomic<bool> starved{false};
  parallel_ranges(rows, 4096 / experts + 1, [&](int64_t begin, int64_t end) {
    double* const choice = scratch_of<double>(4, 3 * experts);
    if (!choice) {
      starved.store(true, std::memory_order_relaxed);
      return;
    }
    double* const worth = choice + experts;
    uint8_t* const closed = reinterpret_cast<uint8_t*>(worth + experts);
    for (int64_t r = begin; r < end; ++r) {
      double* const row = logits + r * experts;
      if (scores == ROUTER_SCORES_SIGMOID) {
        for (int64_t e = 0; e < experts; ++e) row[e] = 1.0 / (1.0 + std::exp(-row[e]));
      } else {
        double most = row[0], sum = 0;
        for (int64_t e = 1; e < experts; ++e) most = row[e] > most ? row[e] : most;
        for (int64_t e = 0; e < experts; ++e) sum += row[e] = std::exp(row[e] - most);
        for (int64_t e = 0; e < experts; ++e) row[e] /= sum;
      }
      for (int64_t e = 0; e < experts; ++e)
        choice[e] = row[e] + (correction ? static_cast<double>(correction[e]) : 0.0);
      if (groups > 1) close_groups(choice, experts, groups, open_groups, worth, closed);
      else std::memset(closed, 0, static_cast<size_t>(experts));
      double sum = normalize ? SMALLEST_SUM : 1.0;
      for (int64_t c = 0; c < chosen; ++c) {
        const int64_t e = best_of(choice, closed, experts);
        closed[e] = 1;
        ids[r * chosen + c] = static_cast<int32_t>(e);
        if (normalize) sum += row[e];
      }
      for (int64_t c = 0; c < chosen; ++c)
        weights[r * chosen + c] = static_cast<float>(static_cast<double>(factor) * row[ids[r * chosen + c]] / sum);
    }
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "route: no memory for %lld experts", (long long)experts);
  return 0;
}

/**
 * `table`: of each expert the address of its plan, its calls, and where they leave their result [its rows, out_width]. The
 * plans read `gathered`. Weights multiply what they give, or with `weigh_inputs` what they read. `order`: room for rows·chosen + experts + 1 integers. A row adds its experts up in their order.
 */
inline int experts(const float* x, int64_t rows, int64_t width, int64_t count, int64_t chosen, const float* weights,
                   int32_t weigh_inputs, const int32_t* ids, int32_t* order, const int64_t* table, float* gathered,
                   int64_t out_width, int32_t accumulate, float* out) {
  int32_t *const starts = order + rows * chosen, *const choices = order;
  std::memset(starts, 0, static_cast<size_t>(count + 1) * 4);
  for (int64_t i = 0; i < rows * chosen; ++i) {
    if (ids[i] < 0 || ids[i] >= count) return fail(PL_BAD_ARGUMENT, "experts: no expert %d", ids[i]);
    ++starts[ids[i] + 1];
  }
  for (int64_t e = 0; e < count; ++e) starts[e + 1] += starts[e];
  for (int64_t i = 0; i < rows * chosen; ++i) choices[starts[ids[i]]++] = static_cast<int32_t>(i);
  // Every start has moved to the next one's place.
  if (!accumulate) std::memset(out, 0, static_cast<size_t>(rows * out_width) * 4);
  for (int64_t e = 0; e < count; ++e) {
    const int64_t first = e > 0 ? starts[e - 1] : 0, own = starts[e] - first;
    if (own == 0) continue;
    const int32_t* const mine = choices + first;
    parallel_ranges(own, 16384 / width + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* const from = x + mine[i] / chosen * width;
        const vf weight = splat(weigh_inputs ? weights[mine[i]] : 1.0f);
        map_lanes(from, gathered + i * width, width, [&](vf a) { return a * weight; });
      }
    });
    const int64_t* const entry = table + 3 * e;
    if (const int code = pl_run_plan(reinterpret_cast<const int64_t*>(entry[0]), entry[1], own, 0, nullptr))
      return code;
    const float* const result = reinterpret_cast<const float*>(entry[2]);
    parallel_ranges(own, 16384 / out_width + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const vf weight = splat(weigh_inputs ? 1.0f : weights[mine[i]]);
        const float* const from = result + i * out_width;
        float* const to = out + mine[i] / chosen * out_width;
        map_lanes2(from, to, to, out_width, [&](vf a, vf b) { return fma(weight, a, b); });
      }
    });
  }
  return 0;
}

}  // namespace planish::PL_LEVEL
