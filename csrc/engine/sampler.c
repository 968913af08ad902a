/* The sampling chain: bias first, then the filters in the given order, then the argmax of logit plus Gumbel noise.
 *
 * Edits of single tokens and the first top-k read the plain array of logits ("dense"); every other filter works on a list
 * of candidates. No filter needs a sorted list: each keeps a set of best candidates, found by selection in linear time.
 * The order of candidates is: higher key first, then lower id. It has no ties, so no result depends on how it was found. */
#include "sampler.h"

#include "../base/alloc.h"
#include "../base/rng.h"

#include <string.h>

typedef struct candidate {
    int32_t id;
    float logit;
    float key;                      /* what selection compares: the logit, except inside typical */
    float weight;                   /* e^(logit - best logit), after weigh() */
} candidate;

struct pyllm_sampler {
    pyllm_sampling p;
    int32_t n_vocab, n_bias;
    pyllm_logprob *bias;
    uint8_t *breaker;               /* [n_vocab] 1 = ends a DRY match */
    float *x;                       /* [n_vocab] the logits of all tokens, while dense */
    candidate *c;                   /* [n_vocab] the candidates left, when not dense */
    int32_t n;                      /* candidates left */
    int dense;
    int32_t *count;                 /* [n_vocab] scratch of penalties and DRY; all zero between them */
    int32_t *history, *z;           /* [room] accepted tokens; scratch of DRY */
    int64_t n_history, room;
};

#define INF __builtin_inff()
enum { LOOKUP_MOST = 32 };          /* matches of so many tokens and more are equally good */

/* ---- parameters ---- */

void sampling_defaults(pyllm_sampling *s) {
    *s = (pyllm_sampling){.top_k = 40, .temperature = 0.8f, .top_p = 0.95f, .min_p = 0.05f, .typical_p = 1,
                          .top_n_sigma = -1, .xtc_threshold = 0.1f, .penalty_last_n = 64, .repeat_penalty = 1,
                          .dry_base = 1.75f, .dry_allowed_length = 2, .dry_last_n = 64};
}

static int check_order(const char *order, size_t room, pyllm_error *err) {
    if (!memchr(order, 0, room)) return err_set(err, PYLLM_ERR_ARG, "order is longer than %d letters", (int)room - 1);
    size_t known = strspn(order, "edskypmxt");
    if (order[known])
        return err_set(err, PYLLM_ERR_ARG, "order \"%s\" names no filter at \"%s\"\nhint: its letters are edskypmxt", order,
                       order + known);
    for (const char *s = order; *s; s++)
        if (strchr(s + 1, *s))
            return err_set(err, PYLLM_ERR_ARG, "order \"%s\" has '%c' twice\nhint: each filter runs at most once", order, *s);
    return 0;
}

static int check_parameters(const pyllm_sampling *p, pyllm_error *err) {
    const double any = 1 << 30;
    const struct { const char *name; double value, least, most; } range[] = {
        {"top_k", p->top_k, 0, any},
        {"temperature", p->temperature, -1e6, 1e6},
        {"top_p", p->top_p, 0, 1},
        {"min_p", p->min_p, 0, 1},
        {"typical_p", p->typical_p, 0, 1},
        {"top_n_sigma", p->top_n_sigma, -1e6, 1e6},
        {"xtc_probability", p->xtc_probability, 0, 1},
        {"xtc_threshold", p->xtc_threshold, 0, 1},
        {"penalty_last_n", p->penalty_last_n, -1, any},
        {"repeat_penalty", p->repeat_penalty, 1e-3, 1e3},
        {"frequency_penalty", p->frequency_penalty, -100, 100},
        {"presence_penalty", p->presence_penalty, -100, 100},
        {"dry_multiplier", p->dry_multiplier, 0, 1e6},
        {"dry_base", p->dry_base, 1, 1e3},
        {"dry_allowed_length", p->dry_allowed_length, 0, any},
        {"dry_last_n", p->dry_last_n, -1, any},
        {"min_keep", p->min_keep, 0, any},
    };
    for (size_t i = 0; i < sizeof range / sizeof *range; i++)
        if (!(range[i].value >= range[i].least && range[i].value <= range[i].most))     /* written so that NaN fails */
            return err_set(err, PYLLM_ERR_ARG, "%s is %g\nhint: it must be between %g and %g", range[i].name,
                           range[i].value, range[i].least, range[i].most);
    return check_order(p->order, sizeof p->order, err);
}

