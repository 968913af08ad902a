/* The sampling chain: bias first, then the filters in the given order, then the argmax of logit plus Gumbel noise.
 *
 * Candidates are (id, logit) pairs. A filter keeps a prefix: whatever needs order selects and sorts only the part that it looks at.
 * Order of candidates: higher logit first, then lower id. */
#include "sampler.h"

#include "../base/alloc.h"
#include "../base/rng.h"

#include <string.h>

typedef struct candidate { int32_t id; float logit, key; } candidate;    /* key: what sorting looks at, the logit except inside typical */

struct pyllm_sampler {
    pyllm_sampling p;
    int32_t n_vocab, n_bias, n_breakers;
    pyllm_logprob *bias;
    uint8_t *breaker;               /* bit per token */
    candidate *c;                   /* [n_vocab] */
    int32_t n, sorted;              /* candidates left; how many of them are the best, in order */
    int32_t *count;                 /* [n_vocab] scratch: occurrences in the penalty window; all zero between calls */
    int32_t *history, *z;           /* [room] */
    int64_t n_history, room;
};

void sampling_defaults(pyllm_sampling *s) {
    *s = (pyllm_sampling){.top_k = 40, .temperature = 0.8f, .top_p = 0.95f, .min_p = 0.05f, .typical_p = 1, .top_n_sigma = -1, .xtc_threshold = 0.1f,
                          .penalty_last_n = 64, .repeat_penalty = 1, .dry_base = 1.75f, .dry_allowed_length = 2, .dry_last_n = 64};
}

/* ---- parameters ---- */

static int in_range(pyllm_error *err, const char *name, double v, double lo, double hi) {
    return v >= lo && v <= hi ? 0 : err_set(err, PYLLM_ERR_ARG, "%s is %g, must be %g to %g", name, v, lo, hi);
}

static int check(const pyllm_sampling *p, pyllm_error *err) {
    TRY(in_range(err, "temperature", p->temperature, -1e6, 1e6));
    TRY(in_range(err, "top_k", p->top_k, 0, 1 << 30));
    TRY(in_range(err, "top_p", p->top_p, 0, 1));
    TRY(in_range(err, "min_p", p->min_p, 0, 1));
    TRY(in_range(err, "typical_p", p->typical_p, 0, 1));
    TRY(in_range(err, "top_n_sigma", p->top_n_sigma, -1e6, 1e6));
    TRY(in_range(err, "xtc_probability", p->xtc_probability, 0, 1));
    TRY(in_range(err, "xtc_threshold", p->xtc_threshold, 0, 1));
    TRY(in_range(err, "penalty_last_n", p->penalty_last_n, -1, 1 << 30));
    TRY(in_range(err, "repeat_penalty", p->repeat_penalty, 1e-3, 1e3));
    TRY(in_range(err, "frequency_penalty", p->frequency_penalty, -100, 100));
    TRY(in_range(err, "presence_penalty", p->presence_penalty, -100, 100));
    TRY(in_range(err, "dry_multiplier", p->dry_multiplier, 0, 1e6));
    TRY(in_range(err, "dry_base", p->dry_base, 1, 1e3));
    TRY(in_range(err, "dry_allowed_length", p->dry_allowed_length, 1, 1 << 30));
    TRY(in_range(err, "dry_last_n", p->dry_last_n, -1, 1 << 30));
    TRY(in_range(err, "min_keep", p->min_keep, 0, 1 << 30));
    if (!memchr(p->order, 0, sizeof p->order)) return err_set(err, PYLLM_ERR_ARG, "order is not terminated");
    for (const char *s = p->order; *s; s++)
        if (!strchr("edskypmxt", *s) || strchr(s + 1, *s)) return err_set(err, PYLLM_ERR_ARG, "order '%s': '%c' is unknown or stands twice\n"
                                                                          "hint: letters of edskypmxt, each at most once", p->order, *s);
    return 0;
}

