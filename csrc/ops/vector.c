/* Row-wise ops: embed, positions, angles, temperature, norm, layernorm, rope, rows, pool, softcap, scale, glu, add, mul, mix, take, join. One work
   item is one row. */
#include "ops.h"

#include "../base/math.h"
#include "../kernels/pack.h"

#include <string.h>

enum { POSITIONS_W, POSITIONS_ROW };
enum { TEMPERATURE_SCALE, TEMPERATURE_LENGTH };
enum { POOL_MEAN = 1, POOL_FIRST };     /* as GGUF's pooling_type */
enum { SCALE_BY, SCALE_W };
enum { MIX_W, MIX_BY };

typedef struct row_job {
    const op_ctx *c;
    const step *s;
    int rc;                     /* of the first failing row */
} row_job;

static int run_rows_of(const op_ctx *c, const step *s, pool_fn fn, int64_t rows) {
    row_job j = {c, s, 0};
    int rc = pool_run(c->pool, fn, &j, rows, 4, c->cancel);
    return j.rc ? j.rc : rc;
}

/* Same width and row count as the first input: the shape rule of the element-wise ops. */
static int check_same(const op_check *c, step *s) {
    c->values[s->out[0]].width = c->values[s->in[0]].width;
    return 0;
}

/* ---- embed and positions -------------------------------------------------------------------------------------------- */
static int check_table(const op_check *c, const step *s) {
    if (s->p[EMBED_W].n != 1 || s->p[EMBED_W].id[0] < 0) return op_fail(c, s, "one matrix is needed");
    const weight *w = &c->weights[s->p[EMBED_W].id[0]];
    if (w->stack != 1) return op_fail(c, s, "%s is a stack of matrices", w->name);
    if (!qtype_get(w->type))
        return err_set(c->err, PYLLM_ERR_UNSUPPORTED, "tensor %s is of type id %u, which this build does not know", w->name, w->type);
    c->values[s->out[0]].width = w->k;
    return 0;
}

int check_embed(const op_check *c, step *s) { return check_table(c, s); }

int check_positions(const op_check *c, step *s) {
    TRY(check_table(c, s));
    if (c->values[s->in[0]].late) return op_fail(c, s, "positions cannot stand after rows");
    if (c->values[s->in[0]].width != c->values[s->out[0]].width) return op_fail(c, s, "the matrix does not have the input's width");
    const param *row = &s->p[POSITIONS_ROW];
    return row->n && row->i[0] >= c->weights[s->p[POSITIONS_W].id[0]].n ? op_fail(c, s, "the matrix has no row %lld", (long long)row->i[0]) : 0;
}

/* Row i of a matrix as floats to y [k]. */
static void table_row(row_job *j, const weight *w, int64_t i, int worker, float *y) {
    const op_ctx *c = j->c;
    uint8_t *bytes = c->scratch + (size_t)worker * c->scratch_bytes;
    size_t row_bytes = (size_t)(w->k / qtype_get(w->type)->elems) * (size_t)qtype_get(w->type)->bytes;
    if (w->packed) {
        unpack_row(w->type, w->packed + (size_t)(i / GROUP) * w->group_bytes, (int)(i % GROUP), w->k, bytes);
    } else {
        int rc = gguf_read(c->file, w->tensor, (uint64_t)(w->row0 + i) * row_bytes, row_bytes, bytes, worker ? NULL : c->err);
        if (rc) {
            __atomic_store_n(&j->rc, rc, __ATOMIC_RELAXED);
            return;
        }
    }
    dequantize(w->type, bytes, w->k, y);
}

static int run_table(const op_ctx *c, const step *s, pool_fn fn) {
    int rc = run_rows_of(c, s, fn, c->b->n_rows);
    if (rc && rc != PYLLM_ERR_CANCELLED && c->err && !c->err->code)
        return err_set(c->err, rc, "%s: the rows of %s cannot be read any more\nhint: the file was changed while it was in use; load the model again",
                       gguf_path(c->file), c->weights[s->p[EMBED_W].id[0]].name);
    return rc;
}