static int check_bias(const pyllm_logprob *bias, int32_t n, int32_t n_vocab, pyllm_error *err) {
    for (int32_t i = 0; i < n; i++) {
        if (bias[i].id < 0 || bias[i].id >= n_vocab)
            return err_set(err, PYLLM_ERR_ARG, "logit_bias of token %d\nhint: the vocabulary has tokens 0 to %d", bias[i].id,
                           n_vocab - 1);
        if (!(bias[i].logprob <= 1e30f))
            return err_set(err, PYLLM_ERR_ARG, "logit_bias of token %d is %g\nhint: a number up to 1e30; -inf bans the token",
                           bias[i].id, (double)bias[i].logprob);
    }
    return 0;
}

int sampler_new(int32_t n_vocab, const pyllm_sampling *p, const pyllm_logprob *bias, int32_t n_bias,
                const int32_t *breakers, int32_t n_breakers, pyllm_sampler **out, pyllm_error *err) {
    *out = NULL;
    if (n_vocab < 1 || n_bias < 0 || n_breakers < 0)
        return err_set(err, PYLLM_ERR_ARG, "a sampler of %d tokens, %d biases and %d breakers", n_vocab, n_bias, n_breakers);
    TRY(check_parameters(p, err));
    TRY(check_bias(bias, n_bias, n_vocab, err));
    pyllm_sampler *s = mem_zalloc(sizeof *s);
    if (s) {
        s->bias = mem_array((size_t)n_bias, sizeof *s->bias);
        s->breaker = mem_array((size_t)n_vocab, sizeof *s->breaker);
        s->x = mem_array((size_t)n_vocab, sizeof *s->x);
        s->c = mem_array((size_t)n_vocab, sizeof *s->c);
        s->count = mem_array((size_t)n_vocab, sizeof *s->count);
    }
    if (!s || !s->bias || !s->breaker || !s->x || !s->c || !s->count) {
        sampler_free(s);
        return err_set(err, PYLLM_ERR_MEMORY, "out of memory for a sampler of %d tokens", n_vocab);
    }
    s->p = *p;
    if (!s->p.order[0]) memcpy(s->p.order, "edskypmxt", sizeof "edskypmxt");
    if (s->p.min_keep < 1) s->p.min_keep = 1;
    s->n_vocab = n_vocab;
    s->n_bias = n_bias;
    if (n_bias) memcpy(s->bias, bias, (size_t)n_bias * sizeof *bias);
    for (int32_t i = 0; i < n_breakers; i++)        /* ids beyond the vocabulary can never be accepted: nothing to remember */
        if (breakers[i] >= 0 && breakers[i] < n_vocab) s->breaker[breakers[i]] = 1;
    *out = s;
    return 0;
}

void sampler_free(pyllm_sampler *s) {
    if (!s) return;
    mem_free(s->bias);
    mem_free(s->breaker);
    mem_free(s->x);
    mem_free(s->c);
    mem_free(s->count);
    mem_free(s->history);
    mem_free(s->z);
    mem_free(s);
}

int sampler_accept(pyllm_sampler *s, const int32_t *ids, int64_t n, pyllm_error *err) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->n_vocab)
            return err_set(err, PYLLM_ERR_ARG, "token id %d in the history\nhint: the vocabulary has tokens 0 to %d", ids[i],
                           s->n_vocab - 1);
    if (n <= 0) return 0;
    if (s->n_history + n > s->room) {
        int64_t room = s->n_history + n + s->room / 2 + 256;
        int32_t *h = mem_realloc(s->history, (size_t)room * sizeof *h);
        if (h) s->history = h;
        int32_t *z = h ? mem_realloc(s->z, (size_t)room * sizeof *z) : NULL;
        if (!z) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for a history of %lld tokens", (long long)room);
        s->z = z;
        s->room = room;
    }
    memcpy(s->history + s->n_history, ids, (size_t)n * sizeof *ids);
    s->n_history += n;
    return 0;
}

/* ---- selection ---- */

static int before(candidate a, candidate b) { return a.key != b.key ? a.key > b.key : a.id < b.id; }

static void swap(candidate *a, candidate *b) {
    candidate t = *a;
    *a = *b;
    *b = t;
}

