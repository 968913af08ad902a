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

size_t op_scratch_bytes(const weight *weights, const step *s) {
    if (s->op->run == run_gated) return gated_scratch_bytes();
    if (s->op->run == run_attn) return attn_worker_bytes(s);
    if (s->op->run == run_embed || s->op->run == run_positions) {       /* one row of file bytes */
        const weight *w = &weights[s->p[0].id[0]];
        return (size_t)(w->k / qtype_get(w->type)->elems) * (size_t)qtype_get(w->type)->bytes;
    }
    return 0;
}