static void embed_row(void *ctx, int64_t r, int worker) {
    row_job *j = ctx;
    const weight *w = &j->c->weights[j->s->p[EMBED_W].id[0]];
    float *y = value_ptr(j->c, j->s->out[0]) + r * w->k, scale = j->s->p[EMBED_SCALE].f;
    table_row(j, w, j->c->b->tokens[r], worker, y);
    if (scale != 1)
        for (int64_t i = 0; i < w->k; i++) y[i] *= scale;
}

int run_embed(const op_ctx *c, const step *s) { return run_table(c, s, embed_row); }

static void positions_row(void *ctx, int64_t r, int worker) {
    row_job *j = ctx;
    const weight *w = &j->c->weights[j->s->p[EMBED_W].id[0]];
    const float *x = value_ptr(j->c, j->s->in[0]) + r * w->k;
    float *y = value_ptr(j->c, j->s->out[0]) + r * w->k;
    const param *row = &j->s->p[POSITIONS_ROW];
    table_row(j, w, row->n ? row->i[0] : j->c->b->pos[r], worker, y);
    for (int64_t i = 0; i < w->k; i++) y[i] = x[i] + y[i];
}

int run_positions(const op_ctx *c, const step *s) {
    const weight *w = &c->weights[s->p[EMBED_W].id[0]];
    for (int32_t r = 0; r < c->b->n_rows && !s->p[POSITIONS_ROW].n; r++)
        if (c->b->pos[r] >= w->n)
            return err_set(c->err, PYLLM_ERR_FULL, "position %lld: the model has learned %lld positions (%s), no more\nhint: a shorter context (ctx)",
                           (long long)c->b->pos[r], (long long)w->n, w->name);
    return run_table(c, s, positions_row);
}

/* ---- angles and rope ------------------------------------------------------------------------------------------------ */
int check_angles(const op_check *c, step *s) {
    c->values[s->out[0]].width = 2 * c->tables[s->p[ANGLES_TABLE].id[0]].n;
    return 0;
}

static void angles_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const table *t = &j->c->tables[j->s->p[ANGLES_TABLE].id[0]];
    j->c->k->angles(t->f, t->n, j->c->b->pos[r], j->s->p[ANGLES_MSCALE].f, value_ptr(j->c, j->s->out[0]) + r * 2 * t->n);
}

int run_angles(const op_ctx *c, const step *s) { return run_rows_of(c, s, angles_row, c->b->n_rows); }

int check_rope(const op_check *c, step *s) {
    const param *heads = &s->p[ROPE_HEADS], *norm = &s->p[ROPE_NORM];
    int64_t dim = s->p[ROPE_DIM].i[0], rot = s->p[ROPE_ROT].i[0];
    if (c->values[s->in[0]].late || c->values[s->in[s->n_in - 1]].late || c->values[s->p[ROPE_ANGLES].id[0]].late) return op_fail(c, s, "rope cannot stand after rows");
    if (s->n_out != s->n_in || heads->n != s->n_in || norm->n != s->n_in) return op_fail(c, s, "an output, head count and norm for each input are needed");
    if (rot < 2 || rot % 2 || rot > dim || c->values[s->p[ROPE_ANGLES].id[0]].width != rot)
        return op_fail(c, s, "rot %lld does not fit head size %lld and the angles", (long long)rot, (long long)dim);
    for (int i = 0; i < s->n_in; i++) {
        if (heads->i[i] < 1 || heads->i[i] > 65536 || c->values[s->in[i]].width != heads->i[i] * dim)
            return op_fail(c, s, "input %d is not %lld heads of %lld", i, (long long)heads->i[i], (long long)dim);
        if (norm->id[i] >= 0 && c->weights[norm->id[i]].n != dim) return op_fail(c, s, "norm %d is not of head size", i);
        c->values[s->out[i]].width = c->values[s->in[i]].width;
    }
    return 0;
}