/* Puts the median of three scattered candidates of c[lo, hi) last. Scattered, so that no input is quadratic by accident. */
static void choose_pivot(candidate *c, int32_t lo, int32_t hi) {
    uint64_t r = rng_mix((uint64_t)lo << 32 | (uint32_t)hi), n = (uint64_t)(hi - lo);
    int32_t a = lo + (int32_t)((r & 0xfffff) % n), b = lo + (int32_t)((r >> 20 & 0xfffff) % n);
    int32_t last = hi - 1;
    if (before(c[b], c[a])) swap(&c[a], &c[b]);
    if (before(c[last], c[a])) swap(&c[a], &c[last]);
    if (before(c[b], c[last])) swap(&c[b], &c[last]);
}

/* Keeps the shortest prefix of the order with at least `count` candidates and at least `mass` of weight. Looks at the first
   n candidates; those behind come after them in the order. Quickselect that also counts weights: O(n) expected. */
static void keep_best(pyllm_sampler *s, int32_t n, int32_t count, double mass) {
    candidate *c = s->c;
    int32_t lo = 0, hi = n;                         /* c[0, lo) is in, c[hi, n) is out */
    while (lo < hi && (lo < count || mass > 0)) {
        choose_pivot(c, lo, hi);
        candidate pivot = c[hi - 1];
        double weight = 0;
        int32_t m = lo;
        for (int32_t i = lo; i < hi - 1; i++)
            if (before(c[i], pivot)) {
                weight += (double)c[i].weight;
                swap(&c[i], &c[m++]);
            }
        swap(&c[m], &c[hi - 1]);
        if (m >= count && weight >= mass) {
            hi = m;                                 /* enough without the pivot */
        } else {
            lo = m + 1;
            mass -= weight + (double)pivot.weight;
        }
    }
    s->n = lo;
}

/* Moves the candidates whose logit is at least `least` to the front; returns how many. */
static int32_t partition(pyllm_sampler *s, float least) {
    int32_t m = 0;
    for (int32_t i = 0; i < s->n; i++)
        if (s->c[i].logit >= least) swap(&s->c[i], &s->c[m++]);
    return m;
}

/* Keeps logits of at least `least`, and the best min_keep in any case. */
static void keep_above(pyllm_sampler *s, float least) {
    int32_t m = partition(s, least);
    if (m >= s->p.min_keep) s->n = m;
    else keep_best(s, s->n, s->p.min_keep, 0);
}

/* Largest of n values. In lanes: a single running maximum would wait for itself at every step. */
static float largest(const float *x, int32_t n) {
    enum { LANES = 16 };
    float m[LANES];
    for (int j = 0; j < LANES; j++) m[j] = -INF;
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    for (; i < n; i++) m[0] = x[i] > m[0] ? x[i] : m[0];
    for (int j = 1; j < LANES; j++) m[0] = m[j] > m[0] ? m[j] : m[0];
    return m[0];
}

/* Makes the list of the tokens whose logit is at least `least`. */
static void list_above(pyllm_sampler *s, const float *x, float least) {
    int32_t m = 0;
    for (int32_t i = 0; i < s->n_vocab; i++)
        if (x[i] >= least) s->c[m++] = (candidate){i, x[i], x[i], 0};
    s->n = m;
    s->dense = 0;
}

/* Makes the list of the k best of all tokens. Of 8k blocks, k have a maximum of at least the k-th largest maximum, so that
   one is a bound which at least k tokens reach, and not many more. */
static void list_best(pyllm_sampler *s, const float *x, int32_t k) {
    float bound = -INF;
    int32_t size = s->n_vocab / k / 8;
    if (size > 1) {
        int32_t blocks = s->n_vocab / size;
        for (int32_t b = 0; b < blocks; b++) {
            float m = largest(x + (int64_t)b * size, size);
            s->c[b] = (candidate){b, m, m, 0};
        }
        keep_best(s, blocks, k, 0);
        bound = s->c[0].logit;
        for (int32_t b = 1; b < s->n; b++) bound = s->c[b].logit < bound ? s->c[b].logit : bound;
    }
    list_above(s, x, bound);
    keep_best(s, s->n, k, 0);
}

/* Whatever needs a list calls this first. */
static void need_list(pyllm_sampler *s) {
    if (s->dense) list_above(s, s->x, -INF);
}

/* ---- weights ---- */

