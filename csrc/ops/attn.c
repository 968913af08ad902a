/* Attention over the paged KV cache: store K and V of the batch's rows, then attend.
 *
 * Queries are taken in tiles: consecutive rows of one sequence times a block of the heads that share a kv head. Every tile sees its positions in
 * chunks of 256 at absolute multiples of 256 (kernels.h); chunk states merge in chunk order. With many rows one work item is a tile
 * with all its chunks; with few rows an item is one chunk of a tile, and a second pass merges. Both compute the same numbers.
 *
 * Without causality (encoders) a row sees all rows of its sequence, or those at most half a window away on either side; the whole sequence is
 * one run then. */
#include "ops.h"

#include <string.h>

enum { CHUNK_PAGES = CHUNK / PAGE, SPLIT_ROWS = 16, DIM_MAX = 1024 };

int attn_v_is_k(const step *s) { return s->in[2] == s->in[1]; }

int64_t attn_v_dim(const step *s) { return s->p[ATTN_VALUES].n ? s->p[ATTN_VALUES].i[0] : s->p[ATTN_DIM].i[0]; }

/* Heads of a block: all that share a kv head, or the largest part of them that a kernel takes at once. */
static int block_heads(int64_t heads, int64_t kv_heads) {
    int64_t shared = heads / kv_heads, n = shared < ATTN_MAX ? shared : ATTN_MAX;
    while (shared % n) n--;
    return (int)n;
}

int check_attn(const op_check *c, step *s) {
    int64_t heads = s->p[ATTN_HEADS].i[0], kv = s->p[ATTN_KV_HEADS].i[0], dim = s->p[ATTN_DIM].i[0];
    int64_t v_dim = attn_v_dim(s);
    if (heads < 1 || kv < 1 || heads > 65536 || heads % kv)
        return op_fail(c, s, "%lld heads cannot share %lld kv heads", (long long)heads, (long long)kv);
    for (int i = 0; i < 2; i++) {
        int64_t n = i ? v_dim : dim;
        if (n < 16 || n % 16 || n > DIM_MAX)
            return err_set(c->err, PYLLM_ERR_UNSUPPORTED, "attention heads of %lld values: only multiples of 16 up to 1024 can run", (long long)n);
    }
    if (attn_v_is_k(s) && v_dim > dim) return op_fail(c, s, "keys of %lld do not hold values of %lld", (long long)dim, (long long)v_dim);
    const param *sinks = &s->p[ATTN_SINKS];
    if (s->p[ATTN_WINDOW].i[0] < 0) return op_fail(c, s, "window is negative");
    if (s->p[ATTN_CAUSAL].n && s->p[ATTN_CAUSAL].i[0] > 1) return op_fail(c, s, "causal is 0 or 1");
    if (sinks->n && (sinks->n != 1 || sinks->id[0] < 0 || c->weights[sinks->id[0]].n != heads)) return op_fail(c, s, "sinks are not one for each head");
    for (int i = 0; i < 3; i++)
        if (c->values[s->in[i]].width != (i ? kv : heads) * (i == 2 && !attn_v_is_k(s) ? v_dim : dim) || c->values[s->in[i]].late)
            return op_fail(c, s, "input %d has width %lld", i, (long long)c->values[s->in[i]].width);
    c->values[s->out[0]].width = heads * v_dim;
    return 0;
}

/* One tile: rows [row, row + n) of the batch, positions pos.. of one sequence. */
typedef struct tile {
    const int32_t *const *pages;
    int64_t pos, end;           /* end: of the sequence as far as it is stored, which rows see without causality */
    int64_t first, last;        /* first and last visible chunk */
    int32_t row, n;
} tile;

typedef struct attn_job {
    const op_ctx *c;
    const kv_layer *layer;
    const kv_group *group;
    const float *q, *k, *v;
    float *o;
    const float *sinks;         /* [heads] or NULL */
    float scale, softcap;
    int heads, share, dim, v_dim, tile_rows, causal;
    int blocks, kv_blocks;      /* of `share` heads: in all, and of a kv head */
    int64_t splits;             /* most chunks a tile has (split mode), else 0 */
    int64_t state_floats;       /* of one (tile, block, chunk) */
} attn_job;

/* Positions [*begin, *end) that the row at p sees. */
static void visible(const attn_job *j, const tile *t, int64_t p, int64_t *begin, int64_t *end) {
    int64_t w = j->group->window, back = j->causal ? w - 1 : w / 2;
    *begin = w && p > back ? p - back : 0;
    *end = j->causal ? p + 1 : w && p + back + 1 < t->end ? p + back + 1 : t->end;
}

static uint8_t *page_at(const attn_job *j, int32_t page, int kv_head) {
    return j->group->pool + (size_t)page * j->group->page_bytes + j->layer->offset +
           (size_t)kv_head * (j->layer->k_bytes + j->layer->v_bytes);
}