int sampler_new(int32_t n_vocab, const pyllm_sampling *p, const pyllm_logprob *bias, int32_t n_bias, const int32_t *breakers, int32_t n_breakers,
                pyllm_sampler **out, pyllm_error *err) {
    *out = NULL;
    TRY(check(p, err));
    if (n_vocab < 1 || n_bias < 0 || n_breakers < 0) return err_set(err, PYLLM_ERR_ARG, "a sampler needs a vocabulary");
    for (int32_t i = 0; i < n_bias; i++)
        if (bias[i].id < 0 || bias[i].id >= n_vocab || bias[i].logprob != bias[i].logprob || bias[i].logprob > 1e30f)
            return err_set(err, PYLLM_ERR_ARG, "logit_bias of token %d is not usable in a vocabulary of %d", bias[i].id, n_vocab);
    pyllm_sampler *s = mem_zalloc(sizeof *s);
    if (!s) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for a sampler");
    s->p = *p;
    if (!*s->p.order) memcpy(s->p.order, "edskypmxt", 10);
    if (s->p.min_keep < 1) s->p.min_keep = 1;
    s->n_vocab = n_vocab;
    s->n_bias = n_bias;
    s->n_breakers = n_breakers;
    s->bias = mem_array((size_t)n_bias + 1, sizeof *s->bias);
    s->breaker = mem_array((size_t)n_vocab / 8 + 1, 1);
    s->c = mem_alloc((size_t)n_vocab * sizeof *s->c);
    s->count = mem_array((size_t)n_vocab, sizeof *s->count);
    if (!s->bias || !s->breaker || !s->c || !s->count) {
        sampler_free(s);
        return err_set(err, PYLLM_ERR_MEMORY, "out of memory for a sampler");
    }
    if (n_bias) memcpy(s->bias, bias, (size_t)n_bias * sizeof *bias);
    for (int32_t i = 0; i < n_breakers; i++)
        if (breakers[i] >= 0 && breakers[i] < n_vocab) s->breaker[breakers[i] / 8] |= (uint8_t)(1 << breakers[i] % 8);
    *out = s;
    return 0;
}

void sampler_free(pyllm_sampler *s) {
    if (!s) return;
    mem_free(s->bias);
    mem_free(s->breaker);
    mem_free(s->c);
    mem_free(s->count);
    mem_free(s->history);
    mem_free(s->z);
    mem_free(s);
}

int sampler_accept(pyllm_sampler *s, const int32_t *ids, int64_t n, pyllm_error *err) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->n_vocab) return err_set(err, PYLLM_ERR_ARG, "token id %d is not in the vocabulary of %d", ids[i], s->n_vocab);
    if (s->n_history + n > s->room) {
        int64_t room = s->n_history + n + s->room / 2 + 256;
        int32_t *h = mem_realloc(s->history, (size_t)room * sizeof *h);
        if (h) s->history = h;
        int32_t *z = h ? mem_realloc(s->z, (size_t)room * sizeof *z) : NULL;
        if (!z) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for a history of %lld tokens", (long long)room);
        s->z = z;
        s->room = room;
    }
    if (n) memcpy(s->history + s->n_history, ids, (size_t)n * sizeof *ids);
    s->n_history += n;
    return 0;
}

/* ---- order ---- */

static int before(candidate a, candidate b) { return a.key != b.key ? a.key > b.key : a.id < b.id; }
static void swap(candidate *a, candidate *b) { candidate t = *a; *a = *b; *b = t; }

static void sift(candidate *c, int32_t n, int32_t i) {      /* a heap whose root is the last in order */
    for (int32_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && before(c[k], c[k + 1])) k++;
        if (!before(c[i], c[k])) break;
        swap(&c[i], &c[k]);
    }
}

/* Makes c[0..k) the k best, in order: a heap of k over one pass, then heap sort. Costs n + (changes) log k. */
static void sort_best(pyllm_sampler *s, int32_t k) {
    candidate *c = s->c;
    if (k > s->n) k = s->n;
    if (k <= s->sorted) return;
    for (int32_t i = k / 2 - 1; i >= 0; i--) sift(c, k, i);
    for (int32_t i = k; i < s->n; i++)
        if (before(c[i], c[0])) {
            swap(&c[i], &c[0]);
            sift(c, k, 0);
        }
    for (int32_t i = k - 1; i > 0; i--) {
        swap(&c[0], &c[i]);
        sift(c, i, 0);
    }
    s->sorted = k;
}

static float best_logit(const pyllm_sampler *s) {
    if (s->sorted) return s->c[0].logit;
    float m = s->c[0].logit;
    for (int32_t i = 1; i < s->n; i++) m = s->c[i].logit > m ? s->c[i].logit : m;
    return m;
}