/* e^x for x <= 0 within 2^-36 relative, exactly 0 below -100: double, branch-free and without division, because it runs over
   whole vocabularies (math_exp is made for few numbers). x = n ln2 + r, Taylor on |r| <= ln2/2, 2^n by exponent bits. */
static inline double exp_negative(double x) {
    const double round = 0x1.8p52;                  /* adding it leaves the nearest integer in the low bits */
    double t = x * 1.4426950408889634 + round, r = x - (t - round) * 0.6931471805599453;
    double p = 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1;
    p = p * r + 1;
    return x < -100 ? 0 : bits_f64(f64_to_bits(p) + (f64_to_bits(t) << 52));
}

static float best_logit(const pyllm_sampler *s) {
    float best = -INF;
    for (int32_t i = 0; i < s->n; i++) best = s->c[i].logit > best ? s->c[i].logit : best;
    return best;
}

/* Sets every candidate's weight; returns their sum. */
static double weigh(pyllm_sampler *s) {
    double best = (double)best_logit(s), sum = 0;
    for (int32_t i = 0; i < s->n; i++) {
        s->c[i].weight = (float)exp_negative((double)s->c[i].logit - best);
        sum += (double)s->c[i].weight;
    }
    return sum;
}

/* ---- penalties ---- */

typedef float edit_fn(const pyllm_sampling *p, int32_t count, float logit);

/* Applies f to the logit of every token with a count, and takes the counts back to zero. They belong to tokens of h[0, n). */
static void edit(pyllm_sampler *s, const int32_t *h, int64_t n, edit_fn *f) {
    for (int32_t i = 0; !s->dense && i < s->n; i++) {
        candidate *c = &s->c[i];
        if (s->count[c->id]) c->logit = c->key = f(&s->p, s->count[c->id], c->logit);
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t *count = &s->count[h[i]];
        if (s->dense && *count) s->x[h[i]] = f(&s->p, *count, s->x[h[i]]);
        *count = 0;
    }
}

/* The last tokens of the history that a look back of last_n (-1 = all) sees. */
static const int32_t *window(const pyllm_sampler *s, int32_t last_n, int64_t *n) {
    *n = last_n < 0 || last_n > s->n_history ? s->n_history : last_n;
    return s->history ? s->history + (s->n_history - *n) : NULL;
}

static float penalise(const pyllm_sampling *p, int32_t count, float logit) {
    float l = logit > 0 ? logit / p->repeat_penalty : logit * p->repeat_penalty;
    return l - ((float)count * p->frequency_penalty + p->presence_penalty);
}

static void penalties(pyllm_sampler *s) {
    if (s->p.repeat_penalty == 1 && s->p.frequency_penalty == 0 && s->p.presence_penalty == 0) return;
    int64_t n;
    const int32_t *h = window(s, s->p.penalty_last_n, &n);
    for (int64_t i = 0; i < n; i++) s->count[h[i]]++;
    edit(s, h, n, penalise);
}

/* z[i]: how many tokens that end i before the end of h[0, n) equal as many at the end (Gusfield's Z algorithm on the reversed
   array, O(n)). */
static void match_lengths(const int32_t *h, int64_t n, int32_t *z) {
    int64_t left = 0, right = 0;                    /* the match that reaches furthest covers reversed [left, right) */
    for (int64_t i = 1; i < n; i++) {
        int64_t k = 0;
        if (i < right) k = z[i - left] < right - i ? z[i - left] : right - i;
        while (i + k < n && h[n - 1 - k] == h[n - 1 - i - k]) k++;
        z[i] = (int32_t)k;
        if (i + k > right) {
            left = i;
            right = i + k;
        }
    }
}

/* count: length of the repetition that the token would lengthen, plus 1. Bounded, so that it cannot ban a token. */
static float dry_penalty(const pyllm_sampling *p, int32_t count, float logit) {
    double excess = (double)(count - 1 - p->dry_allowed_length) * math_log((double)p->dry_base);
    double penalty = (double)p->dry_multiplier * math_exp(excess < 88 ? excess : 88);
    return logit - (float)(penalty < 1e30 ? penalty : 1e30);
}

/* "Don't repeat yourself": the history's last L tokens stood earlier too; the token that followed there loses
   multiplier * base^(L - allowed_length) if L >= allowed_length. Breakers end the match and are never punished. */
