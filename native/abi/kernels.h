// Every kernel, once: PL_KERNEL(name, (parameters), (arguments)). Made from src/backend/contract/abi.ts by `npm run generate:abi`; change that.
// No include guard on purpose.

PL_KERNEL(peak_f32,
          (int64_t iterations, double* operations),
          (iterations, operations))
PL_KERNEL(peak_bf16,
          (int64_t iterations, double* operations),
          (iterations, operations))
PL_KERNEL(peak_i8,
          (int64_t iterations, double* operations),
          (iterations, operations))
PL_KERNEL(peak_i4,
          (int64_t iterations, double* operations),
          (iterations, operations))
PL_KERNEL(read_memory,
          (const float* x, int64_t length, float* sink),
          (x, length, sink))
PL_KERNEL(matmul,
          (int64_t m, int64_t n, int64_t k, int64_t batch, const void* a, int64_t a_offset, int64_t a_stride,
          int64_t a_batch, int32_t a_flags, const void* b, int64_t b_offset, int64_t b_stride, int64_t b_batch,
          int32_t b_flags, float* out, int64_t out_offset, int64_t out_stride, int64_t out_batch,
          const float* k_scale, const float* n_scale, const float* bias, double alpha, int32_t flags),
          (m, n, k, batch, a, a_offset, a_stride, a_batch, a_flags, b, b_offset, b_stride, b_batch, b_flags, out,
          out_offset, out_stride, out_batch, k_scale, n_scale, bias, alpha, flags))
PL_KERNEL(int_matmul,
          (int64_t m, int64_t n, int64_t k, const int8_t* a, const float* a_scale, const int8_t* b,
          const float* b_scale, const float* bias, float* out),
          (m, n, k, a, a_scale, b, b_scale, bias, out))
PL_KERNEL(packed_bytes,
          (int32_t kind, int64_t n, int64_t k, int64_t* bytes),
          (kind, n, k, bytes))
PL_KERNEL(pack_weights,
          (int32_t kind, int64_t n, int64_t k, const void* source, uint8_t* packed),
          (kind, n, k, source, packed))
PL_KERNEL(packed_rows,
          (int32_t kind, int64_t n, int64_t k, const uint8_t* packed, const int32_t* ids, int64_t rows, float* out),
          (kind, n, k, packed, ids, rows, out))
PL_KERNEL(packed_matmul_parts,
          (int32_t kind, int64_t rows, int64_t k, int64_t parts, const int64_t* table, int32_t accumulate),
          (kind, rows, k, parts, table, accumulate))
PL_KERNEL(packed_matmul,
          (int32_t kind, int64_t m, int64_t n, int64_t k, const void* a, const float* a_scale, const uint8_t* packed,
          const float* b_scale, const float* bias, float* out, int32_t accumulate),
          (kind, m, n, k, a, a_scale, packed, b_scale, bias, out, accumulate))
PL_KERNEL(group_bytes,
          (int32_t kind, int64_t n, int64_t k, int64_t group, int64_t form, int64_t* bytes),
          (kind, n, k, group, form, bytes))
PL_KERNEL(pack_groups,
          (int32_t kind, int64_t n, int64_t k, int64_t group, int64_t form, const int8_t* codes, const float* scale,
          const float* offset, uint8_t* packed),
          (kind, n, k, group, form, codes, scale, offset, packed))
PL_KERNEL(group_rows,
          (int32_t kind, int64_t n, int64_t k, int64_t group, int64_t form, const uint8_t* packed, const int32_t* ids,
          int64_t rows, float* out),
          (kind, n, k, group, form, packed, ids, rows, out))
PL_KERNEL(group_matmul_parts,
          (int32_t kind, int64_t rows, int64_t k, int64_t group, int64_t span, int64_t parts, const int64_t* table,
          int32_t accumulate),
          (kind, rows, k, group, span, parts, table, accumulate))