static void keep_prefix(pyllm_sampler *s, int32_t n) {
    s->n = n;
    if (s->sorted > n) s->sorted = n;
}

/* Sum of e^(logit - best) over the candidates, in their order of storage. */
static double weight_sum(const pyllm_sampler *s, float best) {
    double sum = 0;
    for (int32_t i = 0; i < s->n; i++) sum += (double)exp32(s->c[i].logit - best);
    return sum;
}

static void set_logit(candidate *c, float l) { c->logit = c->key = l; }

/* ---- penalties ---- */

static void penalties(pyllm_sampler *s) {
    const pyllm_sampling *p = &s->p;
    if (p->penalty_last_n == 0 || (p->repeat_penalty == 1 && p->frequency_penalty == 0 && p->presence_penalty == 0)) return;
    int64_t first = p->penalty_last_n < 0 || p->penalty_last_n > s->n_history ? 0 : s->n_history - p->penalty_last_n;
    for (int64_t i = first; i < s->n_history; i++) s->count[s->history[i]]++;
    for (int32_t i = 0; i < s->n; i++) {
        int32_t n = s->count[s->c[i].id];
        if (!n) continue;
        float l = s->c[i].logit;
        l = l > 0 ? l / p->repeat_penalty : l * p->repeat_penalty;
        set_logit(&s->c[i], l - ((float)n * p->frequency_penalty + p->presence_penalty));
    }
    for (int64_t i = first; i < s->n_history; i++) s->count[s->history[i]] = 0;
    s->sorted = 0;
}

/* z[i]: how many tokens before position n - i match the last tokens (the Z function of the reversed history). O(n). */
static void z_function(const int32_t *h, int64_t n, int32_t *z) {
    for (int64_t i = 1, l = 0, r = 0; i < n; i++) {
        int64_t k = i < r ? (z[i - l] < r - i ? z[i - l] : r - i) : 0;
        while (i + k < n && h[n - 1 - k] == h[n - 1 - i - k]) k++;
        z[i] = (int32_t)k;
        if (i + k > r) {
            l = i;
            r = i + k;
        }
    }
}

/* "Don't repeat yourself": a token that would lengthen a repetition of the last L >= allowed_length tokens loses
   multiplier * base^(L - allowed_length). A repetition does not reach over a breaker. */
static void dry(pyllm_sampler *s) {
    const pyllm_sampling *p = &s->p;
    int64_t n = p->dry_last_n < 0 || p->dry_last_n > s->n_history ? s->n_history : p->dry_last_n;
    if (p->dry_multiplier == 0 || n < 2) return;
    const int32_t *h = s->history + s->n_history - n;
    int64_t limit = 0;
    while (limit < n && !(s->breaker[h[n - 1 - limit] / 8] >> h[n - 1 - limit] % 8 & 1)) limit++;
    if (limit < p->dry_allowed_length) return;
    z_function(h, n, s->z);
    for (int64_t i = 1; i < n; i++) {               /* the token that followed the earlier occurrence */
        int32_t len = s->z[i] < limit ? s->z[i] : (int32_t)limit, *c = &s->count[h[n - i]];
        if (len >= p->dry_allowed_length && len > *c) *c = len;
    }
    for (int32_t i = 0; i < s->n; i++) {
        int32_t len = s->count[s->c[i].id];
        if (!len) continue;
        double e = (double)(len - p->dry_allowed_length) * math_log(p->dry_base);
        set_logit(&s->c[i], s->c[i].logit - p->dry_multiplier * (float)math_exp(e < 80 ? e : 80));
    }
    for (int64_t i = 0; i < n; i++) s->count[h[i]] = 0;
    s->sorted = 0;
}

/* ---- filters ---- */

static void top_k(pyllm_sampler *s) {
    if (s->p.top_k <= 0 || s->p.top_k >= s->n) return;
    int32_t k = s->p.top_k > s->p.min_keep ? s->p.top_k : s->p.min_keep;
    sort_best(s, k);
    keep_prefix(s, k < s->n ? k : s->n);
}

