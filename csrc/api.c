/* pyllm.h on top of the core: argument checks, the float environment around every computing call, nothing else. No other file
   exports a symbol. */
#include "pyllm.h"

#include "base/bandwidth.h"
#include "base/checksum.h"
#include "base/math.h"
#include "base/threads.h"
#include "engine/engine.h"
#include "engine/pack_cache.h"
#include "engine/peak.h"
#include "engine/sampler.h"
#include "formats/formats.h"
#include "ops/quantize.h"
#include "tokenizer/tokenizer.h"

enum { ABI_VERSION = 4 };

#define NEED(cond, text) do { if (!(cond)) return err_set(err, PYLLM_ERR_ARG, text); } while (0)

/* Runs `call` with rounding to nearest and subnormals kept, whatever the caller has set. */
#define COMPUTE(type, call) uint64_t env_ = fpenv_enter(); type result_ = (call); fpenv_restore(env_); return result_

int pyllm_abi_version(void) { return ABI_VERSION; }

const char *pyllm_cpu_levels(void) { return kernels_levels(); }

const char *pyllm_cpu_level(void) {
    const kernels *k = kernels_get(NULL);
    return k ? k->level : NULL;
}

const char *pyllm_kernel_name(const char *level, int k) {
    const kernels *t = kernels_get(level);
    return t && k >= 0 && k < t->n_names ? t->names[k] : NULL;
}

uint64_t pyllm_float_env_enter(void) { return fpenv_enter(); }
void pyllm_float_env_restore(uint64_t saved) { fpenv_restore(saved); }

int pyllm_threads_default(void) { return threads_default(); }

int pyllm_read_bandwidth(int n_threads, int64_t bytes, double *bytes_per_s, pyllm_error *err) {
    NEED(n_threads >= 1 && n_threads <= 1024, "read_bandwidth: threads must be 1 to 1024");
    NEED(bytes >= 1 << 20 && bytes_per_s, "read_bandwidth: at least 1 MB, and bytes_per_s must not be NULL");
    return read_bandwidth(n_threads, bytes, bytes_per_s, err);
}

int pyllm_dot_peak(const char *level, int n_threads, double *macs_per_s, pyllm_error *err) {
    NEED(n_threads >= 1 && n_threads <= 1024 && macs_per_s, "dot_peak: threads must be 1 to 1024, and macs_per_s must not be NULL");
    const kernels *k = kernels_get(level);
    NEED(k, "dot_peak: there is no such CPU level here");
    return dot_peak(k, n_threads, macs_per_s, err);
}

double pyllm_math_exp(double x) { COMPUTE(double, math_exp(x)); }
double pyllm_math_log(double x) { COMPUTE(double, math_log(x)); }
double pyllm_math_pow(double x, double y) { COMPUTE(double, math_pow(x, y)); }
double pyllm_math_sin(double x) { COMPUTE(double, math_sin(x)); }
double pyllm_math_cos(double x) { COMPUTE(double, math_cos(x)); }

/* ---- GGUF ---- */

int pyllm_gguf_open(const char *path, pyllm_gguf **out, pyllm_error *err) {
    NEED(path && out, "gguf_open: path and out must not be NULL");
    return gguf_open(path, out, err);
}
int pyllm_gguf_add(pyllm_gguf *g, const char *path, const char *prefix, pyllm_error *err) {
    NEED(g && path && prefix, "gguf_add: g, path and prefix must not be NULL");
    return gguf_add(g, path, prefix, err);
}
void pyllm_gguf_close(pyllm_gguf *g) { gguf_close(g); }
int64_t pyllm_gguf_n_kv(const pyllm_gguf *g) { return gguf_n_kv(g); }
int64_t pyllm_gguf_n_tensors(const pyllm_gguf *g) { return gguf_n_tensors(g); }
int pyllm_gguf_kv(const pyllm_gguf *g, int64_t i, pyllm_kv *out) { return gguf_kv(g, i, out); }
int pyllm_gguf_tensor(const pyllm_gguf *g, int64_t i, pyllm_tensor *out) { return gguf_tensor(g, i, out); }
const char *pyllm_gguf_string(const pyllm_gguf *g, int64_t i, uint64_t j, uint64_t *len) { return gguf_string(g, i, j, len); }
int pyllm_gguf_read(const pyllm_gguf *g, int64_t i, uint64_t begin, uint64_t n, void *dst, pyllm_error *err) {
    return gguf_read(g, i, begin, n, dst, err);
}

