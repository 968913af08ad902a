/* Sequences as bytes: a header, the visible pages of every layer group, a checksum over all of it. */
#include "engine.h"

#include "../base/checksum.h"

#include <string.h>

enum { STATE_VERSION = 2 };
static const char magic[8] = {'P', 'Y', 'L', 'L', 'M', 'S', 'E', 'Q'};

typedef struct header {
    char magic[8];
    uint32_t version, kv_type;
    uint64_t fingerprint;       /* of the model */
    int64_t length, bytes;      /* tokens; whole size with header and checksum */
} header;

/* Zeroes slots [from, PAGE) of a layer's K or V (kernels.h says where they lie): pages are not cleared when they change hands, and what an
   earlier sequence left there is nobody's business. */
static void clear_k(int type, int dim, uint8_t *k, int from) {
    size_t elem = type == KV_F32 ? 4 : 2, tail = (size_t)(PAGE - from);
    for (int i = 0; i < dim && !kv_quantized(type); i++) memset(k + (size_t)(i * PAGE + from) * elem, 0, tail * elem);
    for (int b = 0; b < dim / 32 && kv_quantized(type); b++, k += kv_page_bytes(type, 32)) {
        memset(k + 2 * from, 0, 2 * tail);
        for (int i = 0; i < (type == KV_Q8_0 ? 8 : 4); i++) memset(k + 2 * PAGE + (i * PAGE + from) * 4, 0, 4 * tail);
    }
}

static void clear_v(int type, int dim, uint8_t *v, int from) {
    size_t elem = type == KV_F32 ? 4 : 2, tail = (size_t)(PAGE - from);
    int bytes = type == KV_Q8_0 ? dim : dim / 2;        /* of a token's codes */
    if (!kv_quantized(type)) {
        memset(v + (size_t)(from * dim) * elem, 0, tail * (size_t)dim * elem);
        return;
    }
    memset(v + (size_t)(from * dim / 32) * 2, 0, tail * (size_t)(dim / 32) * 2);
    memset(v + (size_t)(PAGE * dim / 32) * 2 + (size_t)(from * bytes), 0, tail * (size_t)bytes);
}

void kv_clear_page(const pyllm_engine *e, int32_t group, uint8_t *page, int from) {
    for (int32_t l = 0; l < e->m->t.n_layers; l++) {
        const kv_layer *k = &e->layers[l];
        for (int h = 0; h < k->kv_heads && k->group == group; h++) {
            uint8_t *at = page + k->offset + (size_t)h * (k->k_bytes + k->v_bytes);
            clear_k(e->params.kv_type, k->dim, at, from);
            if (k->v_bytes) clear_v(e->params.kv_type, k->v_dim, at + k->k_bytes, from);
        }
    }
}

static int64_t state_bytes(const pyllm_engine *e, int64_t length) {
    int64_t n = (int64_t)sizeof(header) + 8;
    for (int32_t g = 0; g < e->n_groups; g++)
        n += ((length + PAGE - 1) / PAGE - kv_first_page(&e->groups[g], length)) * (int64_t)e->groups[g].page_bytes;
    return n;
}

int64_t seq_save(const pyllm_engine *e, int32_t id, void *out, int64_t max, pyllm_error *err) {
    int64_t length = seq_length(e, id);
    if (length < 0) return err_set(err, PYLLM_ERR_ARG, "sequence %d does not exist", id);
    const sequence *s = &e->seqs[id];
    int64_t bytes = state_bytes(e, length);
    if (max < bytes) return bytes;
    uint8_t *p = out;
    header h = {.version = STATE_VERSION, .kv_type = (uint32_t)e->params.kv_type, .length = length, .bytes = bytes};
    TRY(model_fingerprint(e->m, e->pool, &h.fingerprint, err));
    memcpy(h.magic, magic, sizeof magic);
    memcpy(p, &h, sizeof h);
    p += sizeof h;
    for (int32_t g = 0; g < e->n_groups; g++) {
        const kv_group *k = &e->groups[g];
        for (int64_t i = kv_first_page(k, length); i < (length + PAGE - 1) / PAGE; i++, p += k->page_bytes)
            memcpy(p, k->pool + (size_t)s->pages[g][i] * k->page_bytes, k->page_bytes);
        if (length % PAGE && !k->recurrent) kv_clear_page(e, g, p - k->page_bytes, (int)(length % PAGE));
    }
    uint64_t sum = checksum(out, (size_t)bytes - 8);
    memcpy(p, &sum, 8);
    return bytes;
}

static int check_state(const pyllm_engine *e, const void *data, int64_t n, header *h, pyllm_error *err) {
    uint64_t sum, model;
    if (n < (int64_t)sizeof *h + 8) return err_set(err, PYLLM_ERR_STATE, "a saved state of %lld bytes is too short", (long long)n);
    memcpy(h, data, sizeof *h);
    memcpy(&sum, (const uint8_t *)data + n - 8, 8);
    if (memcmp(h->magic, magic, sizeof magic) || h->version != STATE_VERSION)
        return err_set(err, PYLLM_ERR_STATE, "not a saved state of this version\nhint: run the conversation again");
    if (h->bytes != n || sum != checksum(data, (size_t)n - 8))
        return err_set(err, PYLLM_ERR_STATE, "the saved state is damaged: its checksum does not match\nhint: run the conversation again");
    TRY(model_fingerprint(e->m, e->pool, &model, err));
    if (h->fingerprint != model || h->kv_type != (uint32_t)e->params.kv_type)
        return err_set(err, PYLLM_ERR_STATE, "the saved state is of another model or KV type\nhint: load the model and kv it was saved with");
    if (h->length < 0 || h->length > e->max_pages * PAGE)
        return err_set(err, PYLLM_ERR_FULL, "the saved state has %lld tokens, this engine holds %lld", (long long)h->length, (long long)e->max_pages * PAGE);
    return state_bytes(e, h->length) == n ? 0 : err_set(err, PYLLM_ERR_STATE, "the saved state has a wrong size");
}

int seq_restore(pyllm_engine *e, int32_t id, const void *data, int64_t n, pyllm_error *err) {
    header h;
    if (seq_length(e, id) < 0) return err_set(err, PYLLM_ERR_ARG, "sequence %d does not exist", id);
    TRY(check_state(e, data, n, &h, err));
    sequence *s = &e->seqs[id];
    int64_t end = (h.length + PAGE - 1) / PAGE, old_end = (s->length + PAGE - 1) / PAGE;
    for (int32_t g = 0; g < e->n_groups; g++) {
        int64_t need = end - kv_first_page(&e->groups[g], h.length), have = kv_own_pages(&e->groups[g], s->pages[g], s->freed[g], old_end);
        if (need > e->groups[g].n_free + have)
            return err_set(err, PYLLM_ERR_FULL, "the saved state needs %lld cache pages, %lld are free", (long long)need,
                           (long long)(e->groups[g].n_free + have));
    }
    seq_truncate(e, id, 0, NULL);
    const uint8_t *p = (const uint8_t *)data + sizeof h;
    for (int32_t g = 0; g < e->n_groups; g++) {
        kv_group *k = &e->groups[g];
        s->freed[g] = kv_first_page(k, h.length);
        for (int64_t i = 0; i < s->freed[g]; i++) s->pages[g][i] = -1;
        for (int64_t i = s->freed[g]; i < end; i++, p += k->page_bytes) {
            s->pages[g][i] = kv_new_page(k);
            memcpy(k->pool + (size_t)s->pages[g][i] * k->page_bytes, p, k->page_bytes);
        }
    }
    s->length = h.length;
    return 0;
}
