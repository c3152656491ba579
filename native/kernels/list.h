// The kernels of this folder, in the form that kernel_list.h describes (which includes this file). Parameters are
// documented where each kernel stands; absent buffers are null pointers.
// No include guard on purpose.

// quantize.h
PL_KERNEL(quantize_rows, (const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clipMax,
          const float* clipMin, float scaleFloor, const float* offset, int8_t* codes, float* scale),
          (x, rows, cols, bits, clipMax, clipMin, scaleFloor, offset, codes, scale))
PL_KERNEL(quantize_rows_backward, (const float* x, int64_t rows, int64_t cols, int32_t bits,
          const float* clipMax, const float* clipMin, float scaleFloor, const float* offset, const int8_t* codes,
          const float* scale, const float* grad, float* gradX, float* gradClipMax, float* gradClipMin,
          float* gradOffset),
          (x, rows, cols, bits, clipMax, clipMin, scaleFloor, offset, codes, scale, grad, gradX, gradClipMax,
          gradClipMin, gradOffset))
PL_KERNEL(dequantize_rows, (const int8_t* codes, const float* scale, int64_t rows, int64_t cols, float* out),
          (codes, scale, rows, cols, out))
PL_KERNEL(fake_quantize_asym, (const float* x, int64_t rows, int64_t cols, int32_t bits,
          const float* clipMax, const float* clipMin, float* out),
          (x, rows, cols, bits, clipMax, clipMin, out))
PL_KERNEL(fake_quantize_asym_backward, (const float* x, int64_t rows, int64_t cols, int32_t bits,
          const float* clipMax, const float* clipMin, const float* grad, float* gradX, float* gradClipMax,
          float* gradClipMin),
          (x, rows, cols, bits, clipMax, clipMin, grad, gradX, gradClipMax, gradClipMin))
PL_KERNEL(clip_rows, (const float* x, int64_t rows, int64_t cols, const float* clipMax,
          const float* clipMin, float* out),
          (x, rows, cols, clipMax, clipMin, out))
PL_KERNEL(clip_rows_backward, (const float* x, int64_t rows, int64_t cols, const float* clipMax,
          const float* clipMin, const float* grad, float* gradX, float* gradClipMax, float* gradClipMin),
          (x, rows, cols, clipMax, clipMin, grad, gradX, gradClipMax, gradClipMin))

// flatten.h
PL_KERNEL(flatten_rows, (const float* x, int64_t rows, int64_t cols, int32_t bits, float step, const float* factor,
          int64_t extras, const int32_t* channel, const int32_t* part, int64_t stride, const int32_t* copies,
          int8_t* codes, float* scale, int32_t* clipped),
          (x, rows, cols, bits, step, factor, extras, channel, part, stride, copies, codes, scale, clipped))

// kronecker.h
PL_KERNEL(kronecker, (const float* x, int64_t rows, int64_t nLeft, int64_t nRight, const float* left,
          const float* right, const float* diag, float* out),
          (x, rows, nLeft, nRight, left, right, diag, out))
PL_KERNEL(kronecker_backward, (const float* x, int64_t rows, int64_t nLeft, int64_t nRight,
          const float* left, const float* right, const float* diag, const float* grad, float* gradX, float* gradLeft,
          float* gradRight, float* gradDiag),
          (x, rows, nLeft, nRight, left, right, diag, grad, gradX, gradLeft, gradRight, gradDiag))

// norm.h
PL_KERNEL(norm, (int32_t kind, const float* x, int64_t rows, int64_t cols, const float* gain,
          const float* bias, float epsilon, float* out),
          (kind, x, rows, cols, gain, bias, epsilon, out))
PL_KERNEL(norm_backward, (int32_t kind, const float* x, int64_t rows, int64_t cols, const float* gain,
          float epsilon, const float* grad, float* gradX, float* gradGain, float* gradBias),
          (kind, x, rows, cols, gain, epsilon, grad, gradX, gradGain, gradBias))
PL_KERNEL(rope, (const float* x, int64_t rows, int64_t heads, int64_t headDim, int64_t period,
          const float* cosine, const float* sine, int32_t inverse, float* out),
          (x, rows, heads, headDim, period, cosine, sine, inverse, out))
PL_KERNEL(gather_rows, (const float* table, int64_t tableRows, int64_t cols, const int32_t* ids,
          int64_t rows, float* out),
          (table, tableRows, cols, ids, rows, out))

// attention.h
PL_KERNEL(attention, (int64_t batch, int64_t heads, int64_t kvHeads, int64_t headDim, int64_t queryLength,
          int64_t keyLength, int32_t causal, int64_t window, float scale, const float* q, int64_t qBatch,
          int64_t qTime, int64_t qHead, const float* k, const float* v, int64_t kvBatch, int64_t kvTime,
          int64_t kvHead, float* out, int64_t outBatch, int64_t outTime, int64_t outHead, float* logSumExp,
          int32_t half),
          (batch, heads, kvHeads, headDim, queryLength, keyLength, causal, window, scale, q, qBatch, qTime, qHead, k,
          v, kvBatch, kvTime, kvHead, out, outBatch, outTime, outHead, logSumExp, half))

