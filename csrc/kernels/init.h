/* One init function per kernel family and level; each sets its entries of a table. */
#ifndef PYLLM_KERNELS_INIT_H
#define PYLLM_KERNELS_INIT_H
#include "kernels.h"

typedef void kernels_init(kernels *k);
kernels_init init_matmul_ref, init_attn_ref, init_vec_ref, init_quantize_ref, init_scan_ref;
kernels_init init_matmul_avx2, init_attn_avx2, init_vec_avx2, init_quantize_avx2, init_scan_avx2, init_matmul_avxvnni, init_attn_avxvnni;
kernels_init init_matmul_avx512vnni, init_attn_avx512vnni, init_vec_avx512vnni, init_quantize_avx512vnni, init_scan_avx512vnni, init_matmul_amx;
kernels_init init_matmul_neon, init_attn_neon, init_vec_neon, init_quantize_neon, init_scan_neon, init_matmul_dotprod, init_attn_dotprod, init_matmul_i8mm;

/* Records "slot=symbol", in place of what a lower level recorded for the slot. */
void kernel_name(kernels *k, const char *name, int slot_len);
/* k->field = fn, with slot and symbol recorded: KERNEL_SET(k, rmsnorm, "rmsnorm", rmsnorm_avx2). */
#define KERNEL_SET(k, field, slot, fn) ((k)->field = fn, kernel_name(k, slot "=" #fn, (int)sizeof(slot) - 1))
/* In a template: the function carries the level that the file was included for. */
#define KERNEL_LEVEL(k, field, slot, fn) KERNEL_LEVEL_(k, field, slot, fn, LEVEL)
#define KERNEL_LEVEL_(k, field, slot, fn, level) KERNEL_LEVEL__(k, field, slot, fn, level)
#define KERNEL_LEVEL__(k, field, slot, fn, level) ((k)->field = fn##_##level, kernel_name(k, slot "=" #fn "_" #level, (int)sizeof(slot) - 1))
/* The three entries of a KV type: KERNEL_KV(k, F16, f16, avx2) sets kv_store_k_f16_avx2 and so on. */
#define KERNEL_KV(k, TYPE, type, level) \
    (KERNEL_SET(k, kv_store_k[KV_##TYPE], "kv_store_k_" #type, kv_store_k_##type##_##level), \
     KERNEL_SET(k, kv_store_v[KV_##TYPE], "kv_store_v_" #type, kv_store_v_##type##_##level), \
     KERNEL_SET(k, attn_chunk[KV_##TYPE], "attn_chunk_" #type, attn_chunk_##type##_##level))
#define KERNEL_MATMUL(k, TYPE, type, level) KERNEL_SET(k, matmul[QTYPE_##TYPE], "matmul_" #type, matmul_##type##_##level)
#endif
