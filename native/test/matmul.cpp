// Matrix products at awkward sizes, every orientation and type, in exactly sized blocks.
#include "driver.h"

namespace {

int product(int64_t m, int64_t n, int64_t k, int64_t batch, int a_flags, int b_flags, int flags, bool extras) {
  const auto a = pattern<float>(batch * m * k), b = pattern<float>(batch * k * n);
  const auto a_codes = pattern<int8_t>(batch * m * k), b_codes = pattern<int8_t>(batch * k * n);
  const auto k_scale = pattern<float>(k), n_scale = pattern<float>(n), bias = pattern<float>(n);
  auto out = pattern<float>(batch * m * n);
  const void* left = a_flags & 2 ? static_cast<const void*>(a_codes.data()) : a.data();
  const void* right = b_flags & 2 ? static_cast<const void*>(b_codes.data()) : b.data();
  return pl_matmul(m, n, k, batch, left, 0, a_flags & 1 ? m : k, m * k, a_flags, right, 0, b_flags & 1 ? k : n, k * n,
                   b_flags, out.data(), 0, n, m * n, extras ? k_scale.data() : nullptr,
                   extras ? n_scale.data() : nullptr, extras ? bias.data() : nullptr, extras ? 0.5 : 1.0, flags);
}

const int64_t SIZES[][3] = {{1, 1, 1},    {1, 17, 33},  {3, 65, 17},  {5, 3, 255},  {8, 33, 1},    {9, 9, 9},
                            {13, 31, 64}, {17, 1, 130}, {33, 33, 65}, {12, 32, 16}, {31, 47, 129}, {67, 130, 1030}};

DriverCase real_products("real matrix products", [] {
  for (const auto& size : SIZES)
    for (int a_flags = 0; a_flags < 4; a_flags++)
      for (int b_flags = 0; b_flags < 4; b_flags++)
        for (int flags = 0; flags < 4; flags++) {
          const int64_t batch = size[0] * size[1] * size[2] < 4000 ? 3 : 1;
          if (const int code =
                  product(size[0], size[1], size[2], batch, a_flags, b_flags, flags, (a_flags + flags) % 2))
            return code;
        }
  return product(20, 20, 0, 1, 0, 0, 0, true);
});

DriverCase integer_products("integer matrix products", [] {
  for (const auto& size : SIZES) {
    const int64_t m = size[0], n = size[1], k = size[2];
    const auto a = pattern<int8_t>(m * k), b = pattern<int8_t>(n * k);
    const auto a_scale = pattern<float>(m), b_scale = pattern<float>(n), bias = pattern<float>(n);
    auto out = pattern<float>(m * n);
    // Weights of 4 bits too, which have a path of their own at avx2.
    auto small = b;
    for (int8_t& code : small) code = static_cast<int8_t>(code / 8);
    for (const float* shift : {static_cast<const float*>(nullptr), bias.data()})
      for (const int8_t* weights : {b.data(), static_cast<const int8_t*>(small.data())})
        if (const int code =
                pl_int_matmul(m, n, k, a.data(), a_scale.data(), weights, b_scale.data(), shift, out.data()))
          return code;
  }
  return 0;
});

}  // namespace
