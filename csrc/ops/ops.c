#include "ops.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define OP(name, outs, ins, params) \
    int check_##name(const op_check *c, step *s); \
    int run_##name(const op_ctx *c, const step *s);
#include "ops.def"
#undef OP

static const op_def ops[] = {
#define OP(name, outs, ins, params) {#name, params, outs, ins, check_##name, run_##name},
#include "ops.def"
#undef OP
};

const op_def *op_find(const char *name, size_t len) {
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (strlen(ops[i].name) == len && !memcmp(ops[i].name, name, len)) return &ops[i];
    return NULL;
}

int op_fail(const op_check *c, const step *s, const char *fmt, ...) {
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return err_set(c->err, PYLLM_ERR_FORMAT, "tape line %d (%s %s): %s", s->line, s->op->name, c->values[s->out[0]].name, text);
}

size_t gated_scratch_bytes(void);
size_t attn_worker_bytes(const step *s);

size_t ssm_scratch_bytes(const step *s);
size_t moe_scratch_bytes(const weight *w);

size_t op_scratch_bytes(const weight *weights, const value *values, const step *s) {
    if (s->op->run == run_moe_gated || s->op->run == run_moe_down || s->op->run == run_headwise)
        return moe_scratch_bytes(&weights[s->p[0].id[0]]);
    if (s->op->run == run_route) return 2 * sizeof(float) * (size_t)values[s->in[0]].width;
    if (s->op->run == run_gated) return gated_scratch_bytes();
    if (s->op->run == run_ssm) return ssm_scratch_bytes(s);
    if (s->op->run == run_attn) return attn_worker_bytes(s);
    if (s->op->run == run_embed || s->op->run == run_positions) {       /* one row of file bytes */
        const weight *w = &weights[s->p[0].id[0]];
        return (size_t)(w->k / qtype_get(w->type)->elems) * (size_t)qtype_get(w->type)->bytes;
    }
    return 0;
}

int64_t op_single_rows(const weight *weights, const value *values, const step *s) {
    if (s->op->run == run_headwise) return weights[s->p[0].id[0]].stack;
    return s->op->run == run_moe_gated ? 1 : s->op->run == run_moe_down ? values[s->in[1]].width / 2 : 0;
}

int64_t op_order_ints(const weight *weights, const value *values, const step *s, int64_t rows) {
    return s->op->run == run_moe_gated || s->op->run == run_moe_down ? rows * (values[s->in[1]].width / 2) + 2 * weights[s->p[0].id[0]].stack + 1 : 0;
}

void moe_add_squares(const op_ctx *c, const step *s, double *sums);
void headwise_add_squares(const op_ctx *c, const step *s, double *sums);

void op_add_squares(const op_ctx *c, const step *s, double *sums) {
    const float *x = value_ptr(c, s->in[0]);
    int64_t width = c->values[s->in[0]].width;
    if (op_single_rows(c->weights, c->values, s)) {
        (s->op->run == run_headwise ? headwise_add_squares : moe_add_squares)(c, s, sums);
        return;
    }
    for (int32_t r = 0; r < value_rows(c, s->in[0]); r++, x += width)
        for (int64_t i = 0; i < width; i++) sums[i] += (double)x[i] * x[i];
}