// attention_backward.h
PL_KERNEL(attention_backward, (int64_t batch, int64_t heads, int64_t kvHeads, int64_t headDim,
          int64_t queryLength, int64_t keyLength, int32_t causal, int64_t window, float scale, const float* q,
          int64_t qBatch, int64_t qTime, int64_t qHead, const float* k, const float* v, int64_t kvBatch,
          int64_t kvTime, int64_t kvHead, const float* out, const float* grad, int64_t outBatch, int64_t outTime,
          int64_t outHead, const float* logSumExp, float* gradQ, float* gradK, float* gradV, int32_t half),
          (batch, heads, kvHeads, headDim, queryLength, keyLength, causal, window, scale, q, qBatch, qTime, qHead, k,
          v, kvBatch, kvTime, kvHead, out, grad, outBatch, outTime, outHead, logSumExp, gradQ, gradK, gradV, half))

// elementwise.h
PL_KERNEL(unary, (int32_t op, const float* x, int64_t length, float* out), (op, x, length, out))
PL_KERNEL(unary_backward, (int32_t op, const float* x, int64_t length, const float* grad, float* gradX),
          (op, x, length, grad, gradX))
PL_KERNEL(binary, (int32_t op, int64_t rows, int64_t cols, const float* a, const float* b,
          int32_t broadcast, float* out),
          (op, rows, cols, a, b, broadcast, out))
PL_KERNEL(reduce, (int64_t rows, int64_t cols, const float* x, const float* y, int32_t keep, double alpha,
          float* out),
          (rows, cols, x, y, keep, alpha, out))
PL_KERNEL(scale, (const float* x, int64_t length, float alpha, int32_t accumulate, float* out),
          (x, length, alpha, accumulate, out))
PL_KERNEL(silu_mul, (const float* gate, const float* up, int64_t length, float* out), (gate, up, length, out))
PL_KERNEL(silu_mul_backward, (const float* gate, const float* up, int64_t length, const float* grad,
          float* gradGate, float* gradUp),
          (gate, up, length, grad, gradGate, gradUp))
PL_KERNEL(mse, (const float* a, const float* b, int64_t length, float* loss), (a, b, length, loss))
PL_KERNEL(nll, (const float* logits, int64_t rows, int64_t cols, const int32_t* targets, float* out),
          (logits, rows, cols, targets, out))
PL_KERNEL(softmax_kl, (const float* teacher, const float* student, int64_t rows, int64_t cols, float* kl,
          float* gradStudent, float gradScale),
          (teacher, student, rows, cols, kl, gradStudent, gradScale))
PL_KERNEL(adamw, (float* param, const float* grad, float* moment1, float* moment2, int64_t length,
          int64_t step, double learningRate, double beta1, double beta2, double epsilon, double weightDecay,
          double gradScale, double bound),
          (param, grad, moment1, moment2, length, step, learningRate, beta1, beta2, epsilon, weightDecay, gradScale,
          bound))

// linalg.h
PL_KERNEL(inverse, (const float* x, int64_t n, float* out), (x, n, out))
PL_KERNEL(cayley, (const float* seed, int64_t n, float* out), (seed, n, out))
PL_KERNEL(cayley_backward, (const float* seed, int64_t n, const float* q, const float* grad,
          float* gradSeed),
          (seed, n, q, grad, gradSeed))

// gptq.h
PL_KERNEL(gptq_factor, (int64_t n, const double* moment, const int32_t* order, double damp, double* factor,
          int32_t* factored),
          (n, moment, order, damp, factor, factored))
PL_KERNEL(gptq_round, (int64_t rows, int64_t cols, const double* weight, const double* scale, int64_t scales,
          int32_t bits, const double* factor, const int32_t* order, int8_t* codes),
          (rows, cols, weight, scale, scales, bits, factor, order, codes))

// site.h
PL_KERNEL(site, (int32_t input, int32_t op, const float* x, const float* x2, int64_t rows, int64_t nLeft,
          int64_t nRight, const float* gain, const float* bias, float epsilon, const float* left, const float* right,
          int32_t bits, int64_t sets, int64_t capacity, const float* clips, int8_t* codes, float* scale, float* out),
          (input, op, x, x2, rows, nLeft, nRight, gain, bias, epsilon, left, right, bits, sets, capacity, clips, codes, scale,
          out))

// cache.h, paged_attention.h
PL_KERNEL(cache_head_bytes, (int64_t headDim, int32_t bits, int64_t* bytes), (headDim, bits, bytes))
PL_KERNEL(cache_write, (int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads, int64_t kvHeads,
          int64_t headDim, float* q, float* k, float* v, const float* qGain, const float* kGain, float epsilon,
          const float* cosine, const float* sine, const float* qMatrix, const float* kMatrix, int32_t queryBits,
          int32_t bits, const float* clips, uint8_t* cache, int64_t pageBytes),
          (chunks, table, pages, heads, kvHeads, headDim, q, k, v, qGain, kGain, epsilon, cosine, sine, qMatrix,
          kMatrix, queryBits, bits, clips, cache, pageBytes))
PL_KERNEL(paged_attention, (int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads,
          int64_t kvHeads, int64_t headDim, int64_t window, float scale, const float* q, int32_t bits,
          const uint8_t* cache, int64_t pageBytes, float* out),
          (chunks, table, pages, heads, kvHeads, headDim, window, scale, q, bits, cache, pageBytes, out))
