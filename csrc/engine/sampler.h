/* The sampling chain. See pyllm.h for what each function promises. */
#ifndef PYLLM_ENGINE_SAMPLER_H
#define PYLLM_ENGINE_SAMPLER_H
#include "../base/err.h"
#include "../pyllm.h"

void sampling_defaults(pyllm_sampling *s);
int sampler_new(int32_t n_vocab, const pyllm_sampling *s, const pyllm_logprob *bias, int32_t n_bias,
                const int32_t *breakers, int32_t n_breakers, pyllm_sampler **out, pyllm_error *err);
void sampler_free(pyllm_sampler *s);
int sampler_accept(pyllm_sampler *s, const int32_t *ids, int64_t n, pyllm_error *err);
/* n_logits: tokens that there are logits of, from id 0 on; others cannot be chosen. */
int sampler_sample(pyllm_sampler *s, const float *logits, int32_t n_logits, const uint32_t *mask, int64_t position, int32_t *id,
                   pyllm_logprob *top, int32_t n_top, pyllm_error *err);
int32_t sampler_n_vocab(const pyllm_sampler *s);
int sampler_rewind(pyllm_sampler *s, int64_t n, pyllm_error *err);
int32_t sampler_lookup(pyllm_sampler *s, int32_t *ids, int32_t max, int32_t *length);
/* choose.c */
struct pyllm_engine;
int choose(struct pyllm_engine *e, pyllm_choice *choices, int32_t n, pyllm_error *err);
#endif
