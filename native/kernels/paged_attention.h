// Attention of a step's queries over the paged cache (cache.h): grouped heads, causal, with an optional window.
// Source: Dao et al. 2022 (FlashAttention), algorithm 1, as in attention.h.
//
// One task per (chunk, KV head, block of queries): each page's keys and values become f32 tiles, scale·(code − zero) as
// the simulated model rounds them, for all query heads of the group. Prefill and decoding take the same steps in the
// same order (pages lie at fixed positions, what a query may not see has weight exactly 0), so that a row's bits do
// not depend on how the prompt was cut or what else is in the step. They are the steps of `attention` in f32, whose key
// blocks are as long as a page: over the same keys and values both give the same bits.
//
// Decoding has few tasks: with three KV heads one of two threads would wait for a third of the time. What does not
// depend on the order of pages is then handed out in smaller pieces, scores page by page and mixed values by halves of
// the head, so that the steps of each element and with them its bits stay the same.
#pragma once

#include "attention_tiles.h"
#include "cache.h"

namespace planish::PL_LEVEL {

/** Rows (queries × heads of a group) per task. */
constexpr int64_t TASK_ROWS = 96;

/** Integers as floats. */
PL_INLINE vf as_floats(vi x) { return floats_of((VI)x); }

/** Asks memory for `bytes` bytes: pages lie apart, so that the processor fetches nothing of the next one by itself. */
PL_INLINE void fetch(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

/** What a page's keys, or values, need beside their codes. */
static inline void fetch_grids(const uint8_t* head, const CacheShape& shape, bool keys) {
  if (shape.stored == 16) return;
  fetch(head + (keys ? shape.key_scale : shape.value_scale), PAGE_TOKENS * 4);
  fetch(head + (keys ? shape.key_zero : shape.value_zero), PAGE_TOKENS);
}

/** Keys of a page, [head_dim][PAGE_TOKENS]; fetches those of `next`. */
static inline void unpack_keys(const uint8_t* head, const uint8_t* next, const CacheShape& shape, float* tile) {
  fetch_grids(next, shape, true);
  if (shape.stored == 16) {
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      fetch(next + d * shape.key_row, shape.key_row);
      for (int64_t i = 0; i < PAGE_TOKENS; i += VL)
        store(tile + d * PAGE_TOKENS + i, halves_at(head + d * shape.key_row + i * 2));
    }
    return;
  }
  constexpr int64_t vectors = PAGE_TOKENS / VL;
  vf scale[vectors], zero[vectors];
  for (int64_t i = 0; i < vectors; ++i) {
    scale[i] = load(reinterpret_cast<const float*>(head + shape.key_scale) + i * VL);
    zero[i] = as_floats((vi)bytes_at(head + shape.key_zero + i * VL));
  }
  if (shape.stored == 4) {
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      const uint8_t* const row = head + d * shape.key_row;
      float* const out = tile + d * PAGE_TOKENS;
      __builtin_prefetch(next + d * shape.key_row);
#pragma GCC unroll 2
      for (int64_t i = 0; i < vectors / 2; ++i) {
        const vi both = (vi)bytes_at(row + i * VL);
        const int64_t j = i + vectors / 2;
        store(out + i * VL, scale[i] * (as_floats(both & 15) - zero[i]));
        store(out + j * VL, scale[j] * (as_floats(both >> 4) - zero[j]));
      }
    }
    return;
  }
  for (int64_t d = 0; d < shape.head_dim; ++d) {
    __builtin_prefetch(next + d * shape.key_row);
#pragma GCC unroll 4
    for (int64_t i = 0; i < vectors; ++i)
      store(tile + d * PAGE_TOKENS + i * VL,
            scale[i] * (as_floats((vi)bytes_at(head + d * shape.key_row + i * VL)) - zero[i]));
  }
}

/** Which channels of the values a task mixes; as many as a byte holds two of in 4 bits. */
enum Channels { ALL_CHANNELS, LOW_CHANNELS, HIGH_CHANNELS };

