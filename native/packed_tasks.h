// How products with packed weights are shared out: what both kinds of them (packed_matmul.h, group_matmul.h) have in common.
namespace planish {
namespace PL_LEVEL {

constexpr int64_t MAX_PARTS = 8;

template <class T>
inline T* pointer_of(int64_t word) {
  return reinterpret_cast<T*>(static_cast<intptr_t>(word));
}

// Multiply-adds below which a call stays on its thread: waking another takes some microseconds.
constexpr int64_t PACKED_PARALLEL_WORK = 1 << 16;
// Of packed A that a block of rows may have.
constexpr int64_t PACKED_BLOCK_BYTES = 256 << 10;

// source[p]: which of the distinct activations part p reads; returns their number.
template <class Part>
inline int distinct_activations(const Part* parts, int64_t count, int* source) {
  int distinct = 0;
  for (int p = 0; p < count; p++) {
    source[p] = distinct;
    for (int q = 0; q < p; q++)
      if (parts[q].a == parts[p].a) source[p] = source[q];
    if (source[p] == distinct) distinct++;
  }
  return distinct;
}

// Blocks of row panels, so that a block's packed A (panel_bytes each) stays in the second-level cache.
inline int64_t blocks_of_rows(int64_t row_panels, int64_t panel_bytes) {
  int64_t block_rows = panel_bytes > 0 ? PACKED_BLOCK_BYTES / panel_bytes : row_panels;
  if (block_rows < 1) block_rows = 1;
  return ceil_div(row_panels, block_rows);
}

// Hands out block(part, from, to, row_begin, row_end): panels [from, to) of a part by row panels [row_begin, row_end).
// `run`: panels that share a loop.
template <class Part, class F>
inline void share_panels(int threads, const Part* parts, int64_t count_parts, int64_t row_panels, int64_t row_blocks,
                         int64_t run, const F& block) {
  int64_t panels = 0;
  for (int p = 0; p < count_parts; p++) panels += ceil_div(parts[p].n, NR);
  // Enough pieces that threads which were held up elsewhere do not hold up the rest.
  int64_t pieces = threads == 1 ? 1 : ceil_div(4 * threads, row_blocks);
  const int64_t runs = ceil_div(panels, run);
  if (pieces > runs) pieces = runs;
  const auto multiply = [&](int64_t task) {
    const int64_t row_block = task % row_blocks, piece = task / row_blocks;
    int64_t begin = runs * piece / pieces * run, end = runs * (piece + 1) / pieces * run;
    if (end > panels) end = panels;
    const int64_t row_begin = row_panels * row_block / row_blocks, row_end = row_panels * (row_block + 1) / row_blocks;
    for (int p = 0; p < count_parts && begin < end; p++) {
      const int64_t here = ceil_div(parts[p].n, NR);
      const int64_t from = begin < here ? begin : here, to = end < here ? end : here;
      if (from < to) block(p, from, to, row_begin, row_end);
      begin = begin > here ? begin - here : 0;
      end -= here;
      if (end <= 0) break;
    }
  };
  if (threads > 1 && row_blocks == 1) {
    parallel_for_stretches(pieces, multiply);
  } else {
    tasks(threads > 1, row_blocks * pieces, multiply);
  }
}

}  // namespace PL_LEVEL
}  // namespace planish