PL_KERNEL(group_matmul,
          (int32_t kind, int64_t m, int64_t n, int64_t k, int64_t group, int64_t form, int64_t span, const int8_t* a,
          const float* a_scale, const float* a_offset, const uint8_t* packed, const float* bias, float* out,
          int32_t accumulate),
          (kind, m, n, k, group, form, span, a, a_scale, a_offset, packed, bias, out, accumulate))
#if !defined(PL_PRODUCTS_ONLY)
PL_KERNEL(quantize_rows,
          (const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max, const float* clip_min,
          float scale_floor, const float* offset, int8_t* codes, float* scale),
          (x, rows, cols, bits, clip_max, clip_min, scale_floor, offset, codes, scale))
PL_KERNEL(quantize_rows_backward,
          (const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max, const float* clip_min,
          float scale_floor, const float* offset, const int8_t* codes, const float* scale, const float* grad,
          float* grad_x, float* grad_clip_max, float* grad_clip_min, float* grad_offset),
          (x, rows, cols, bits, clip_max, clip_min, scale_floor, offset, codes, scale, grad, grad_x, grad_clip_max,
          grad_clip_min, grad_offset))
PL_KERNEL(dequantize_rows,
          (const int8_t* codes, const float* scale, int64_t rows, int64_t cols, float* out),
          (codes, scale, rows, cols, out))
PL_KERNEL(fake_quantize_asym,
          (const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max, const float* clip_min,
          float* out),
          (x, rows, cols, bits, clip_max, clip_min, out))
PL_KERNEL(fake_quantize_asym_backward,
          (const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max, const float* clip_min,
          const float* grad, float* grad_x, float* grad_clip_max, float* grad_clip_min),
          (x, rows, cols, bits, clip_max, clip_min, grad, grad_x, grad_clip_max, grad_clip_min))
PL_KERNEL(fake_quantize_offset,
          (const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max, const float* clip_min,
          const float* shift, float* out),
          (x, rows, cols, bits, clip_max, clip_min, shift, out))
PL_KERNEL(fake_quantize_offset_backward,
          (const float* x, int64_t rows, int64_t cols, int32_t bits, const float* clip_max, const float* clip_min,
          const float* shift, const float* grad, float* grad_x, float* grad_clip_max, float* grad_clip_min,
          float* grad_shift),
          (x, rows, cols, bits, clip_max, clip_min, shift, grad, grad_x, grad_clip_max, grad_clip_min, grad_shift))
PL_KERNEL(clip_rows,
          (const float* x, int64_t rows, int64_t cols, const float* clip_max, const float* clip_min, float* out),
          (x, rows, cols, clip_max, clip_min, out))
PL_KERNEL(clip_rows_backward,
          (const float* x, int64_t rows, int64_t cols, const float* clip_max, const float* clip_min, const float* grad,
          float* grad_x, float* grad_clip_max, float* grad_clip_min),
          (x, rows, cols, clip_max, clip_min, grad, grad_x, grad_clip_max, grad_clip_min))
PL_KERNEL(flatten_rows,
          (const float* x, int64_t rows, int64_t cols, int32_t bits, float step, const float* factor, int64_t extras,
          const int32_t* channel, const int32_t* part, int64_t stride, const int32_t* copies, int8_t* codes,
          float* scale, int32_t* clipped),
          (x, rows, cols, bits, step, factor, extras, channel, part, stride, copies, codes, scale, clipped))
PL_KERNEL(kronecker,
          (const float* x, int64_t rows, int64_t n_left, int64_t n_right, const float* left, const float* right,
          const float* diag, float* out),
          (x, rows, n_left, n_right, left, right, diag, out))
PL_KERNEL(kronecker_backward,
          (const float* x, int64_t rows, int64_t n_left, int64_t n_right, const float* left, const float* right,
          const float* diag, const float* grad, float* grad_x, float* grad_left, float* grad_right, float* grad_diag),
          (x, rows, n_left, n_right, left, right, diag, grad, grad_x, grad_left, grad_right, grad_diag))
PL_KERNEL(norm,
          (int32_t kind, const float* x, int64_t rows, int64_t groups, int64_t cols, const float* gain,
          const float* bias, float epsilon, float* out),
          (kind, x, rows, groups, cols, gain, bias, epsilon, out))