/** `channels` of the first `count` values of a page, [count][wide]; fetches as many of `next`. */
static inline void unpack_values(const uint8_t* head, const uint8_t* next, const CacheShape& shape, int64_t count,
                                 Channels channels, float* tile) {
  const uint8_t* const values = head + shape.values;
  const uint8_t* const coming = next + shape.values;
  fetch_grids(next, shape, false);
  const int64_t begin = channels == HIGH_CHANNELS ? shape.wide / 2 : 0;
  const int64_t end = channels == LOW_CHANNELS ? shape.wide / 2 : shape.wide;
  if (shape.stored == 16) {
    for (int64_t t = 0; t < count; ++t) {
      fetch(coming + t * shape.value_row, shape.value_row);
      for (int64_t d = begin; d < end; d += VL)
        store(tile + t * shape.wide + d, halves_at(values + t * shape.value_row + d * 2));
    }
    return;
  }
  const float* const scales = reinterpret_cast<const float*>(head + shape.value_scale);
  const uint8_t* const zeros = head + shape.value_zero;
  const int64_t half = shape.wide / 2;
  for (int64_t t = 0; t < count; ++t) {
    const vf scale = splat(scales[t]), zero = splat(static_cast<float>(zeros[t]));
    const uint8_t* const row = values + t * shape.value_row;
    float* const out = tile + t * shape.wide;
    fetch(coming + t * shape.value_row, shape.value_row);
    if (shape.stored == 4) {
      for (int64_t d = 0; d < half; d += VL) {
        const vi both = (vi)bytes_at(row + d);
        if (channels != HIGH_CHANNELS) store(out + d, scale * (as_floats(both & 15) - zero));
        if (channels != LOW_CHANNELS) store(out + half + d, scale * (as_floats(both >> 4) - zero));
      }
    } else {
      for (int64_t d = begin; d < end; d += VL) store(out + d, scale * (as_floats((vi)bytes_at(row + d)) - zero));
    }
  }
}

/** Queries [begin, end) of a chunk with one KV head. */
struct AttentionTask {
  int32_t chunk, head, begin, end;
};

/** The parameters of paged_attention, and how they cut a task. */
struct PagedAttention {
  const CacheChunk* list;
  const int32_t* pages;
  int64_t heads, head_dim, window, chunk;
  float scale;
  const float* q;
  const uint8_t* cache;
  int64_t page_bytes;
  float* out;
  CacheShape shape;
  AttentionShape mapping;
  const float* sinks;

  /** A task's rows: row r is token r / heads, head r % heads. */
  struct Rows {
    int64_t first_head, heads, count, first_position, end_position, first_page, end_page;
    int64_t blind(int64_t k0) const { return k0 > first_position ? (k0 - first_position) * heads : 0; }
    int64_t keys(int64_t k0) const { return end_position - k0 < PAGE_TOKENS ? end_position - k0 : PAGE_TOKENS; }
  };

  Rows rows_of(const AttentionTask& task) const {
    Rows rows;
    rows.first_head = mapping.first_head(task.head);
    rows.heads = mapping.first_head(task.head + 1) - rows.first_head;
    rows.count = (task.end - task.begin) * rows.heads;
    rows.first_position = list[task.chunk].start + task.begin;
    rows.end_position = list[task.chunk].start + task.end;
    rows.first_page = first_visible(rows.first_position, window, chunk) / PAGE_TOKENS;
    rows.end_page = (rows.end_position + PAGE_TOKENS - 1) / PAGE_TOKENS;
    return rows;
  }

  /** Offset of row r's head in q and out. */
  int64_t place(const AttentionTask& task, const Rows& rows, int64_t r) const {
    return ((list[task.chunk].row + task.begin + r / rows.heads) * heads + rows.first_head + r % rows.heads) * head_dim;
  }

  const uint8_t* head_of(const AttentionTask& task, int64_t page) const {
    return cache + pages[list[task.chunk].pages + page] * page_bytes + task.head * shape.bytes;
  }

  void take_queries(const AttentionTask& task, const Rows& rows, float* queries) const {
    for (int64_t r = 0; r < rows.count; ++r)
      map_lanes(q + place(task, rows, r), queries + r * head_dim, head_dim, [&](vf x) { return x * scale; });
  }

  /** The page after this one, itself for the last. */
  const uint8_t* next_of(const AttentionTask& task, const Rows& rows, int64_t page) const {
    return head_of(task, page + 1 < rows.end_page ? page + 1 : page);
  }