static void store_row(void *ctx, int64_t item, int worker) {
    (void)worker;
    const attn_job *j = ctx;
    const batch *b = j->c->b;
    int32_t r = 0;
    while (item >= b->runs[r].row + b->runs[r].n) r++;
    const run *u = &b->runs[r];
    int64_t pos = u->pos + (item - u->row);
    int32_t page = u->pages[j->layer->group][pos / PAGE];
    for (int h = 0; h < j->layer->kv_heads; h++) {
        uint8_t *p = page_at(j, page, h);
        int64_t head = item * j->layer->kv_heads + h;
        j->c->k->kv_store_k[j->c->kv_type](j->k + head * j->dim, j->dim, p, (int)(pos % PAGE));
        if (j->layer->v_bytes) j->c->k->kv_store_v[j->c->kv_type](j->v + head * j->v_dim, j->v_dim, p + j->layer->k_bytes, (int)(pos % PAGE));
    }
}

/* The i-th tile of the batch; tiles never cross runs. Returns 0 past the last. */
static int tile_get(const attn_job *j, int64_t i, tile *t) {
    const batch *b = j->c->b;
    for (int32_t r = 0; r < b->n_runs; r++) {
        const run *u = &b->runs[r];
        int64_t tiles = (u->n + j->tile_rows - 1) / j->tile_rows;
        if (i >= tiles) {
            i -= tiles;
            continue;
        }
        int32_t at = (int32_t)i * j->tile_rows;
        t->pages = u->pages;
        t->row = u->row + at;
        t->n = u->n - at < j->tile_rows ? u->n - at : j->tile_rows;
        t->pos = u->pos + at;
        t->end = u->pos + u->n;
        int64_t begin, end;
        visible(j, t, t->pos, &begin, &end);
        t->first = begin / CHUNK;
        visible(j, t, t->pos + t->n - 1, &begin, &end);
        t->last = (end - 1) / CHUNK;
        return 1;
    }
    return 0;
}

static int64_t tile_count(const attn_job *j) {
    int64_t n = 0;
    for (int32_t r = 0; r < j->c->b->n_runs; r++) n += (j->c->b->runs[r].n + j->tile_rows - 1) / j->tile_rows;
    return n;
}

/* Of a worker's scratch: the kernel's part, then states of a tile and of a chunk; behind them the values of a chunk, where they are keys too. */
static size_t state_bytes(int dim, int v_dim) { return (attn_scratch_bytes(dim) + sizeof(float) * (size_t)ATTN_MAX * (4 + 2 * (size_t)v_dim) + 63) / 64 * 64; }

/* States of one chunk for the rows of a tile that see it: rows [*r0, *r0 + count). Returns count. m, l, o are indexed from row *r0. */
static int chunk_states(const attn_job *j, const tile *t, int64_t chunk, int block, int worker, int *r0, float *m, float *l, float *o) {
    const uint8_t *k_pages[CHUNK_PAGES] = {0}, *v_pages[CHUNK_PAGES] = {0}, *next_pages[CHUNK_PAGES] = {0};
    int16_t lo[ATTN_MAX], hi[ATTN_MAX];
    int kv_head = block / j->kv_blocks, first = -1, count = 0, low = CHUNK, high = 0;
    int64_t base = chunk * CHUNK;
    uint8_t *own = j->c->scratch + (size_t)worker * j->c->scratch_bytes, *values = own + state_bytes(j->dim, j->v_dim);
    for (int i = 0; i < t->n; i++) {
        int64_t begin, end;
        visible(j, t, t->pos + i, &begin, &end);
        int64_t a = begin > base ? begin - base : 0, e = end - base < CHUNK ? end - base : CHUNK;
        if (a >= e) continue;           /* rows that see the chunk are consecutive */
        if (first < 0) first = i;
        lo[count] = (int16_t)a;
        hi[count++] = (int16_t)e;
        if (a < low) low = (int)a;
        if (e > high) high = (int)e;
    }
    if (!count) return 0;
    const int32_t *table = t->pages[j->layer->group];
    int64_t next = chunk < t->last ? chunk + 1 : t->first;      /* the items of a worker: chunk after chunk, then the next block */
    int next_head = chunk < t->last || block + 1 == j->blocks ? kv_head : (block + 1) / j->kv_blocks;
    size_t v_bytes = kv_page_bytes(j->c->kv_type, j->v_dim);
    for (int p = low / PAGE; p * PAGE < high; p++) {
        k_pages[p] = page_at(j, table[chunk * CHUNK_PAGES + p], kv_head);
        v_pages[p] = k_pages[p] + j->layer->k_bytes;
        if (!j->layer->v_bytes) {
            kv_values_of_keys(j->c->kv_type, j->v_dim, k_pages[p], values + (size_t)p * v_bytes);
            v_pages[p] = values + (size_t)p * v_bytes;
        }
        int64_t page = next * CHUNK_PAGES + p;
        if (page * PAGE < t->end && table[page] >= 0) next_pages[p] = page_at(j, table[page], next_head);
    }
    int64_t ld = (int64_t)j->heads * j->dim;
    attn_args a = {.q = j->q + (t->row + first) * ld + (int64_t)block * j->share * j->dim, .ldq = ld, .rows = count, .group = j->share,
                   .dim = j->dim, .v_dim = j->v_dim, .scale = j->scale, .softcap = j->softcap, .k_pages = k_pages, .v_pages = v_pages, .next_pages = next_pages,
                   .lo = lo, .hi = hi, .m = m, .l = l, .o = o, .scratch = own};
    j->c->k->attn_chunk[j->c->kv_type](&a);
    *r0 = first;
    return count;
}