static void dry(pyllm_sampler *s) {
    int64_t n, limit = 0;
    const int32_t *h = window(s, s->p.dry_last_n, &n);
    if (s->p.dry_multiplier == 0 || n < 2) return;
    while (limit < n && !s->breaker[h[n - 1 - limit]]) limit++;
    if (limit < s->p.dry_allowed_length) return;
    match_lengths(h, n, s->z);
    for (int64_t i = 1; i < n; i++) {
        int32_t next = h[n - i], length = s->z[i] < limit ? s->z[i] : (int32_t)limit;
        if (length >= s->p.dry_allowed_length && length + 1 > s->count[next] && !s->breaker[next])
            s->count[next] = length + 1;
    }
    edit(s, h, n, dry_penalty);
}

/* ---- filters ---- */

static void top_k(pyllm_sampler *s) {
    int32_t k = s->p.top_k > s->p.min_keep ? s->p.top_k : s->p.min_keep;
    if (s->p.top_k == 0 || k >= s->n) return;
    if (s->dense) list_best(s, s->x, k);
    else keep_best(s, s->n, k, 0);
}

/* The smallest set of likeliest tokens whose probabilities reach top_p. */
static void top_p(pyllm_sampler *s) {
    if (s->p.top_p >= 1) return;
    need_list(s);
    double sum = weigh(s), tail = 0.999 * (1 - (double)s->p.top_p) * sum / s->n;
    int32_t m = 0;                  /* all tokens lighter than `tail` weigh less than 1 - top_p together: never reached */
    for (int32_t i = 0; i < s->n; i++)
        if ((double)s->c[i].weight >= tail) swap(&s->c[i], &s->c[m++]);
    keep_best(s, m >= s->p.min_keep ? m : s->n, s->p.min_keep, (double)s->p.top_p * sum);
}

/* Tokens at least min_p times as likely as the best. */
static void min_p(pyllm_sampler *s) {
    if (s->p.min_p <= 0) return;
    need_list(s);
    keep_above(s, best_logit(s) + (float)math_log((double)s->p.min_p));
}

/* Locally typical sampling (Meister et al., 2022): the tokens whose surprise -log p is nearest to the entropy, until their
   probabilities reach typical_p. */
static void typical(pyllm_sampler *s) {
    if (s->p.typical_p >= 1) return;
    need_list(s);
    double sum = weigh(s), zero = math_log(sum) + (double)best_logit(s), entropy = 0;   /* -log p = zero - logit */
    for (int32_t i = 0; i < s->n; i++)
        if (s->c[i].weight > 0) entropy += (double)s->c[i].weight / sum * (zero - (double)s->c[i].logit);
    for (int32_t i = 0; i < s->n; i++)
        s->c[i].key = -(float)__builtin_fabs(zero - (double)s->c[i].logit - entropy);
    keep_best(s, s->n, s->p.min_keep, (double)s->p.typical_p * sum);
    for (int32_t i = 0; i < s->n; i++) s->c[i].key = s->c[i].logit;
}

/* Logits within top_n_sigma standard deviations of the best (Tang et al., 2024); banned tokens do not count. */
static void top_n_sigma(pyllm_sampler *s) {
    if (s->p.top_n_sigma <= 0) return;
    need_list(s);
    double sum = 0, squares = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n; i++)
        if (s->c[i].logit > -INF) {
            sum += (double)s->c[i].logit;
            n++;
        }
    if (n < 2) return;
    for (int32_t i = 0; i < s->n; i++)
        if (s->c[i].logit > -INF) {
            double d = (double)s->c[i].logit - sum / n;
            squares += d * d;
        }
    keep_above(s, best_logit(s) - s->p.top_n_sigma * (float)__builtin_sqrt(squares / n));
}

/* "Exclude top choices": with xtc_probability, of the tokens of at least xtc_threshold only the least likely stays. */
static void xtc(pyllm_sampler *s, int64_t position) {
    if (s->p.xtc_probability <= 0 || s->p.xtc_threshold > 0.5f) return;
    if (rng_uniform(s->p.seed, s->p.choice, position, -1) > (double)s->p.xtc_probability) return;
    need_list(s);
    double least = (double)s->p.xtc_threshold * weigh(s);
    int32_t above = 0, m = 0;
    candidate last = {0};
    for (int32_t i = 0; i < s->n; i++)
        if ((double)s->c[i].weight >= least && (!above++ || before(last, s->c[i]))) last = s->c[i];
    if (above < 2 || s->n - above + 1 < s->p.min_keep) return;
    for (int32_t i = 0; i < s->n; i++)
        if ((double)s->c[i].weight < least || s->c[i].id == last.id) s->c[m++] = s->c[i];
    s->n = m;
}

