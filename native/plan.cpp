// A step of the engine as one foreign call: a list of kernel calls, prepared once by the caller, of which only the
// number of rows changes. It knows the kernels' parameters and nothing of the model that the list describes.
//
// A call is PLAN_WORDS words of 64 bits: the operation, then its kernel's parameters in their order, pointers as addresses,
// reals as the bits of a double; `rows` and `chunks` are left out, they are the step's, and a `length` is a row's part.
#include <time.h>

#include "abi/plan.h"

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

int pl_run_plan(const int64_t* plan, int64_t calls, int64_t rows, int64_t chunks, double* seconds) {
  double before = seconds ? now() : 0;
  for (int64_t i = 0; i < calls; i++) {
    const int64_t* const call = plan + i * planish::PLAN_WORDS;
    if (const int code = planish::run_call(call, rows, chunks)) return code;
    if (seconds) {
      const double after = now();
      seconds[call[0]] += after - before;
      before = after;
    }
  }
  return 0;
}