/* A sink is one more state, the last: its score, a weight of 1, no value. */
static void finish(const attn_job *j, const tile *t, int block, float *m, float *l, float *o) {
    static const float nothing[DIM_MAX];
    int group = j->share;
    for (int i = 0; i < t->n; i++)
        for (int h = 0; h < group; h++) {
            int s = i * group + h;
            if (j->sinks) j->c->k->attn_merge(&m[s], &l[s], o + (int64_t)s * j->v_dim, j->sinks[block * group + h], 1, nothing, j->v_dim);
            j->c->k->attn_finish(o + (int64_t)s * j->v_dim, l[s],
                                 j->o + ((int64_t)(t->row + i) * j->heads + (int64_t)block * group + h) * j->v_dim, j->v_dim);
        }
}

/* Whole tiles: chunk after chunk, merged at once. State and chunk buffers live in the worker's scratch behind the kernel's part. */
static void tile_item(void *ctx, int64_t item, int worker) {
    const attn_job *j = ctx;
    tile t;
    int block = (int)(item % j->blocks), group = j->share;
    if (!tile_get(j, item / j->blocks, &t)) return;
    float *m0 = (float *)(j->c->scratch + (size_t)worker * j->c->scratch_bytes + attn_scratch_bytes(j->dim));
    float *l0 = m0 + ATTN_MAX, *m1 = l0 + ATTN_MAX, *l1 = m1 + ATTN_MAX, *o0 = l1 + ATTN_MAX, *o1 = o0 + (int64_t)ATTN_MAX * j->v_dim;
    uint8_t begun[ATTN_MAX] = {0};
    for (int64_t chunk = t.first; chunk <= t.last; chunk++) {
        int r0, rows = chunk_states(j, &t, chunk, block, worker, &r0, m1, l1, o1);
        for (int64_t s = 0; s < (int64_t)rows * group; s++) {
            int64_t d = r0 * group + s;
            if (begun[d]) {
                j->c->k->attn_merge(&m0[d], &l0[d], o0 + d * j->v_dim, m1[s], l1[s], o1 + s * j->v_dim, j->v_dim);
            } else {
                begun[d] = 1;
                m0[d] = m1[s];
                l0[d] = l1[s];
                memcpy(o0 + d * j->v_dim, o1 + s * j->v_dim, (size_t)j->v_dim * 4);
            }
        }
    }
    finish(j, &t, block, m0, l0, o0);
}

/* Split mode: one item is one chunk of a tile; states land at [(tile*blocks + block)*splits + chunk - first]. */
static float *split_state(const attn_job *j, int64_t tile_block, int64_t split) {
    return j->c->states + (tile_block * j->splits + split) * j->state_floats;
}

static void split_item(void *ctx, int64_t item, int worker) {
    const attn_job *j = ctx;
    tile t;
    int64_t split = item % j->splits, tile_block = item / j->splits;
    if (!tile_get(j, tile_block / j->blocks, &t) || t.first + split > t.last) return;
    float *m = split_state(j, tile_block, split), *l = m + ATTN_MAX, *o = l + ATTN_MAX;
    int r0 = 0, rows = chunk_states(j, &t, t.first + split, (int)(tile_block % j->blocks), worker, &r0, m, l, o);
    ((int32_t *)(m + j->state_floats - 2))[0] = r0;
    ((int32_t *)(m + j->state_floats - 2))[1] = rows;
}