/* Below 1e-30 a quotient of usual logits would overflow; the choice is the same there. */
static void temperature(pyllm_sampler *s) {
    if (s->p.temperature == 1) return;
    need_list(s);
    float t = s->p.temperature > 1e-30f ? s->p.temperature : 1e-30f;
    for (int32_t i = 0; i < s->n; i++) s->c[i].logit = s->c[i].key = s->c[i].logit / t;
}

/* A greedy choice only reads the edits: filters would leave the best token alone, or take it away. */
static void run_chain(pyllm_sampler *s, int64_t position) {
    int greedy = s->p.temperature <= 0;
    for (const char *f = s->p.order; *f; f++) {
        if (*f == 'e') penalties(s);
        else if (*f == 'd') dry(s);
        else if (greedy) continue;
        else if (*f == 's') top_n_sigma(s);
        else if (*f == 'k') top_k(s);
        else if (*f == 'y') typical(s);
        else if (*f == 'p') top_p(s);
        else if (*f == 'm') min_p(s);
        else if (*f == 'x') xtc(s, position);
        else temperature(s);
    }
}

/* ---- one token ---- */

/* Copies the logits of the first n tokens, checks them and adds the bias; the other tokens are banned. */
static int load(pyllm_sampler *s, const float *logits, int32_t n, pyllm_error *err) {
    int bad = 0;
    for (int32_t i = 0; i < n; i++) {
        bad |= !(logits[i] < INF);
        s->x[i] = logits[i];
    }
    for (int32_t i = n; i < s->n_vocab; i++) s->x[i] = -INF;
    for (int32_t i = 0; bad && i < n; i++)
        if (!(logits[i] < INF))
            return err_set(err, PYLLM_ERR_ARG, "non-finite logits at token id %d: %s\nhint: the model file may be damaged, "
                           "or its arithmetic overflows", i, logits[i] == INF ? "+inf" : "NaN");
    for (int32_t i = 0; i < s->n_bias; i++) s->x[s->bias[i].id] += s->bias[i].logprob;
    s->n = s->n_vocab;
    s->dense = 1;
    return 0;
}

/* Bans every token whose bit is clear. */
static void ban_others(pyllm_sampler *s, const uint32_t *mask) {
    for (int32_t i = 0; i < s->n_vocab; i += 32) {
        uint32_t word = mask[i / 32];
        int32_t n = s->n_vocab - i < 32 ? s->n_vocab - i : 32;
        if (word == UINT32_MAX) continue;
        for (int32_t j = 0; j < n; j++) s->x[i + j] = word >> j & 1 ? s->x[i + j] : -INF;
    }
}

/* The token with the largest logit, ties to the lower id; -1 if every token is banned. */
static int32_t greedy(const pyllm_sampler *s) {
    float best = largest(s->x, s->n_vocab);
    for (int32_t i = 0; i < s->n_vocab && best > -INF; i++)
        if (s->x[i] == best) return i;
    return -1;
}

/* An upper bound of the noise that belongs to a uniform u, without logarithms. -log u >= 1 - u >= 2^e with e the exponent of
   1 - u, so -log(-log u) <= -e ln2; the constant is ln2 rounded up by more than the noise's own error. */
static inline double gumbel_bound(double u) {
    return 0.6931472 * (double)(1023 - (int)(f64_to_bits(1 - u) >> 52));
}

/* argmax of logit plus noise, ties to the lower id; -1 if every candidate is banned. The noise is computed only for tokens
   that it could bring to the top. */
static int32_t draw(const pyllm_sampler *s, int64_t position) {
    int32_t id = -1;
    double best = -(double)INF;
    for (int32_t i = 0; i < s->n; i++) {
        candidate c = s->c[i];
        double u = rng_uniform(s->p.seed, s->p.choice, position, c.id), l = (double)c.logit;
        if (c.logit == -INF || l + gumbel_bound(u) < best) continue;
        double v = l + rng_gumbel(s->p.seed, s->p.choice, position, c.id);
        if (id < 0 || v > best || (v == best && c.id < id)) {
            id = c.id;
            best = v;
        }
    }
    return id;
}

