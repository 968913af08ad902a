/* Packed matrices times rows of activations: what the ops with matrices share. */
#ifndef PYLLM_OPS_PRODUCT_H
#define PYLLM_OPS_PRODUCT_H
#include "ops.h"

#include <string.h>

enum { STREAM_BYTES = 128 << 10 };      /* weights of a work item that reads nothing twice */

/* The matrices of a parameter: present, of a type with a kernel, `width` values long; of one matrix each, or of stacks of the same number. */
int check_matrices(const op_check *c, const step *s, const param *w, int64_t width, int stacks);

/* y[m][0..n) = W rows [first, first + n) times the panel a of m rows, where n = 16*groups except at the matrix's end. a: quantized units, or f32
   rows of w->k for types with act 1. panel: PANEL, or WIDE_PANEL for the level's wide kernel. */
static inline void multiply(const op_ctx *c, const weight *w, int panel, const void *a, int m, int64_t first, int64_t groups, float *y, int64_t ldy) {
    const uint8_t *p = w->packed + (size_t)(first / GROUP) * w->group_bytes;
    matmul_fn *mm = (panel == PANEL ? c->k->matmul : c->k->matmul_wide)[w->type];
    int64_t whole = first + groups * GROUP > w->n ? groups - 1 : groups;    /* the last group may be partial */
    if (whole) mm(p, w->group_bytes, whole, w->k, a, w->k, m, y, ldy);
    if (whole < groups) {
        float tail[WIDE_PANEL * GROUP];
        mm(p + (size_t)whole * w->group_bytes, w->group_bytes, 1, w->k, a, w->k, m, tail, GROUP);
        int64_t n = w->n - first - whole * GROUP;
        for (int r = 0; r < m; r++) memcpy(y + r * ldy + whole * GROUP, tail + r * GROUP, (size_t)n * 4);
    }
}

/* Quantizes rows of k values into c->act for every block size that the matrices need, in panels of so many rows (1, PANEL or WIDE_PANEL).
   PYLLM_ERR_CANCELLED if not. */
int quantize_rows(const op_ctx *c, const param *w, const float *x, int64_t rows, int64_t k, int panel);
#endif