PL_KERNEL(norm_backward,
          (int32_t kind, const float* x, int64_t rows, int64_t cols, const float* gain, float epsilon,
          const float* grad, float* grad_x, float* grad_gain, float* grad_bias),
          (kind, x, rows, cols, gain, epsilon, grad, grad_x, grad_gain, grad_bias))
PL_KERNEL(grouped_norm,
          (int32_t kind, const float* x, int64_t rows, int64_t groups, int64_t cols, const float* gain, int64_t gains,
          float epsilon, float* out),
          (kind, x, rows, groups, cols, gain, gains, epsilon, out))
PL_KERNEL(rope,
          (const float* x, int64_t rows, int64_t heads, int64_t head_dim, int64_t period, const float* cos,
          const float* sin, int32_t inverse, float* out),
          (x, rows, heads, head_dim, period, cos, sin, inverse, out))
PL_KERNEL(gather_rows,
          (const float* table, int64_t table_rows, int64_t cols, const int32_t* ids, int64_t rows, float* out),
          (table, table_rows, cols, ids, rows, out))
PL_KERNEL(arrange,
          (const float* a, int64_t a_heads, int64_t a_dim, const float* b, int64_t b_heads, int64_t b_dim,
          int64_t rows, int64_t heads, int64_t head_dim, const int32_t* order, float* out),
          (a, a_heads, a_dim, b, b_heads, b_dim, rows, heads, head_dim, order, out))
PL_KERNEL(columns,
          (const float* x, int64_t rows, int64_t cols, int64_t x_stride, float* out, int64_t out_stride),
          (x, rows, cols, x_stride, out, out_stride))
PL_KERNEL(causal_conv,
          (int64_t batch, int64_t time, int64_t channels, int64_t taps, const float* x, const float* weight,
          const float* bias, float* state, float* out),
          (batch, time, channels, taps, x, weight, bias, state, out))
PL_KERNEL(causal_conv_backward,
          (int64_t batch, int64_t time, int64_t channels, int64_t taps, const float* weight, const float* grad,
          float* grad_x),
          (batch, time, channels, taps, weight, grad, grad_x))
PL_KERNEL(carry_conv,
          (int64_t chunks, const int32_t* table, const int32_t* slots, int64_t channels, int64_t taps, const float* x,
          const float* weight, const float* bias, float* state, int64_t stride, float* out),
          (chunks, table, slots, channels, taps, x, weight, bias, state, stride, out))
PL_KERNEL(recurrence,
          (int64_t batch, int64_t time, int64_t heads, int64_t key_heads, int64_t key_dim, int64_t value_dim,
          int64_t width, int64_t q_at, int64_t k_at, int64_t v_at, float scale, float epsilon, float least,
          float most, const float* x, const float* step, const float* beta, const float* rate, const float* bias,
          const float* skip, float* state, float* out),
          (batch, time, heads, key_heads, key_dim, value_dim, width, q_at, k_at, v_at, scale, epsilon, least, most, x,
          step, beta, rate, bias, skip, state, out))
PL_KERNEL(recurrence_backward,
          (int64_t batch, int64_t time, int64_t heads, int64_t key_heads, int64_t key_dim, int64_t value_dim,
          int64_t width, int64_t q_at, int64_t k_at, int64_t v_at, float scale, float epsilon, float least,
          float most, const float* x, const float* step, const float* beta, const float* rate, const float* bias,
          const float* skip, const float* grad, float* grad_x, float* grad_step, float* grad_beta),
          (batch, time, heads, key_heads, key_dim, value_dim, width, q_at, k_at, v_at, scale, epsilon, least, most, x,
          step, beta, rate, bias, skip, grad, grad_x, grad_step, grad_beta))