static void rope_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    int dim = (int)s->p[ROPE_DIM].i[0], rot = (int)s->p[ROPE_ROT].i[0];
    const float *angles = value_ptr(c, s->p[ROPE_ANGLES].id[0]) + r * rot;
    for (int i = 0; i < s->n_in; i++) {
        int heads = (int)s->p[ROPE_HEADS].i[i];
        int32_t norm = s->p[ROPE_NORM].id[i];
        const float *x = value_ptr(c, s->in[i]) + r * heads * dim;
        float *y = value_ptr(c, s->out[i]) + r * heads * dim;
        for (int h = 0; h < heads && norm >= 0; h++)
            c->k->rmsnorm(x + h * dim, c->weights[norm].vec, y + h * dim, dim, s->p[ROPE_EPS].f);
        c->k->rope(norm >= 0 ? y : x, angles, y, heads, dim, rot, (int)s->p[ROPE_NEOX].i[0]);
    }
}

int run_rope(const op_ctx *c, const step *s) { return run_rows_of(c, s, rope_row, c->b->n_rows); }

/* ---- temperature --------------------------------------------------------------------------------------------------------- */
int check_temperature(const op_check *c, step *s) {
    if (s->p[TEMPERATURE_LENGTH].i[0] < 1 || c->values[s->in[0]].late) return op_fail(c, s, "a length and rows before `rows` are needed");
    return check_same(c, s);
}

static void temperature_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width, steps = j->c->b->pos[r] / j->s->p[TEMPERATURE_LENGTH].i[0];
    const float *x = value_ptr(j->c, j->s->in[0]) + r * n;
    float *y = value_ptr(j->c, j->s->out[0]) + r * n, by = (float)(1 + (double)j->s->p[TEMPERATURE_SCALE].f * math_log(1 + (double)steps));
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * by;
}

int run_temperature(const op_ctx *c, const step *s) { return run_rows_of(c, s, temperature_row, value_rows(c, s->in[0])); }

/* ---- norms ----------------------------------------------------------------------------------------------------------- */
/* groups: a row is that many vectors side by side, each normalised alone; a weight vector has their width or all of the row's. */
static int check_groups(const op_check *c, const step *s, const param *groups, const param *vec, int needed) {
    int64_t width = c->values[s->in[0]].width, n = groups->n ? groups->i[0] : 1;
    if (n < 1 || width % n) return op_fail(c, s, "a width of %lld is not %lld groups", (long long)width, (long long)n);
    if (vec->n != 1 || (needed && vec->id[0] < 0)) return op_fail(c, s, "one vector is needed");
    if (vec->id[0] < 0) return 0;
    int64_t have = c->weights[vec->id[0]].n;
    return have == width || have == width / n ? 0 : op_fail(c, s, "%s does not have the input's width %lld", c->weights[vec->id[0]].name, (long long)width);
}

int check_norm(const op_check *c, step *s) {
    const value *x = &c->values[s->in[0]];
    const param *add = &s->p[NORM_ADD];
    TRY(check_groups(c, s, &s->p[NORM_GROUPS], &s->p[NORM_W], 0));
    if (add->n && (c->values[add->id[0]].width != x->width || c->values[add->id[0]].late != x->late))
        return op_fail(c, s, "add=%s does not have the output's shape", c->values[add->id[0]].name);
    return check_same(c, s);
}

static void norm_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    const weight *w = s->p[NORM_W].id[0] < 0 ? NULL : &c->weights[s->p[NORM_W].id[0]];
    int64_t n = c->values[s->in[0]].width, groups = s->p[NORM_GROUPS].n ? s->p[NORM_GROUPS].i[0] : 1, m = n / groups;
    const float *x = value_ptr(c, s->in[0]) + r * n;
    float *y = value_ptr(c, s->out[0]) + r * n;
    for (int64_t at = 0; at < n; at += m) c->k->rmsnorm(x + at, w ? w->vec + (w->n == n ? at : 0) : NULL, y + at, m, s->p[NORM_EPS].f);
    if (s->p[NORM_ADD].n) {
        const float *z = value_ptr(c, s->p[NORM_ADD].id[0]) + r * n;
        for (int64_t i = 0; i < n; i++) y[i] += z[i];
    }
}

int run_norm(const op_ctx *c, const step *s) { return run_rows_of(c, s, norm_row, value_rows(c, s->in[0])); }