  /** Scores of a page, −∞ where a query may not see a key, into rows `ld` apart; queries before the page are left out. */
  void score(const AttentionTask& task, const Rows& rows, int64_t page, const float* queries, float* keys,
             float* scores, int64_t ld) const {
    const int64_t k0 = page * PAGE_TOKENS, width = rows.keys(k0), lanes = padded(width), blind = rows.blind(k0);
    unpack_keys(head_of(task, page), next_of(task, rows, page), shape, keys);
    small_product<float, false>(rows.count - blind, lanes, head_dim, queries + blind * head_dim, head_dim, keys,
                                PAGE_TOKENS, scores + blind * ld, ld, false);
    for (int64_t r = blind; r < rows.count; ++r) {
      float* const row = scores + r * ld;
      if (mapping.softcap > 0.0f) cap_row(row, lanes, mapping.softcap);
      const int64_t position = rows.first_position + r / rows.heads;
      const int64_t end = position - k0 + 1 < width ? position - k0 + 1 : width;
      const int64_t begin = first_visible(position, window, chunk) - k0;
      if (mapping.slopes) lean_row(row, lanes, mapping.slopes[rows.first_head + r % rows.heads], k0 - position);
      for (int64_t i = 0; i < begin && i < lanes; ++i) row[i] = -INFINITY;
      for (int64_t i = end; i < lanes; ++i) row[i] = -INFINITY;
    }
  }

  /** Running state of a row: its highest score, the sum of its weights by lanes, its mixed values. */
  struct State {
    float *top, *totals, *mixed;
  };

  void begin(const Rows& rows, const State& state) const {
    std::memset(state.mixed, 0, static_cast<size_t>(rows.count * shape.wide) * 4);
    std::memset(state.totals, 0, static_cast<size_t>(rows.count * VL) * 4);
    for (int64_t r = 0; r < rows.count; ++r) {
      state.top[r] = sinks ? sinks[rows.first_head + r % rows.heads] : -INFINITY;
      // A sink has weight, and no value.
      if (sinks) state.totals[r * VL] = 1.0f;
    }
  }

  /** Adds a page to the state: its scores become weights (`weights` may be `scores`), its values are mixed by them. */
  void mix(const AttentionTask& task, const Rows& rows, int64_t page, Channels channels, const float* scores,
           int64_t ld, float* weights, float* values, const State& state) const {
    const int64_t k0 = page * PAGE_TOKENS, width = rows.keys(k0), lanes = padded(width), blind = rows.blind(k0);
    const int64_t wide = shape.wide, half = wide / 2;
    unpack_values(head_of(task, page), next_of(task, rows, page), shape, width, channels, values);
    for (int64_t r = blind; r < rows.count; ++r) {
      const float* const row = scores + r * ld;
      vf best = load(row);
      for (int64_t i = VL; i < lanes; i += VL) best = vmax(best, load(row + i));
      const float highest = max_lanes(best), before = state.top[r];
      float* const total = state.totals + r * VL;
      if (highest > before) {
        state.top[r] = highest;
        if (before != -INFINITY) {
          const float shrink = std::exp(before - highest);
          store(total, load(total) * shrink);
          float* const o = state.mixed + r * wide;
          for (int64_t d = 0; d < wide; d += VL) store(o + d, load(o + d) * shrink);
        }
      }
      const float level = state.top[r] == -INFINITY ? 0.0f : state.top[r];
      vf sum = vf{};
      for (int64_t i = 0; i < lanes; i += VL) {
        const vf s = load(row + i);
        const vf weight = s == -INFINITY ? vf{} : exp_negative(s - level);
        store(weights + r * PAGE_TOKENS + i, weight);
        sum += weight;
      }
      store(total, load(total) + sum);
    }
    const int64_t first = channels == HIGH_CHANNELS ? half : 0, count = channels == ALL_CHANNELS ? wide : half;
    small_product<float, false>(rows.count - blind, count, width, weights + blind * PAGE_TOKENS, PAGE_TOKENS,
                                values + first, wide, state.mixed + blind * wide + first, wide, true);
  }