PL_KERNEL(carry_recurrence,
          (int64_t chunks, const int32_t* table, const int32_t* slots, int64_t heads, int64_t key_heads,
          int64_t key_dim, int64_t value_dim, int64_t width, int64_t q_at, int64_t k_at, int64_t v_at, float scale,
          float epsilon, float least, float most, const float* x, const float* step, const float* beta,
          const float* rate, const float* bias, const float* skip, float* state, int64_t stride, float* out),
          (chunks, table, slots, heads, key_heads, key_dim, value_dim, width, q_at, k_at, v_at, scale, epsilon, least,
          most, x, step, beta, rate, bias, skip, state, stride, out))
PL_KERNEL(attention,
          (int64_t batch, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t query_length, int64_t key_length,
          int32_t causal, int64_t window, int64_t chunk, float scale, float softcap, const float* slopes,
          const float* q, int64_t q_batch, int64_t q_time, int64_t q_head, const float* k, const float* v,
          int64_t kv_batch, int64_t kv_time, int64_t kv_head, float* out, int64_t out_batch, int64_t out_time,
          int64_t out_head, float* log_sum_exp, int32_t half),
          (batch, heads, kv_heads, head_dim, query_length, key_length, causal, window, chunk, scale, softcap, slopes,
          q, q_batch, q_time, q_head, k, v, kv_batch, kv_time, kv_head, out, out_batch, out_time, out_head,
          log_sum_exp, half))
PL_KERNEL(attention_backward,
          (int64_t batch, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t query_length, int64_t key_length,
          int32_t causal, int64_t window, int64_t chunk, float scale, float softcap, const float* slopes,
          const float* q, int64_t q_batch, int64_t q_time, int64_t q_head, const float* k, const float* v,
          int64_t kv_batch, int64_t kv_time, int64_t kv_head, const float* out, const float* grad, int64_t out_batch,
          int64_t out_time, int64_t out_head, const float* log_sum_exp, float* grad_q, float* grad_k, float* grad_v,
          int32_t half),
          (batch, heads, kv_heads, head_dim, query_length, key_length, causal, window, chunk, scale, softcap, slopes,
          q, q_batch, q_time, q_head, k, v, kv_batch, kv_time, kv_head, out, grad, out_batch, out_time, out_head,
          log_sum_exp, grad_q, grad_k, grad_v, half))
PL_KERNEL(unary,
          (int32_t op, const float* x, int64_t length, float* out),
          (op, x, length, out))
PL_KERNEL(unary_backward,
          (int32_t op, const float* x, int64_t length, const float* grad, float* grad_x),
          (op, x, length, grad, grad_x))
PL_KERNEL(binary,
          (int32_t op, int64_t rows, int64_t cols, const float* a, const float* b, int32_t broadcast, float* out),
          (op, rows, cols, a, b, broadcast, out))
PL_KERNEL(reduce,
          (int64_t rows, int64_t cols, const float* x, const float* y, int32_t keep, double alpha, float* out),
          (rows, cols, x, y, keep, alpha, out))
PL_KERNEL(scale,
          (const float* x, int64_t length, float alpha, int32_t accumulate, float* out),
          (x, length, alpha, accumulate, out))
PL_KERNEL(silu_mul,
          (const float* gate, const float* up, int64_t length, float* out),
          (gate, up, length, out))
PL_KERNEL(silu_mul_backward,
          (const float* gate, const float* up, int64_t length, const float* grad, float* grad_gate, float* grad_up),
          (gate, up, length, grad, grad_gate, grad_up))
PL_KERNEL(mse,
          (const float* a, const float* b, int64_t length, float* loss),
          (a, b, length, loss))
PL_KERNEL(nll,
          (const float* logits, int64_t rows, int64_t cols, const int32_t* targets, float* nll),
          (logits, rows, cols, targets, nll))
PL_KERNEL(softmax_kl,
          (const float* teacher, const float* student, int64_t rows, int64_t cols, float* kl, float* grad_student,
          float grad_scale),
          (teacher, student, rows, cols, kl, grad_student, grad_scale))