static void merge_item(void *ctx, int64_t tile_block, int worker) {
    const attn_job *j = ctx;
    tile t;
    int block = (int)(tile_block % j->blocks), group = j->share;
    if (!tile_get(j, tile_block / j->blocks, &t)) return;
    float *l0 = (float *)(j->c->scratch + (size_t)worker * j->c->scratch_bytes), *m0 = l0 + ATTN_MAX, *o0 = m0 + ATTN_MAX;
    uint8_t begun[ATTN_MAX] = {0};
    for (int64_t split = 0; split <= t.last - t.first; split++) {
        const float *m = split_state(j, tile_block, split), *l = m + ATTN_MAX, *o = l + ATTN_MAX;
        int r0 = ((const int32_t *)(m + j->state_floats - 2))[0], rows = ((const int32_t *)(m + j->state_floats - 2))[1];
        for (int s = 0; s < rows * group; s++) {
            int d = r0 * group + s;
            if (begun[d]) {
                j->c->k->attn_merge(&m0[d], &l0[d], o0 + (int64_t)d * j->v_dim, m[s], l[s], o + (int64_t)s * j->v_dim, j->v_dim);
            } else {
                begun[d] = 1;
                m0[d] = m[s];
                l0[d] = l[s];
                memcpy(o0 + (int64_t)d * j->v_dim, o + (int64_t)s * j->v_dim, (size_t)j->v_dim * 4);
            }
        }
    }
    finish(j, &t, block, m0, l0, o0);
}

static int64_t split_state_floats(int group, int v_dim, int rows) { return 2 * ATTN_MAX + (int64_t)rows * group * v_dim + 2; }

int64_t attn_states_floats(const step *s, int64_t n_positions, int32_t max_rows) {
    int64_t heads = s->p[ATTN_HEADS].i[0], group = block_heads(heads, s->p[ATTN_KV_HEADS].i[0]);
    int64_t chunks = n_positions / CHUNK + 2, rows = max_rows < SPLIT_ROWS ? max_rows : SPLIT_ROWS;
    int64_t cap = 64;           /* chunks of all split tiles together; longer contexts take whole tiles when many rows run at once */
    if (chunks < cap) chunks = chunks * rows < cap ? chunks * rows : cap;
    return chunks * (heads / group) * split_state_floats((int)group, (int)attn_v_dim(s), 1);
}

size_t attn_worker_bytes(const step *s) {
    int dim = (int)s->p[ATTN_DIM].i[0], v_dim = (int)attn_v_dim(s);
    return state_bytes(dim, v_dim) + (attn_v_is_k(s) ? CHUNK_PAGES * kv_page_bytes(KV_F32, v_dim) : 0);
}

int run_attn(const op_ctx *c, const step *s) {
    const kv_layer *layer = &c->layers[s->p[ATTN_LAYER].i[0]];
    attn_job j = {.c = c, .layer = layer, .group = &c->groups[layer->group], .q = value_ptr(c, s->in[0]), .k = value_ptr(c, s->in[1]),
                  .v = value_ptr(c, s->in[2]), .o = value_ptr(c, s->out[0]), .scale = s->p[ATTN_SCALE].f,
                  .softcap = s->p[ATTN_SOFTCAP].f, .heads = (int)s->p[ATTN_HEADS].i[0], .dim = layer->dim, .v_dim = layer->v_dim};
    j.share = block_heads(j.heads, layer->kv_heads);
    j.blocks = j.heads / j.share;
    j.kv_blocks = j.blocks / layer->kv_heads;
    if (s->p[ATTN_SINKS].n) j.sinks = c->weights[s->p[ATTN_SINKS].id[0]].vec;
    j.causal = !s->p[ATTN_CAUSAL].n || s->p[ATTN_CAUSAL].i[0];
    for (int32_t r = 0; r < c->b->n_runs && !j.causal; r++)
        if (c->b->runs[r].pos)
            return err_set(c->err, PYLLM_ERR_ARG, "this model looks at a text as a whole: all of its rows belong in one step, one after the other");
    if (!s->kv_stored) TRY(pool_run(c->pool, store_row, &j, c->b->n_rows, 4, c->cancel));

    j.tile_rows = 1;            /* try split mode: single rows, chunks apart */
    j.state_floats = split_state_floats(j.share, j.v_dim, 1);
    int64_t tiles = c->b->n_rows, splits = 0;
    if (c->b->n_rows <= SPLIT_ROWS) {
        tile t;
        for (int64_t i = 0; tile_get(&j, i, &t); i++)
            if (t.last - t.first + 1 > splits) splits = t.last - t.first + 1;
    }
    if (splits > 1 && tiles * j.blocks * splits * j.state_floats <= c->states_floats) {
        j.splits = splits;
        TRY(pool_run(c->pool, split_item, &j, tiles * j.blocks * splits, 1, c->cancel));
        return pool_run(c->pool, merge_item, &j, tiles * j.blocks, 1, c->cancel);
    }
    j.tile_rows = ATTN_MAX / j.share < 16 ? ATTN_MAX / j.share : 16;
    return pool_run(c->pool, tile_item, &j, tile_count(&j) * j.blocks, 1, c->cancel);
}