  void finish(const AttentionTask& task, const Rows& rows, Channels channels, const State& state) const {
    const int64_t half = shape.wide / 2;
    const int64_t first = channels == HIGH_CHANNELS ? half : 0;
    const int64_t end = channels == LOW_CHANNELS && half < head_dim ? half : head_dim;
    if (first >= end) return;
    for (int64_t r = 0; r < rows.count; ++r) {
      const float total = sum_lanes(load(state.totals + r * VL));
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
      map_lanes(state.mixed + r * shape.wide + first, out + place(task, rows, r) + first, end - first,
                [&](vf x) { return x * inverse; });
    }
  }

  /** Where a thread works on a task: a tile (of keys, then of values), a page's scores, queries. */
  struct Space {
    float *tile, *scores, *queries;
    State state;
  };

  /** Space for so many rows, of the calling thread; its tile is null where there is no memory. */
  Space space_for(int64_t rows) const {
    const int64_t floats = rows * (shape.wide + PAGE_TOKENS + VL + 1 + head_dim) + PAGE_TOKENS * shape.wide + VL;
    float* const tile = scratch_of<float>(5, floats);
    if (!tile) return {};
    float* const mixed = tile + PAGE_TOKENS * shape.wide;
    float* const scores = mixed + rows * shape.wide;
    float* const totals = scores + rows * PAGE_TOKENS;
    float* const queries = totals + rows * VL;
    return {tile, scores, queries, {queries + rows * head_dim, totals, mixed}};
  }

  /** A whole task on one thread. False: no memory. */
  bool whole(const AttentionTask& task) const {
    const Rows rows = rows_of(task);
    const Space space = space_for(rows.count);
    if (!space.tile) return false;
    const auto [keys, scores, queries, state] = space;
    fetch(head_of(task, rows.first_page), shape.bytes);
    take_queries(task, rows, queries);
    begin(rows, state);
    for (int64_t page = rows.first_page; page < rows.end_page; ++page) {
      score(task, rows, page, queries, keys, scores, PAGE_TOKENS);
      // One tile for keys and then values: two would not fit the first-level cache.
      mix(task, rows, page, ALL_CHANNELS, scores, PAGE_TOKENS, scores, keys, state);
    }
    finish(task, rows, ALL_CHANNELS, state);
    return true;
  }

  /** One page's scores of a task, for `half` of it later. */
  bool score_page(const AttentionTask& task, int64_t page, float* scores, int64_t ld) const {
    const Rows rows = rows_of(task);
    float* const keys = scratch_of<float>(5, PAGE_TOKENS * head_dim + rows.count * head_dim + VL);
    if (!keys) return false;
    float* const queries = keys + PAGE_TOKENS * head_dim;
    take_queries(task, rows, queries);
    score(task, rows, page, queries, keys, scores + (page - rows.first_page) * PAGE_TOKENS, ld);
    return true;
  }

  /** Half the channels of a task whose scores are known, rows `ld` apart. */
  bool half(const AttentionTask& task, Channels channels, const float* scores, int64_t ld) const {
    const Rows rows = rows_of(task);
    const Space space = space_for(rows.count);
    if (!space.tile) return false;
    const State& state = space.state;
    const uint8_t* const first = head_of(task, rows.first_page);
    fetch_grids(first, shape, false);
    fetch(first + shape.values, PAGE_TOKENS * shape.value_row);
    begin(rows, state);
    for (int64_t page = rows.first_page; page < rows.end_page; ++page)
      mix(task, rows, page, channels, scores + (page - rows.first_page) * PAGE_TOKENS, ld, space.scores, space.tile,
          state);
    finish(task, rows, channels, state);
    return true;
  }
};

/** A page of a task. */
struct ScoreTask {
  int32_t task, page;
};

/**
 * q: [rows, heads·head_dim] as cache_write left it; out: the same shape. `table`, `pages`, `cache`, `page_bytes`, `bits`:
 * as for cache_write, which has stored this step's keys and values. window: keys further back are not seen; 0: all are.
 * chunk: keys of earlier chunks of positions are not seen; 0: all are. slopes: see AttentionShape, or null.
 * sinks: of each head a score that takes part in softmax and mixes nothing, or null.
 */
