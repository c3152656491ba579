/**
 * The kernels of native/cuda by file and name, with how each argument is passed: p a device pointer, i a 64-bit integer,
 * d a double. Made from their declarations by `npm run generate:abi`; change those.
 */
export const CUDA_KERNELS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  attention: {
    attention: "pppppdiiiiiiiiiiiiiiii",
    attention_delta: "ppipiiiiiiiiiiiiiiii",
    attention_grad_q: "pppppppdiiiiiiiiiiiiiiii",
    attention_grad_kv: "ppppppppdiiiiiiiiiiiiiiii",
    pack_heads: "piiiiiiiip",
  },
  attention_mma: {
    attention_forward: "pppppdiiiiiiiiiiiiiiii",
    attention_backward_q: "pppppppdiiiiiiiiiiiiiiii",
    attention_backward_kv: "ppppppppdiiiiiiiiiiiiiiii",
  },
  convert: {
    pack_f32_bf16: "piiiipppi",
    pack_i8_bf16: "piiiipppi",
    pack_f32_f32: "piiiipppi",
    pack_i8_f32: "piiiipppi",
    matmul_epilogue: "piipppiii",
    int_epilogue: "piippp",
    int_matmul: "ppiiipppp",
  },
  elementwise: {
    unary: "ipipp",
    binary: "iiippip",
    scale: "pidip",
    silu_mul: "ppip",
    silu_mul_backward: "ppippp",
    sum_partial: "ppiip",
    sum_finish: "piidp",
    sum_finish_scalar: "pidp",
    sum_rows_partial: "ppiiip",
    column_maxima: "piiip",
    adamw: "ppppiddddddddd",
    gather_rows: "piipipp",
    sum_columns_warp: "ppiidp",
    sum_columns_block: "ppiidp",
  },
  "engine/attention_decode": {
    attention_decode: "pppiiidpiip",
    attention_join: "piiip",
  },
  "engine/attention_prefill": {
    attention_prefill: "pppiiidpip",
  },
  "engine/attention_prefill_wgmma": {
    attention_prefill_wgmma: "pppiiidpip",
  },
  "engine/end_layers": {
    embed: "pppidpippp",
    final_rows: "ppippdp",
    head: "ppiiidp",
    pack_weights: "piiiiip",
  },
  "engine/gemm": {
    gemm: "ppppppiiiiiiiiip",
  },
  "engine/gemm_group": {
    gemm_group: "ppppppiiiiiiipp",
  },
  "engine/gemm_group_narrow": {
    gemm_group_narrow: "ppppppiiiiiiipp",
  },
  "engine/gemm_mma": {
    gemm_mma: "ppppppiiiiiiip",
  },
  "engine/gemm_narrow": {
    gemm_narrow: "ppppppiiiiiii",
  },
  "engine/gemm_prefill": {
    gemm_prefill: "ppppppiiiiiiii",
  },
  "engine/half": {
    half_norm: "pipdp",
    half_gated: "piip",
    stream_words: "pip",
    random_fill: "piiid",
  },
  "engine/queries_keys_values": {
    queries_keys_values: "pppiipippippdppppppppippii",
  },
  "engine/rows": {
    norm_rows: "piippidpi",
    pair_rows: "pipiiipi",
    activate_rows: "pipiiiddpi",
    scale_rows: "piiidppi",
    rotary_tables: "ppiidpp",
  },
  "engine/site": {
    site: "ppiipdpppiippip",
  },
  "engine/site_cluster": {
    site_cluster: "ppiipdpppiippi",
  },
  "engine/tables": {
    embed_codes: "pppppidpippp",
    head_codes: "ppppiiidp",
    pack_table: "piip",
  },
  flatten: {
    flatten_rows: "piiidpippippppp",
  },
  kronecker: {
    kronecker: "piiiipppp",
    kronecker_backward: "piiiipppppppp",
  },
  linalg: {
    cayley:
      "pppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppii",
    cayley_backward:
      "pppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppipppppii",
    inverse: "pippp",
  },
  losses: {
    nll: "piippp",
    softmax_kl: "ppiippd",
  },
  norm: {
    norm_gain_partial: "pppiiipp",
    rope: "piiiippdp",
    norm_warp: "ipiippdp",
    norm_block: "ipiippdp",
    norm_backward_warp: "ipiipdppp",
    norm_backward_block: "ipiipdppp",
  },
  quantize: {
    clip_gradient: "ppipppp",
    dequantize_rows: "ppiip",
    quantize_rows_warp: "piiippdppp",
    quantize_rows_block: "piiippdppp",
    quantize_rows_backward_warp: "piiippdpppppppp",
    quantize_rows_backward_block: "piiippdpppppppp",
    asym_warp: "piiippp",
    asym_block: "piiippp",
    asym_backward_warp: "piiipppppp",
    asym_backward_block: "piiipppppp",
    offset_grid_warp: "piiipppp",
    offset_grid_block: "piiipppp",
    offset_grid_backward_warp: "piiipppppppp",
    offset_grid_backward_block: "piiipppppppp",
    clip_rows_warp: "piippp",
    clip_rows_block: "piippp",
    clip_rows_backward_warp: "piipppppp",
    clip_rows_backward_block: "piipppppp",
  },
};
