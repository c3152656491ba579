// Exercises the kernels at awkward sizes under AddressSanitizer and UndefinedBehaviorSanitizer, at every level that
// this machine runs. Results are checked by the TypeScript tests; here only memory and undefined behaviour count.
#include <cstdio>
#include <cstring>
#include <string>

#include "driver.h"

// GCC's fake stack, which finds uses after return, aligns 64-byte vectors to 32 bytes (GCC bug 110027): every AVX-512
// kernel with a vector on its stack would fault from GCC 13 on, where it is on by default.
extern "C" const char* __asan_default_options() { return "detect_stack_use_after_return=0"; }

int main() {
  const std::string levels = pl_levels();
  for (size_t begin = 0; begin < levels.size();) {
    const size_t end = levels.find(',', begin) == std::string::npos ? levels.size() : levels.find(',', begin);
    const std::string level = levels.substr(begin, end - begin);
    begin = end + 1;
    if (pl_select(level.c_str()) != 0) {
      fprintf(stderr, "%s\n", pl_last_error());
      return 1;
    }
    for (int threads = 1; threads <= 3; threads += 2) {
      if (pl_set_threads(threads) != threads) return 1;
      for (const DriverCase* test = driver_cases(); test; test = test->next) {
        if (test->run() != 0) {
          fprintf(stderr, "%s failed at %s with %d threads: %s\n", test->name, level.c_str(), threads, pl_last_error());
          return 1;
        }
      }
    }
    printf("%s: ok\n", level.c_str());
  }
  return 0;
}