PL_KERNEL(adam_w,
          (float* param, const float* grad, float* moment1, float* moment2, int64_t length, int64_t step,
          double learning_rate, double beta1, double beta2, double epsilon, double weight_decay, double grad_scale,
          double bound),
          (param, grad, moment1, moment2, length, step, learning_rate, beta1, beta2, epsilon, weight_decay, grad_scale,
          bound))
PL_KERNEL(inverse,
          (const float* x, int64_t n, float* out),
          (x, n, out))
PL_KERNEL(cayley,
          (const float* seed, int64_t n, float* out),
          (seed, n, out))
PL_KERNEL(cayley_backward,
          (const float* seed, int64_t n, const float* out, const float* grad, float* grad_seed),
          (seed, n, out, grad, grad_seed))
PL_KERNEL(gptq_factor,
          (int64_t n, const double* moment, const int32_t* order, double damp, double* factor, int32_t* factored),
          (n, moment, order, damp, factor, factored))
PL_KERNEL(gptq_round,
          (int64_t rows, int64_t cols, const double* weight, const double* scale, int64_t scales, int64_t group,
          const double* offset, int32_t bits, const double* factor, const int32_t* order, int8_t* codes),
          (rows, cols, weight, scale, scales, group, offset, bits, factor, order, codes))
PL_KERNEL(site,
          (int32_t input, int32_t op, const float* x, const float* x2, int64_t rows, int64_t n_left, int64_t n_right,
          const float* gain, const float* bias, float epsilon, const float* left, const float* right, int32_t bits,
          int64_t span, int64_t sets, int64_t capacity, const float* clips, int8_t* codes, float* scale,
          float* offset, float* out, float alpha, float limit),
          (input, op, x, x2, rows, n_left, n_right, gain, bias, epsilon, left, right, bits, span, sets, capacity,
          clips, codes, scale, offset, out, alpha, limit))
PL_KERNEL(route,
          (const float* x, int64_t rows, int64_t width, const float* router, const float* bias,
          const float* correction, int64_t experts, int64_t chosen, int32_t scores, int32_t normalize, float factor,
          int64_t groups, int64_t open_groups, float* weights, int32_t* ids),
          (x, rows, width, router, bias, correction, experts, chosen, scores, normalize, factor, groups, open_groups,
          weights, ids))
PL_KERNEL(experts,
          (const float* x, int64_t rows, int64_t width, int64_t experts, int64_t chosen, const float* weights,
          int32_t weigh_inputs, const int32_t* ids, int32_t* order, const int64_t* table, float* gathered,
          int64_t out_width, int32_t accumulate, float* out),
          (x, rows, width, experts, chosen, weights, weigh_inputs, ids, order, table, gathered, out_width, accumulate,
          out))
PL_KERNEL(cache_head_bytes,
          (int64_t head_dim, int32_t bits, int64_t* bytes),
          (head_dim, bits, bytes))
PL_KERNEL(cache_write,
          (int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads, int64_t kv_heads,
          int64_t head_dim, float* q, float* k, float* v, const float* q_gain, const float* k_gain, float epsilon,
          const float* cosine, const float* sine, const float* q_matrix, const float* k_matrix, const float* k_diag,
          const float* k_shift, int32_t query_bits, int32_t bits, const float* clips, uint8_t* cache,
          int64_t page_bytes, const float* q_scale),
          (chunks, table, pages, heads, kv_heads, head_dim, q, k, v, q_gain, k_gain, epsilon, cosine, sine, q_matrix,
          k_matrix, k_diag, k_shift, query_bits, bits, clips, cache, page_bytes, q_scale))
PL_KERNEL(paged_attention,
          (int64_t chunks, const int32_t* table, const int32_t* pages, int64_t heads, int64_t kv_heads,
          int64_t head_dim, int64_t window, int64_t chunk, float scale, float softcap, const float* q, int32_t bits,
          const uint8_t* cache, int64_t page_bytes, float* out, const float* sinks, const float* slopes),
          (chunks, table, pages, heads, kv_heads, head_dim, window, chunk, scale, softcap, q, bits, cache, page_bytes,
          out, sinks, slopes))
#endif