/* Keeps the candidates that pass `logit >= least`, and the best min_keep in any case. */
static void keep_above(pyllm_sampler *s, float least) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n; i++) n += s->c[i].logit >= least;
    if (n < s->p.min_keep || s->sorted) {
        n = n < s->p.min_keep ? s->p.min_keep : n;
        sort_best(s, n);
        keep_prefix(s, n < s->n ? n : s->n);
        return;
    }
    n = 0;
    for (int32_t i = 0; i < s->n; i++)
        if (s->c[i].logit >= least) s->c[n++] = s->c[i];
    keep_prefix(s, n);
}

static void min_p(pyllm_sampler *s) {
    if (s->p.min_p > 0) keep_above(s, best_logit(s) + (float)math_log(s->p.min_p));
}

/* Keeps logits within n standard deviations of the best (of those that are not banned). */
static void top_n_sigma(pyllm_sampler *s) {
    if (s->p.top_n_sigma <= 0) return;
    double sum = 0, square = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n; i++) {
        if (s->c[i].logit == -__builtin_inff()) continue;
        sum += s->c[i].logit;
        n++;
    }
    if (!n) return;
    double mean = sum / n;
    for (int32_t i = 0; i < s->n; i++) {
        double d = s->c[i].logit - mean;
        if (s->c[i].logit != -__builtin_inff()) square += d * d;
    }
    keep_above(s, best_logit(s) - s->p.top_n_sigma * (float)__builtin_sqrt(square / n));
}

/* The smallest prefix of the order whose probability reaches p. */
static void top_p(pyllm_sampler *s) {
    if (s->p.top_p >= 1) return;
    float best = best_logit(s);
    double want = (double)s->p.top_p * weight_sum(s, best), sum = 0;
    int32_t k = 0;
    for (int32_t part = 256; k < s->n; part = part < s->n / 4 ? part * 4 : s->n) {
        sort_best(s, part);
        for (; k < s->sorted; k++) {
            sum += (double)exp32(s->c[k].logit - best);
            if (sum >= want && k + 1 >= s->p.min_keep) {
                keep_prefix(s, k + 1);
                return;
            }
        }
    }
}

/* Locally typical sampling (Meister et al., 2022): the tokens whose surprise is nearest to the entropy, up to probability typical_p. */
static void typical(pyllm_sampler *s) {
    if (s->p.typical_p >= 1) return;
    float best = best_logit(s);
    double sum = weight_sum(s, best), log_sum = math_log(sum), entropy = 0, mass = 0;
    for (int32_t i = 0; i < s->n; i++) {
        double p = (double)exp32(s->c[i].logit - best) / sum;
        if (p > 0) entropy += p * (log_sum - (double)(s->c[i].logit - best));
    }
    for (int32_t i = 0; i < s->n; i++) s->c[i].key = -(float)__builtin_fabs(log_sum - (double)(s->c[i].logit - best) - entropy);
    s->sorted = 0;
    int32_t k = 0, keep = s->n;
    for (int32_t part = 256; k < keep; part = part < s->n / 4 ? part * 4 : s->n) {
        sort_best(s, part);
        for (; k < s->sorted && k < keep; k++) {
            mass += (double)exp32(s->c[k].logit - best) / sum;
            if (mass >= s->p.typical_p && k + 1 >= s->p.min_keep) keep = k + 1;
        }
    }
    keep_prefix(s, keep);
    for (int32_t i = 0; i < s->n; i++) s->c[i].key = s->c[i].logit;
    s->sorted = 0;
}

/* Exclude top choices: with xtc_probability, of the tokens of at least xtc_threshold only the least likely stays. */
static void xtc(pyllm_sampler *s, int64_t position) {
    if (s->p.xtc_probability <= 0 || s->p.xtc_threshold > 0.5f || s->n < 2) return;
    if (rng_uniform(s->p.seed, s->p.choice, position, -1) > (double)s->p.xtc_probability) return;
    float best = best_logit(s);
    double sum = weight_sum(s, best);
    int32_t above = 0;
    sort_best(s, 64);                       /* more than 1/threshold can never be above it; a tiny threshold sorts more */
    for (;; sort_best(s, 4 * s->sorted)) {
        while (above < s->sorted && (double)exp32(s->c[above].logit - best) / sum >= (double)s->p.xtc_threshold) above++;
        if (above < s->sorted || s->sorted == s->n) break;
    }
    if (above < 2 || s->n - (above - 1) < s->p.min_keep) return;
    memmove(s->c, s->c + above - 1, (size_t)(s->n - above + 1) * sizeof *s->c);
    s->n -= above - 1;
    s->sorted -= above - 1;
}

