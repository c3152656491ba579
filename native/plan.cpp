// A step of the engine as one foreign call: a list of kernel calls, prepared once by the caller, of which only the
// number of rows changes. It knows the kernels' parameters and nothing of the model that the list describes.
//
// A call is PLAN_WORDS words of 64 bits: the operation, then its kernel's parameters in the order of kernel_list.h,
// pointers as addresses, reals as the bits of a double; `rows` and `chunks` parameters are left out, they are the step's.
#include <time.h>

#include <cstring>

#include "planish.h"
#include "pool.h"

namespace {

constexpr int64_t PLAN_WORDS = 24;

enum Operation : int64_t {
  EMBED = 0,
  POSITIONS = 1,
  SITE = 2,
  PRODUCT = 3,
  CACHE = 4,
  ATTENTION = 5,
  NORM = 6,
  FLATTEN = 7,
  OPERATIONS = 8,
};

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Reads the words of one call in order.
struct Words {
  const int64_t* at;
  int64_t integer() { return *at++; }
  int32_t small() { return static_cast<int32_t>(*at++); }
  float real() {
    double value;
    memcpy(&value, at++, sizeof value);
    return static_cast<float>(value);
  }
  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(static_cast<intptr_t>(*at++));
  }
};

int run(int64_t operation, Words w, int64_t rows, int64_t chunks) {
  // Braced initialization evaluates in order, which function arguments do not.
  switch (operation) {
    case EMBED: {
      struct { int32_t kind; int64_t n, k; const uint8_t* packed; const int32_t* ids; float* out; } p{
          w.small(), w.integer(), w.integer(), w.pointer<const uint8_t>(), w.pointer<const int32_t>(), w.pointer<float>()};
      return pl_packed_rows(p.kind, p.n, p.k, p.packed, p.ids, rows, p.out);
    }
    case POSITIONS: {
      // x += table[ids]
      struct { const float* table; int64_t tableRows, cols; const int32_t* ids; float *space, *x; } p{
          w.pointer<const float>(), w.integer(), w.integer(), w.pointer<const int32_t>(), w.pointer<float>(), w.pointer<float>()};
      if (const int code = pl_gather_rows(p.table, p.tableRows, p.cols, p.ids, rows, p.space)) return code;
      for (int64_t i = 0; i < rows * p.cols; i++) p.x[i] += p.space[i];
      return 0;
    }
    case SITE: {
      struct {
        int32_t input, op;
        const float *x, *x2;
        int64_t nLeft, nRight;
        const float *gain, *bias;
        float epsilon;
        const float *left, *right;
        int32_t bits;
        int64_t sets, capacity;
        const float* clips;
        int8_t* codes;
        float *scale, *out;
      } p{w.small(), w.small(), w.pointer<const float>(), w.pointer<const float>(), w.integer(), w.integer(),
          w.pointer<const float>(), w.pointer<const float>(), w.real(), w.pointer<const float>(), w.pointer<const float>(),
          w.small(), w.integer(), w.integer(), w.pointer<const float>(), w.pointer<int8_t>(), w.pointer<float>(), w.pointer<float>()};
      return pl_site(p.input, p.op, p.x, p.x2, rows, p.nLeft, p.nRight, p.gain, p.bias, p.epsilon, p.left, p.right, p.bits,
                     p.sets, p.capacity, p.clips, p.codes, p.scale, p.out);
    }
    case PRODUCT: {
      struct { int32_t kind; int64_t k, parts; const int64_t* table; int32_t accumulate; } p{
          w.small(), w.integer(), w.integer(), w.pointer<const int64_t>(), w.small()};
      return pl_packed_matmul_parts(p.kind, rows, p.k, p.parts, p.table, p.accumulate);
    }
    case CACHE: {
      struct {
        const int32_t *table, *pages;
        int64_t heads, kvHeads, headDim;
        float *q, *k, *v;
        const float *qGain, *kGain;
        float epsilon;
        const float *cosine, *sine, *qMatrix, *kMatrix;
        int32_t queryBits, bits;
        const float* clips;
        uint8_t* cache;
        int64_t pageBytes;
      } p{w.pointer<const int32_t>(), w.pointer<const int32_t>(), w.integer(), w.integer(), w.integer(), w.pointer<float>(),
          w.pointer<float>(), w.pointer<float>(), w.pointer<const float>(), w.pointer<const float>(), w.real(),
          w.pointer<const float>(), w.pointer<const float>(), w.pointer<const float>(), w.pointer<const float>(), w.small(),
          w.small(), w.pointer<const float>(), w.pointer<uint8_t>(), w.integer()};
      return pl_cache_write(chunks, p.table, p.pages, p.heads, p.kvHeads, p.headDim, p.q, p.k, p.v, p.qGain, p.kGain,
                            p.epsilon, p.cosine, p.sine, p.qMatrix, p.kMatrix, p.queryBits, p.bits, p.clips, p.cache,
                            p.pageBytes);
    }
    case ATTENTION: {
      struct {
        const int32_t *table, *pages;
        int64_t heads, kvHeads, headDim, window;
        float scale;
        const float* q;
        int32_t bits;
        const uint8_t* cache;
        int64_t pageBytes;
        float* out;
      } p{w.pointer<const int32_t>(), w.pointer<const int32_t>(), w.integer(), w.integer(), w.integer(), w.integer(), w.real(),
          w.pointer<const float>(), w.small(), w.pointer<const uint8_t>(), w.integer(), w.pointer<float>()};
      return pl_paged_attention(chunks, p.table, p.pages, p.heads, p.kvHeads, p.headDim, p.window, p.scale, p.q, p.bits,
                                p.cache, p.pageBytes, p.out);
    }
    case NORM: {
      struct { int32_t kind; const float* x; int64_t cols; const float *gain, *bias; float epsilon; float* out; } p{
          w.small(), w.pointer<const float>(), w.integer(), w.pointer<const float>(), w.pointer<const float>(), w.real(),
          w.pointer<float>()};
      return pl_norm(p.kind, p.x, rows, p.cols, p.gain, p.bias, p.epsilon, p.out);
    }
    case FLATTEN: {
      struct {
        const float* x;
        int64_t cols;
        int32_t bits;
        float step;
        const float* factor;
        int64_t extras;
        const int32_t *channel, *part;
        int64_t stride;
        int8_t* codes;
        float* scale;
      } p{w.pointer<const float>(), w.integer(), w.small(), w.real(), w.pointer<const float>(), w.integer(),
          w.pointer<const int32_t>(), w.pointer<const int32_t>(), w.integer(), w.pointer<int8_t>(), w.pointer<float>()};
      return pl_flatten_rows(p.x, rows, p.cols, p.bits, p.step, p.factor, p.extras, p.channel, p.part, p.stride, nullptr,
                             p.codes, p.scale, nullptr);
    }
    default:
      return planish::fail(PL_BAD_ARGUMENT, "plan: unknown operation %lld", static_cast<long long>(operation));
  }
}

}  // namespace

int pl_run_plan(const int64_t* plan, int64_t calls, int64_t rows, int64_t chunks, double* seconds) {
  double before = seconds ? now() : 0;
  for (int64_t i = 0; i < calls; i++) {
    const int64_t* const call = plan + i * PLAN_WORDS;
    if (const int code = run(call[0], Words{call + 1}, rows, chunks)) return code;
    if (seconds) {
      const double after = now();
      seconds[call[0]] += after - before;
      before = after;
    }
  }
  return 0;
}