/* Natural logarithms of the untouched distribution over n_logits tokens: the n_top likeliest (only if that is the whole vocabulary) and,
   behind them, the chosen token. */
static void report(pyllm_sampler *s, const float *logits, int32_t n_logits, int32_t id, pyllm_logprob *top, int32_t n_top) {
    double best = (double)largest(logits, n_logits), sum = 0;
    for (int32_t i = 0; i < n_logits;) {            /* in slices, so that e^x is computed apart from the sum that waits for itself */
        double e[64];
        int32_t n = n_logits - i < 64 ? n_logits - i : 64;
        for (int32_t j = 0; j < n; j++) e[j] = exp_negative((double)logits[i + j] - best);
        for (int32_t j = 0; j < n; j++) sum += e[j];
        i += n;
    }
    double zero = best + math_log(sum);
    if (n_top > 0) list_best(s, logits, n_top);
    for (int32_t gap = n_top < 64 ? 1 : n_top / 2; gap > 0; gap = gap == 2 ? 1 : (int32_t)((int64_t)gap * 5 / 11))      /* Shell's sort: mostly short */
        for (int32_t i = gap; i < n_top; i++) {
            candidate c = s->c[i];
            int32_t j = i;
            for (; j >= gap && before(c, s->c[j - gap]); j -= gap) s->c[j] = s->c[j - gap];
            s->c[j] = c;
        }
    for (int32_t i = 0; i < n_top; i++) top[i] = (pyllm_logprob){s->c[i].id, (float)((double)s->c[i].logit - zero)};
    top[n_top] = (pyllm_logprob){id, (float)((double)logits[id] - zero)};
}

int sampler_sample(pyllm_sampler *s, const float *logits, int32_t n_logits, const uint32_t *mask, int64_t position, int32_t *id,
                   pyllm_logprob *top, int32_t n_top, pyllm_error *err) {
    int32_t n = n_logits < s->n_vocab ? n_logits : s->n_vocab;
    if (n_top < 0 || n_top > s->n_vocab || (n_top && (!top || n < s->n_vocab)))
        return err_set(err, PYLLM_ERR_ARG, "n_top is %d\nhint: 0 to %d, with room for one more", n_top, s->n_vocab);
    TRY(load(s, logits, n, err));
    if (mask) ban_others(s, mask);
    if (largest(s->x, s->n_vocab) == -INF)
        return err_set(err, PYLLM_ERR_ARG, "non-finite logits at every token id: all tokens are banned\nhint: logit_bias, "
                       "the logits processor or the grammar leaves nothing to choose");
    run_chain(s, position);
    if (s->p.temperature > 0) need_list(s);
    int32_t chosen = s->p.temperature > 0 ? draw(s, position) : greedy(s);
    if (chosen < 0) return err_set(err, PYLLM_ERR_ARG, "non-finite logits at every token id after the penalties");
    *id = chosen;
    if (top) report(s, logits, n, chosen, top, n_top);
    return 0;
}

int32_t sampler_n_vocab(const pyllm_sampler *s) { return s->n_vocab; }

int sampler_rewind(pyllm_sampler *s, int64_t n, pyllm_error *err) {
    if (n < 0 || n > s->n_history)
        return err_set(err, PYLLM_ERR_ARG, "%lld tokens cannot be taken back from a history of %lld", (long long)n, (long long)s->n_history);
    s->n_history -= n;
    return 0;
}

int32_t sampler_lookup(pyllm_sampler *s, int32_t *ids, int32_t max, int32_t *length) {
    const int32_t *h = s->history;
    int64_t n = s->n_history, at = 0;
    *length = 0;
    if (n < 2 || max <= 0) return 0;
    match_lengths(h, n, s->z);
    for (int64_t i = 1; i < n; i++) {               /* ties go to the latest */
        int32_t same = s->z[i] < LOOKUP_MOST ? s->z[i] : LOOKUP_MOST;
        if (same > *length) {
            *length = same;
            at = i;
        }
    }
    for (int32_t i = 0; at && i < max; i++) ids[i] = i < at ? h[n - at + i] : ids[i - at];      /* a loop goes on as it went */
    return at ? max : 0;
}