int check_layernorm(const op_check *c, step *s) {
    TRY(check_groups(c, s, &s->p[LAYERNORM_GROUPS], &s->p[LAYERNORM_W], 1));
    TRY(check_groups(c, s, &s->p[LAYERNORM_GROUPS], &s->p[LAYERNORM_BIAS], 0));
    return check_same(c, s);
}

static void layernorm_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    int32_t bias = s->p[LAYERNORM_BIAS].id[0];
    const weight *w = &c->weights[s->p[LAYERNORM_W].id[0]], *b = bias < 0 ? NULL : &c->weights[bias];
    int64_t n = c->values[s->in[0]].width, groups = s->p[LAYERNORM_GROUPS].n ? s->p[LAYERNORM_GROUPS].i[0] : 1, m = n / groups;
    const float *x = value_ptr(c, s->in[0]) + r * n;
    float *y = value_ptr(c, s->out[0]) + r * n;
    for (int64_t at = 0; at < n; at += m)
        c->k->layernorm(x + at, w->vec + (w->n == n ? at : 0), b ? b->vec + (b->n == n ? at : 0) : NULL, y + at, m, s->p[LAYERNORM_EPS].f);
}

int run_layernorm(const op_ctx *c, const step *s) { return run_rows_of(c, s, layernorm_row, value_rows(c, s->in[0])); }

/* ---- take and join ------------------------------------------------------------------------------------------------------ */
enum { TAKE_HEADS, TAKE_FROM, TAKE_TO };

int check_take(const op_check *c, step *s) {
    int64_t heads = s->p[TAKE_HEADS].i[0], from = s->p[TAKE_FROM].i[0], to = s->p[TAKE_TO].i[0], width = c->values[s->in[0]].width;
    if (heads < 1 || width % heads || from >= to || to > width / heads)
        return op_fail(c, s, "%lld heads of a width of %lld have no values %lld to %lld", (long long)heads, (long long)width, (long long)from, (long long)to);
    c->values[s->out[0]].width = heads * (to - from);
    return 0;
}

static void take_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const step *s = j->s;
    int64_t heads = s->p[TAKE_HEADS].i[0], from = s->p[TAKE_FROM].i[0], n = s->p[TAKE_TO].i[0] - from, width = j->c->values[s->in[0]].width / heads;
    const float *x = value_ptr(j->c, s->in[0]) + r * heads * width + from;
    float *y = value_ptr(j->c, s->out[0]) + r * heads * n;
    for (int64_t h = 0; h < heads; h++) memcpy(y + h * n, x + h * width, (size_t)n * 4);
}

int run_take(const op_ctx *c, const step *s) { return run_rows_of(c, s, take_row, value_rows(c, s->in[0])); }

int check_join(const op_check *c, step *s) {
    const value *x = &c->values[s->in[0]], *z = &c->values[s->in[1]];
    const param *heads = &s->p[0];
    for (int i = 0; i < 2; i++)
        if (heads->n != 2 || heads->i[i] < 1 || c->values[s->in[i]].width % heads->i[i]) return op_fail(c, s, "input %d is not that many heads", i);
    if (z->late != x->late || (heads->i[1] != heads->i[0] && heads->i[1] != 1)) return op_fail(c, s, "%s and %s do not belong together", x->name, z->name);
    c->values[s->out[0]].width = x->width + z->width / heads->i[1] * heads->i[0];
    return 0;
}

/* Head after head: x's, then z's; z of one head goes to each of x. */
static void join_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const step *s = j->s;
    int64_t heads = s->p[0].i[0], own = s->p[0].i[1], n = j->c->values[s->in[0]].width / heads, m = j->c->values[s->in[1]].width / own;
    const float *x = value_ptr(j->c, s->in[0]) + r * heads * n, *z = value_ptr(j->c, s->in[1]) + r * own * m;
    float *y = value_ptr(j->c, s->out[0]) + r * heads * (n + m);
    for (int64_t h = 0; h < heads; h++) {
        memcpy(y + h * (n + m), x + h * n, (size_t)n * 4);
        memcpy(y + h * (n + m) + n, z + (own == 1 ? 0 : h * m), (size_t)m * 4);
    }
}

