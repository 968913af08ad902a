/* Rows of floats to blocks of a tensor type, on several threads. See pyllm_quantize. */
#ifndef PYLLM_OPS_QUANTIZE_H
#define PYLLM_OPS_QUANTIZE_H
#include "../base/err.h"

#include <stdint.h>

int quantize(uint32_t type, const float *src, int64_t n_rows, int64_t width, const float *weights, int n_threads, void *dst, pyllm_error *err);
#endif