inline int paged_attention(int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads, int64_t kv_heads,
                           int64_t head_dim, int64_t window, int64_t chunk, float scale, float softcap, const float* q,
                           int32_t bits, const uint8_t* cache, int64_t page_bytes, float* out, const float* sinks,
                           const float* slopes) {
  const CacheChunk* const list = reinterpret_cast<const CacheChunk*>(table);
  const PagedAttention attention{list,
                                 pages,
                                 heads,
                                 head_dim,
                                 window,
                                 chunk,
                                 scale,
                                 q,
                                 cache,
                                 page_bytes,
                                 out,
                                 CacheShape(head_dim, bits),
                                 AttentionShape{1, heads, kv_heads, head_dim, 0, 0, 0, 0, true, scale, softcap, slopes},
                                 sinks};
  const int64_t group = (heads + kv_heads - 1) / kv_heads;
  const int64_t most = TASK_ROWS / group > 0 ? TASK_ROWS / group : 1;
  int64_t count = 0, longest = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    count += (list[c].rows + most - 1) / most * kv_heads;
    if (list[c].rows > longest) longest = list[c].rows;
  }
  AttentionTask* const tasks = scratch_of<AttentionTask>(4, count);
  if (!tasks) return fail(PL_OUT_OF_MEMORY, "paged_attention: no memory for %lld tasks", (long long)count);
  int64_t made = 0;
  // Later queries see more keys; they go first so that the threads finish together.
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t end = list[c].rows; end > 0; end -= most)
      for (int64_t h = 0; h < kv_heads; ++h)
        tasks[made++] = AttentionTask{static_cast<int32_t>(c), static_cast<int32_t>(h),
                                      static_cast<int32_t>(end > most ? end - most : 0), static_cast<int32_t>(end)};
  // One token per sequence, and a last turn of tasks that leaves a tenth of the threads' time unused or more: the tasks of
  // that turn are cut.
  const int64_t threads = thread_count(), turns = (count + threads - 1) / threads;
  const bool cuts = longest == 1 && 10 * turns * threads > 11 * count;
  const int64_t whole = cuts ? (turns - 1) * threads : count, rest = count - whole;
  int64_t pieces = 0, ld = 0;
  for (int64_t i = whole; i < count; ++i) {
    const auto rows = attention.rows_of(tasks[i]);
    pieces += rows.end_page - rows.first_page;
    if ((rows.end_page - rows.first_page) * PAGE_TOKENS > ld) ld = (rows.end_page - rows.first_page) * PAGE_TOKENS;
  }
  ScoreTask* const score_tasks = scratch_of<ScoreTask>(3, pieces + 1);
  float* const scores = scratch_of<float>(6, rest * group * ld + VL);
  if (!score_tasks || !scores)
    return fail(PL_OUT_OF_MEMORY, "paged_attention: no memory for the scores of %lld pages", (long long)pieces);
  ScoreTask* next = score_tasks;
  for (int64_t i = whole; i < count; ++i) {
    const auto rows = attention.rows_of(tasks[i]);
    for (int64_t page = rows.first_page; page < rows.end_page; ++page)
      *next++ = ScoreTask{static_cast<int32_t>(i), static_cast<int32_t>(page)};
  }
  const auto scores_of = [&](int64_t task) { return scores + (task - whole) * group * ld; };
  std::atomic<bool> starved{false};
  parallel_for_dynamic(whole + pieces, [&](int64_t index) {
    bool done;
    if (index < whole) {
      done = attention.whole(tasks[index]);
    } else {
      const ScoreTask& piece = score_tasks[index - whole];
      done = attention.score_page(tasks[piece.task], piece.page, scores_of(piece.task), ld);
    }
    if (!done) starved.store(true, std::memory_order_relaxed);
  });
  parallel_for_dynamic(2 * rest, [&](int64_t index) {
    const int64_t i = whole + index / 2;
    if (!attention.half(tasks[i], index % 2 ? HIGH_CHANNELS : LOW_CHANNELS, scores_of(i), ld))
      starved.store(true, std::memory_order_relaxed);
  });
  if (starved.load()) return fail(PL_OUT_OF_MEMORY, "paged_attention: no memory for a tile");
  return 0;
}

}  // namespace planish::PL_LEVEL