int run_join(const op_ctx *c, const step *s) { return run_rows_of(c, s, join_row, value_rows(c, s->in[0])); }

/* ---- rows and element-wise ops ------------------------------------------------------------------------------------------- */
int check_rows(const op_check *c, step *s) {
    if (c->values[s->in[0]].late) return op_fail(c, s, "rows may stand only once on a tape");
    c->values[s->out[0]].late = 1;
    return check_same(c, s);
}

static void rows_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width;
    memcpy(value_ptr(j->c, j->s->out[0]) + r * n, value_ptr(j->c, j->s->in[0]) + j->c->b->logit_rows[r] * n, (size_t)n * 4);
}

int run_rows(const op_ctx *c, const step *s) { return run_rows_of(c, s, rows_row, c->b->n_logits); }

/* For each row whose output is wanted one of the rows from its run's first to itself: their mean (kind 1), or the first (kind 2). */
int check_pool(const op_check *c, step *s) {
    if (c->values[s->in[0]].late) return op_fail(c, s, "pool cannot stand after rows");
    if (s->p[0].i[0] != POOL_MEAN && s->p[0].i[0] != POOL_FIRST) return op_fail(c, s, "kind is 1 (mean) or 2 (first row)");
    c->values[s->out[0]].late = 1;
    return check_same(c, s);
}

static void pool_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const batch *b = j->c->b;
    int64_t n = j->c->values[j->s->in[0]].width;
    int32_t last = b->logit_rows[r], k = 0;
    while (last >= b->runs[k].row + b->runs[k].n) k++;
    int32_t rows = last - b->runs[k].row + 1;
    const float *x = value_ptr(j->c, j->s->in[0]) + (int64_t)b->runs[k].row * n;
    float *y = value_ptr(j->c, j->s->out[0]) + r * n;
    memcpy(y, x, (size_t)n * 4);
    if (j->s->p[0].i[0] == POOL_FIRST) return;
    for (int32_t i = 1; i < rows; i++)
        for (int64_t d = 0; d < n; d++) y[d] += x[i * n + d];
    for (int64_t d = 0; d < n; d++) y[d] /= (float)rows;
}

int run_pool(const op_ctx *c, const step *s) { return run_rows_of(c, s, pool_row, c->b->n_logits); }

int check_softcap(const op_check *c, step *s) { return check_same(c, s); }

static void softcap_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width;
    j->c->k->softcap(value_ptr(j->c, j->s->in[0]) + r * n, value_ptr(j->c, j->s->out[0]) + r * n, n, j->s->p[0].f);
}

int run_softcap(const op_ctx *c, const step *s) { return run_rows_of(c, s, softcap_row, value_rows(c, s->in[0])); }

int check_scale(const op_check *c, step *s) {
    const param *w = &s->p[SCALE_W];
    if (w->n && (w->n != 1 || w->id[0] < 0 || c->weights[w->id[0]].n != c->values[s->in[0]].width)) return op_fail(c, s, "one vector of the input's width is needed");
    return check_same(c, s);
}

static void scale_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width;
    const float *x = value_ptr(j->c, j->s->in[0]) + r * n;
    const float *w = j->s->p[SCALE_W].n ? j->c->weights[j->s->p[SCALE_W].id[0]].vec : NULL;
    float *y = value_ptr(j->c, j->s->out[0]) + r * n, by = j->s->p[SCALE_BY].f;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * by;
    for (int64_t i = 0; i < n && w; i++) y[i] = y[i] * w[i];
}

int run_scale(const op_ctx *c, const step *s) { return run_rows_of(c, s, scale_row, value_rows(c, s->in[0])); }

int check_glu(const op_check *c, step *s) {
    const value *gate = &c->values[s->in[0]], *up = &c->values[s->in[1]];
    if ((gate->width != up->width && gate->width != 1) || gate->late != up->late)
        return op_fail(c, s, "%s and %s differ in shape", gate->name, up->name);
    if (gate->width != up->width && s->p[0].i[0] >= ACT_COUNT) return op_fail(c, s, "swiglu_oai needs two inputs of one width");
    c->values[s->out[0]].width = up->width;
    return 0;
}

