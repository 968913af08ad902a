#include "quantize.h"

#include "../base/threads.h"
#include "../kernels/kernels.h"

#include <stdatomic.h>

enum { ITEM = 1 << 15 };                /* elements of an item: whole blocks of every type, whole tiles of 16 of the small ones */

typedef struct job {
    quantize_fn *encode;
    const qtype_info *type;
    const float *src, *weights;
    int64_t n, width;                   /* elements in all; of a row */
    uint8_t *dst;
    _Atomic int64_t bad;                /* first element that is not finite; n: none */
} job;

static int is_finite(float x) { return x - x == 0; }

/* First element of [i, end) that is not finite, or end. */
static int64_t first_bad(const float *x, int64_t i, int64_t end) {
    for (; i < end; i++)
        if (!is_finite(x[i])) return i;
    return end;
}

static int all_finite(const float *x, int64_t n) {
    float sum = 0;                      /* of zeros, or NaN */
    for (int64_t i = 0; i < n; i++) sum = is_finite(x[i]) ? sum : 1;
    return sum == 0;
}

static void run(void *ctx, int64_t item, int worker) {
    (void)worker;
    job *j = ctx;
    int64_t at = item * ITEM, n = j->n - at < ITEM ? j->n - at : ITEM, elems = j->type->elems, first = at / elems, per_row = j->width / elems;
    if (!all_finite(j->src + at, n)) {
        int64_t bad = first_bad(j->src, at, at + n), old = atomic_load(&j->bad);
        while (bad < old && !atomic_compare_exchange_weak(&j->bad, &old, bad)) {}
        return;
    }
    j->encode(j->src + at, j->weights, n / elems, first, per_row, j->dst + first * j->type->bytes);
}

static int check(const job *j, uint32_t type, int64_t n_rows, pyllm_error *err) {
    if (!j->type) return err_set(err, PYLLM_ERR_UNSUPPORTED, "tensor type id %u does not exist", type);
    if (!j->encode) return err_set(err, PYLLM_ERR_UNSUPPORTED, "there is no encoder for %s yet\nhint: choose another type", j->type->name);
    if (j->width % j->type->elems)
        return err_set(err, PYLLM_ERR_ARG, "rows of %lld elements are not whole blocks of %d (%s)\nhint: choose a type with smaller blocks",
                       (long long)j->width, j->type->elems, j->type->name);
    if (j->width > 0 && n_rows > (((int64_t)1 << 46) / j->width))
        return err_set(err, PYLLM_ERR_ARG, "%lld rows of %lld elements are too many", (long long)n_rows, (long long)j->width);
    for (int64_t i = 0; j->weights && i < j->width; i++)
        if (!is_finite(j->weights[i]) || j->weights[i] < 0)
            return err_set(err, PYLLM_ERR_ARG, "the weight of column %lld is %g, must be finite and not negative", (long long)i, (double)j->weights[i]);
    return 0;
}

int quantize(uint32_t type, const float *src, int64_t n_rows, int64_t width, const float *weights, int n_threads, void *dst, pyllm_error *err) {
    const kernels *k = kernels_get(NULL);
    if (!k) return err_set(err, PYLLM_ERR_ARG, "no kernels for the CPU level in PYLLM_CPU\nhint: available: %s", kernels_levels());
    job j = {.type = qtype_get(type), .src = src, .weights = weights, .width = width, .dst = dst};
    j.encode = j.type ? k->quantize[type] : NULL;
    int rc = check(&j, type, n_rows, err);
    if (rc) return rc;
    j.n = n_rows * width;
    atomic_init(&j.bad, j.n);
    int64_t items = (j.n + ITEM - 1) / ITEM;
    if (!items) return 0;
    pool *p = pool_new(items < n_threads ? (int)items : n_threads);
    if (!p) return err_set(err, PYLLM_ERR_MEMORY, "no memory for %d threads that quantize", n_threads);
    pool_run(p, run, &j, items, 1, NULL);
    pool_free(p);
    int64_t bad = atomic_load(&j.bad);
    if (bad < j.n)
        return err_set(err, PYLLM_ERR_ARG, "row %lld, column %lld is %g, which cannot be quantized\nhint: the checkpoint is damaged or was saved in too "
                       "narrow a type", (long long)(bad / width), (long long)(bad % width), (double)src[bad]);
    return 0;
}