const char *pyllm_type_name(uint32_t type) { return qtype_get(type) ? qtype_get(type)->name : NULL; }
int64_t pyllm_type_elems(uint32_t type) { return qtype_get(type) ? qtype_get(type)->elems : 0; }
int64_t pyllm_type_bytes(uint32_t type) { return qtype_get(type) ? qtype_get(type)->bytes : 0; }

int pyllm_dequantize(uint32_t type, const void *src, int64_t n, float *dst, pyllm_error *err) {
    const qtype_info *q = qtype_get(type);
    if (!q) return err_set(err, PYLLM_ERR_UNSUPPORTED, "tensor type id %u does not exist", type);
    if (n < 0 || n % q->elems) return err_set(err, PYLLM_ERR_ARG, "%lld elements are not whole blocks of %d", (long long)n, q->elems);
    uint64_t env = fpenv_enter();
    dequantize(type, src, n, dst);
    fpenv_restore(env);
    return 0;
}

int pyllm_quantize(uint32_t type, const float *src, int64_t n_rows, int64_t width, const float *weights, int n_threads, void *dst,
                   pyllm_error *err) {
    NEED(n_rows >= 0 && width >= 0 && ((src && dst) || !n_rows || !width), "quantize: no negative sizes, and src and dst must not be NULL");
    NEED(n_threads >= 1 && n_threads <= 1024, "quantize: threads must be 1 to 1024");
    COMPUTE(int, quantize(type, src, n_rows, width, weights, n_threads, dst, err));
}

/* ---- tokenizer ---- */

int pyllm_tokenizer_new(const pyllm_gguf *g, pyllm_tokenizer **out, pyllm_error *err) { COMPUTE(int, tokenizer_new(g, out, err)); }
void pyllm_tokenizer_free(pyllm_tokenizer *t) { tokenizer_free(t); }
int32_t pyllm_tokenizer_size(const pyllm_tokenizer *t) { return tokenizer_size(t); }
int64_t pyllm_tokenize(const pyllm_tokenizer *t, const char *text, int64_t n, int add_special, int parse_special, int32_t *ids, int64_t max,
                       pyllm_error *err) {
    NEED(n >= 0 && max >= 0, "tokenize: a negative length");
    COMPUTE(int64_t, tokenize(t, text, n, add_special, parse_special, ids, max, err));
}
const char *pyllm_token_bytes(const pyllm_tokenizer *t, int32_t id, int special, int64_t *len) { return token_bytes(t, id, special, len); }
int64_t pyllm_detokenize(const pyllm_tokenizer *t, const int32_t *ids, int64_t n, int special, char *out, int64_t max, pyllm_error *err) {
    NEED(n >= 0 && max >= 0, "detokenize: a negative length");
    return detokenize(t, ids, n, special, out, max, err);
}
const char *pyllm_token_text(const pyllm_tokenizer *t, int32_t id, int64_t *len) { return token_text(t, id, len); }
int32_t pyllm_token_type(const pyllm_tokenizer *t, int32_t id) { return token_type(t, id); }
int32_t pyllm_token_special(const pyllm_tokenizer *t, int kind) { return token_special(t, kind); }
int pyllm_token_is_end(const pyllm_tokenizer *t, int32_t id) { return token_is_end(t, id); }

/* ---- model and engine ---- */