static void temperature(pyllm_sampler *s) {
    if (s->p.temperature <= 0 || s->p.temperature == 1) return;
    for (int32_t i = 0; i < s->n; i++) set_logit(&s->c[i], s->c[i].logit / s->p.temperature);
}

static void run_filter(pyllm_sampler *s, char f, int64_t position) {
    switch (f) {
    case 'e': penalties(s); return;
    case 'd': dry(s); return;
    case 's': top_n_sigma(s); return;
    case 'k': top_k(s); return;
    case 'y': typical(s); return;
    case 'p': top_p(s); return;
    case 'm': min_p(s); return;
    case 'x': xtc(s, position); return;
    default: temperature(s);
    }
}

/* ---- one token ---- */

static int load(pyllm_sampler *s, const float *logits, pyllm_error *err) {
    int32_t finite = 0;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        s->c[i] = (candidate){i, logits[i], logits[i]};
        finite += logits[i] < __builtin_inff() && logits[i] > -__builtin_inff();
    }
    for (int32_t i = 0; i < s->n_vocab && finite < s->n_vocab; i++)
        if (logits[i] != logits[i] || logits[i] == __builtin_inff())
            return err_set(err, PYLLM_ERR_ARG, "non-finite logits: %g at token id %d\nhint: the model file may be damaged, or its arithmetic overflows",
                           (double)logits[i], i);
    for (int32_t i = 0; i < s->n_bias; i++) {
        float l = s->c[s->bias[i].id].logit + s->bias[i].logprob;
        if (l == -__builtin_inff() && s->c[s->bias[i].id].logit != l) finite--;
        set_logit(&s->c[s->bias[i].id], l);
    }
    s->n = s->n_vocab;
    s->sorted = 0;
    return finite > 0 ? 0 : err_set(err, PYLLM_ERR_ARG, "non-finite logits: every token is banned");
}

/* argmax of logit + noise (noise only with a temperature), ties to the lower id. */
static int32_t choose(const pyllm_sampler *s, int64_t position) {
    int32_t id = -1;
    double best = 0;
    for (int32_t i = 0; i < s->n; i++) {
        double v = s->c[i].logit;
        if (v == -(double)__builtin_inff()) continue;
        if (s->p.temperature > 0) v += rng_gumbel(s->p.seed, s->p.choice, position, s->c[i].id);
        if (id < 0 || v > best || (v == best && s->c[i].id < id)) {
            id = s->c[i].id;
            best = v;
        }
    }
    return id;
}

/* Natural logarithms of probabilities of the untouched distribution. */
static void report(pyllm_sampler *s, const float *logits, int32_t id, pyllm_logprob *top, int32_t n_top) {
    for (int32_t i = 0; i < s->n_vocab; i++) s->c[i] = (candidate){i, logits[i], logits[i]};
    s->n = s->n_vocab;
    s->sorted = 0;
    sort_best(s, n_top > 0 ? n_top : 1);
    float best = s->c[0].logit;
    double log_sum = math_log(weight_sum(s, best));
    for (int32_t i = 0; i < n_top; i++) top[i] = (pyllm_logprob){s->c[i].id, (float)((double)s->c[i].logit - (double)best - log_sum)};
    top[n_top] = (pyllm_logprob){id, (float)((double)logits[id] - (double)best - log_sum)};
}

int sampler_sample(pyllm_sampler *s, const float *logits, int64_t position, int32_t *id, pyllm_logprob *top, int32_t n_top, pyllm_error *err) {
    if (n_top < 0 || (n_top && !top)) return err_set(err, PYLLM_ERR_STATE, "n_top is %d", n_top);
    TRY(load(s, logits, err));
    for (const char *f = s->p.order; *f; f++) run_filter(s, *f, position);
    *id = choose(s, position);
    if (*id < 0) return err_set(err, PYLLM_ERR_ARG, "non-finite logits: every token is banned");
    if (top) report(s, logits, *id, top, n_top < s->n_vocab ? n_top : s->n_vocab);
    return 0;
}