static void glu_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int act = (int)j->s->p[0].i[0];
    int64_t n = j->c->values[j->s->in[1]].width, width = j->c->values[j->s->in[0]].width;
    const float *gate = value_ptr(j->c, j->s->in[0]) + r * width, *up = value_ptr(j->c, j->s->in[1]) + r * n;
    float *y = value_ptr(j->c, j->s->out[0]) + r * n, one;
    if (width == n) {
        j->c->k->gated(act, gate, up, y, n);
        return;
    }
    j->c->k->act(act, gate, &one, 1);
    for (int64_t i = 0; i < n; i++) y[i] = one * up[i];
}

int run_glu(const op_ctx *c, const step *s) { return run_rows_of(c, s, glu_row, value_rows(c, s->in[0])); }

int check_act(const op_check *c, step *s) {
    return s->p[0].i[0] < ACT_COUNT ? check_same(c, s) : op_fail(c, s, "swiglu_oai needs two inputs");
}

static void act_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width;
    j->c->k->act((int)j->s->p[0].i[0], value_ptr(j->c, j->s->in[0]) + r * n, value_ptr(j->c, j->s->out[0]) + r * n, n);
}

int run_act(const op_ctx *c, const step *s) { return run_rows_of(c, s, act_row, value_rows(c, s->in[0])); }

int check_add(const op_check *c, step *s) {
    const value *x = &c->values[s->in[0]], *z = &c->values[s->in[1]];
    if (x->width != z->width || x->late != z->late) return op_fail(c, s, "%s and %s differ in shape", x->name, z->name);
    return check_same(c, s);
}

static void add_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width;
    const float *x = value_ptr(j->c, j->s->in[0]) + r * n, *z = value_ptr(j->c, j->s->in[1]) + r * n;
    float *y = value_ptr(j->c, j->s->out[0]) + r * n;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] + z[i];
}

int run_add(const op_ctx *c, const step *s) { return run_rows_of(c, s, add_row, value_rows(c, s->in[0])); }

int check_mul(const op_check *c, step *s) { return check_add(c, s); }

static void mul_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width;
    const float *x = value_ptr(j->c, j->s->in[0]) + r * n, *z = value_ptr(j->c, j->s->in[1]) + r * n;
    float *y = value_ptr(j->c, j->s->out[0]) + r * n;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * z[i];
}

int run_mul(const op_ctx *c, const step *s) { return run_rows_of(c, s, mul_row, value_rows(c, s->in[0])); }

int check_mix(const op_check *c, step *s) {
    const value *x = &c->values[s->in[0]];
    const param *w = &s->p[MIX_W], *by = &s->p[MIX_BY];
    if (w->n != 1 || (w->id[0] < 0 && !by->n)) return op_fail(c, s, "a vector or a value to mix by is needed");
    if (w->id[0] >= 0 && c->weights[w->id[0]].n != x->width) return op_fail(c, s, "%s does not have the input's width", c->weights[w->id[0]].name);
    if (by->n && (c->values[by->id[0]].width != x->width || c->values[by->id[0]].late != x->late)) return op_fail(c, s, "by does not have the input's shape");
    return check_add(c, s);
}

static void mix_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const step *s = j->s;
    int64_t n = j->c->values[s->in[0]].width;
    const float *x = value_ptr(j->c, s->in[0]) + r * n, *z = value_ptr(j->c, s->in[1]) + r * n;
    const float *w = s->p[MIX_W].id[0] < 0 ? NULL : j->c->weights[s->p[MIX_W].id[0]].vec;
    const float *by = s->p[MIX_BY].n ? value_ptr(j->c, s->p[MIX_BY].id[0]) + r * n : NULL;
    float *y = value_ptr(j->c, s->out[0]) + r * n;
    if (w && by)
        for (int64_t i = 0; i < n; i++) y[i] = x[i] + (z[i] - x[i]) * (w[i] + by[i]);
    else
        for (int64_t i = 0; i < n; i++) y[i] = x[i] + (z[i] - x[i]) * (w ? w[i] : by[i]);
}

int run_mix(const op_ctx *c, const step *s) { return run_rows_of(c, s, mix_row, value_rows(c, s->in[0])); }