int pyllm_model_load(const pyllm_gguf *g, const char *tape, int64_t tape_len, const char *level, const char *pack, int n_threads,
                     const volatile int32_t *cancel, pyllm_model **out, pyllm_error *err) {
    NEED(g && tape && tape_len >= 0 && out, "model_load: file, tape and out must not be NULL");
    COMPUTE(int, model_load(g, tape, tape_len, level, pack, n_threads, cancel, out, err));
}
void pyllm_model_free(pyllm_model *m) { model_free(m); }
int pyllm_model_plan(const pyllm_gguf *g, const char *tape, int64_t tape_len, int64_t *weight_bytes, uint64_t *key, pyllm_error *err) {
    COMPUTE(int, model_plan(g, tape, tape_len, weight_bytes, key, err));
}
int pyllm_model_store(const pyllm_model *m, const pyllm_gguf *g, const char *pack, int n_threads, const volatile int32_t *cancel,
                      pyllm_error *err) {
    NEED(m && g && pack, "model_store: model, file and path must not be NULL");
    return pack_store(m, g, pack, n_threads, cancel, err);
}
int pyllm_pack_info(const char *path, pyllm_pack *out, pyllm_error *err) {
    NEED(path && out, "pack_info: path and out must not be NULL");
    return pack_info(path, out, err);
}
int64_t pyllm_model_weight_bytes(const pyllm_model *m) { return (int64_t)m->memory_bytes; }
int32_t pyllm_model_n_vocab(const pyllm_model *m) { return (int32_t)m->t.n_vocab; }
int32_t pyllm_model_width(const pyllm_model *m) { return (int32_t)m->t.values[m->t.n_values - 1].width; }
int32_t pyllm_model_n_steps(const pyllm_model *m) { return m->t.n_steps; }
const char *pyllm_model_kernel(const pyllm_model *m, int k) {
    for (int i = 0; i <= k; i++)
        if (!m->kernel_names[i]) return NULL;
    return k < 0 ? NULL : m->kernel_names[k];
}

int pyllm_model_write(pyllm_model *m, const char *tensor, int64_t first, int64_t n, const void *rows, pyllm_error *err) {
    NEED(m && tensor && rows, "model_write: model, tensor and rows must not be NULL");
    return model_write(m, tensor, first, n, rows, err);
}

static int plan(const pyllm_gguf *g, const char *text, int64_t len, const pyllm_engine_params *p, int64_t *kv, int64_t *act, pyllm_error *err) {
    tape t;
    TRY(tape_parse(text, len, g, &t, err));
    int rc = engine_plan(&t, p, kv, act, err);
    tape_free(&t);
    return rc;
}
int pyllm_engine_plan(const pyllm_gguf *g, const char *text, int64_t len, const pyllm_engine_params *p, int64_t *kv_bytes,
                      int64_t *activation_bytes, pyllm_error *err) {
    COMPUTE(int, plan(g, text, len, p, kv_bytes, activation_bytes, err));
}
int pyllm_engine_new(pyllm_model *m, const pyllm_engine_params *p, pyllm_engine **out, pyllm_error *err) {
    NEED(m && p && out, "engine_new: model, parameters and out must not be NULL");
    return engine_new(m, p, out, err);
}
void pyllm_engine_free(pyllm_engine *e) { engine_free(e); }
int pyllm_engine_share(pyllm_engine *e, pyllm_engine *other, pyllm_error *err) {
    NEED(e && other, "engine_share: engines must not be NULL");
    return engine_share(e, other, err);
}
void pyllm_engine_profile(pyllm_engine *e, double *seconds) { e->profile = seconds; }
void pyllm_engine_observe(pyllm_engine *e, double *const *sums) { e->observe = sums; }
int pyllm_engine_part(pyllm_engine *e, int32_t first, int32_t last, const float *before, float *after, pyllm_error *err) {
    return engine_part(e, first, last, before, after, err);
}
int64_t pyllm_engine_live(const pyllm_engine *e, int32_t step) { return engine_live(e, step); }
int32_t pyllm_seq_new(pyllm_engine *e, pyllm_error *err) { return seq_new(e, err); }
void pyllm_seq_free(pyllm_engine *e, int32_t seq) { seq_free(e, seq); }
int64_t pyllm_seq_length(const pyllm_engine *e, int32_t seq) { return seq_length(e, seq); }
int pyllm_seq_truncate(pyllm_engine *e, int32_t seq, int64_t n, pyllm_error *err) { return seq_truncate(e, seq, n, err); }
int64_t pyllm_engine_free_positions(const pyllm_engine *e) { return engine_free_positions(e); }
int32_t pyllm_engine_n_groups(const pyllm_engine *e) { return e->n_groups; }
int pyllm_engine_group(const pyllm_engine *e, int32_t group, pyllm_group *out) {
    if (group < 0 || group >= e->n_groups) return PYLLM_ERR_ARG;
    const kv_group *k = &e->groups[group];
    *out = (pyllm_group){.window = k->window, .n_pages = k->n_pages, .n_free = k->n_free, .n_idle = k->n_idle, .recurrent = k->recurrent,
                         .page_bytes = (int64_t)k->page_bytes};
    return 0;
}
int pyllm_seq_pages(const pyllm_engine *e, int32_t seq, int64_t first, int64_t n, int32_t *pages, pyllm_error *err) {
    return seq_pages(e, seq, first, n, pages, err);
}
int pyllm_seq_attach(pyllm_engine *e, int32_t seq, int64_t length, const int32_t *pages, pyllm_error *err) {
    return seq_attach(e, seq, length, pages, err);
}
int pyllm_seq_adopt(pyllm_engine *e, int32_t seq, int64_t first, int64_t n, const int32_t *pages, pyllm_error *err) {
    return seq_adopt(e, seq, first, n, pages, err);
}
int pyllm_pages_keep(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err) { return pages_keep(e, pages, n, err); }
int pyllm_pages_drop(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err) { return pages_drop(e, pages, n, err); }
const void *pyllm_seq_page(pyllm_engine *e, int32_t seq, int32_t group, int64_t i, int64_t *bytes) { return seq_page(e, seq, group, i, bytes); }
uint64_t pyllm_checksum(const void *data, int64_t n) { return data && n > 0 ? checksum_block(data, (size_t)n) : 0; }
int pyllm_seq_load(pyllm_engine *e, int32_t seq, int64_t length, const char *path, const int64_t *offsets, const uint64_t *sums, pyllm_error *err) {
    NEED(path && offsets && sums, "seq_load: path, offsets and sums must not be NULL");
    return seq_load(e, seq, length, path, offsets, sums, err);
}
int64_t pyllm_pages_idle(const pyllm_engine *e, int32_t group, const int32_t *pages, int64_t n) { return pages_idle(e, group, pages, n); }
int pyllm_step(pyllm_engine *e, int32_t n_rows, const int32_t *tokens, const int32_t *seqs, const uint8_t *want, float *logits,
               const volatile int32_t *cancel, pyllm_error *err) {
    NEED(e && tokens && seqs, "step: engine, tokens and seqs must not be NULL");
    COMPUTE(int, engine_step(e, n_rows, tokens, seqs, want, logits, cancel, err));
}
void pyllm_cancel_set(volatile int32_t *flag, int32_t value) { __atomic_store_n(flag, value, __ATOMIC_RELAXED); }
int64_t pyllm_seq_save(const pyllm_engine *e, int32_t seq, void *out, int64_t max, pyllm_error *err) { return seq_save(e, seq, out, max, err); }
int pyllm_seq_restore(pyllm_engine *e, int32_t seq, const void *data, int64_t n, pyllm_error *err) { return seq_restore(e, seq, data, n, err); }

