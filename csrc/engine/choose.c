/* The tokens of all requests of a step at once, spread over the engine's workers. */
#include "engine.h"
#include "sampler.h"

/* The tokens of one request: rows are looked at as long as each was computed at the token that has been chosen. */
static void choose_one(void *ctx, int64_t item, int worker) {
    (void)worker;
    pyllm_choice *c = (pyllm_choice *)ctx + item;
    for (int32_t i = 0; i <= c->n_drafts; i++) {
        pyllm_logprob *top = c->top ? c->top + (int64_t)i * ((int64_t)c->n_top + 1) : NULL;
        c->rc = sampler_sample(c->sampler, c->logits + (int64_t)i * c->n_logits, c->n_logits, i ? NULL : c->mask, c->position + i, &c->ids[i],
                               top, c->n_top, c->err);
        if (!c->rc) c->rc = sampler_accept(c->sampler, &c->ids[i], 1, c->err);
        if (c->rc) return;
        c->n++;
        if (i < c->n_drafts && c->ids[i] != c->drafts[i]) return;
    }
}

int choose(pyllm_engine *e, pyllm_choice *choices, int32_t n, pyllm_error *err) {
    for (int32_t i = 0; i < n; i++) {
        pyllm_choice *c = &choices[i];
        c->n = c->rc = 0;
        if (!c->sampler || !c->logits || !c->ids || c->n_logits < 1 || c->n_drafts < 0 || (c->n_drafts && (!c->drafts || c->mask)))
            return err_set(err, PYLLM_ERR_ARG, "choice %d is not complete, or has both a mask and drafts", i);
    }
    return pool_run(e->pool, choose_one, choices, n, 1, NULL);
}