/* ---- sampling ---- */

void pyllm_sampling_defaults(pyllm_sampling *s) { sampling_defaults(s); }
int pyllm_sampler_new(int32_t n_vocab, const pyllm_sampling *s, const pyllm_logprob *bias, int32_t n_bias, const int32_t *breakers,
                      int32_t n_breakers, pyllm_sampler **out, pyllm_error *err) {
    return sampler_new(n_vocab, s, bias, n_bias, breakers, n_breakers, out, err);
}
void pyllm_sampler_free(pyllm_sampler *s) { sampler_free(s); }
int pyllm_sampler_accept(pyllm_sampler *s, const int32_t *ids, int64_t n, pyllm_error *err) { return sampler_accept(s, ids, n, err); }
int pyllm_sampler_sample(pyllm_sampler *s, const float *logits, const uint32_t *mask, int64_t position, int32_t *id, pyllm_logprob *top,
                         int32_t n_top, pyllm_error *err) {
    COMPUTE(int, sampler_sample(s, logits, sampler_n_vocab(s), mask, position, id, top, n_top, err));
}
int pyllm_sampler_rewind(pyllm_sampler *s, int64_t n, pyllm_error *err) { return sampler_rewind(s, n, err); }
int32_t pyllm_sampler_lookup(pyllm_sampler *s, int32_t *ids, int32_t max, int32_t *length) { return sampler_lookup(s, ids, max, length); }
int pyllm_choose(pyllm_engine *e, pyllm_choice *choices, int32_t n, pyllm_error *err) {
    NEED(e && (choices || !n), "choose: engine and choices must not be NULL");
    COMPUTE(int, choose(e, choices, n, err));
}
