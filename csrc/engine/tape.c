#include "tape.h"

#include "../base/alloc.h"

#include <string.h>

enum { LIMIT_STEPS = 100000, LIMIT_VALUES = 200000, LIMIT_TABLE = 4096, LIMIT_TABLES = 64, LIMIT_WEIGHTS = 100000, NAME = 32, TENSOR_NAME = 256 };

typedef struct parser {
    const char *at, *end;       /* rest of the current line */
    const char *next, *stop;    /* rest of the text */
    int32_t line;
    tape *t;
    const pyllm_gguf *g;
    uint8_t *used;              /* per tensor of the file */
    pyllm_error *err;
} parser;

typedef struct word { const char *s; size_t n; } word;

static int fail(parser *p, const char *what, word w) {
    return err_set(p->err, PYLLM_ERR_FORMAT, "tape line %d: %s%s%.*s", p->line, what, w.n ? " " : "", (int)(w.n < 200 ? w.n : 200), w.s ? w.s : "");
}
static const word none = {NULL, 0};

static int is(word w, const char *s) { return strlen(s) == w.n && !memcmp(w.s, s, w.n); }

/* Next line that is not empty and not a comment; 0 at the end. */
static int next_line(parser *p) {
    while (p->next < p->stop) {
        const char *s = p->next, *e = memchr(s, '\n', (size_t)(p->stop - s));
        p->next = e ? e + 1 : p->stop;
        p->at = s;
        p->end = e ? e : p->stop;
        p->line++;
        if (p->at < p->end && *p->at != '#') return 1;
    }
    return 0;
}

/* Next piece of the line up to `sep`; an empty word at the line's end. */
static word next_word(const char **at, const char *end, char sep) {
    word w = {*at, 0};
    while (*at < end && **at != sep) (*at)++;
    w.n = (size_t)(*at - w.s);
    if (*at < end) (*at)++;
    return w;
}

static int parse_int(word w, int64_t *out) {
    int64_t v = 0;
    size_t i = w.n && w.s[0] == '-';
    if (i == w.n || w.n > 18) return -1;
    for (size_t k = i; k < w.n; k++) {
        if (w.s[k] < '0' || w.s[k] > '9') return -1;
        v = v * 10 + (w.s[k] - '0');
    }
    *out = i ? -v : v;
    return 0;
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

/* C99 hexadecimal floats that are exact in f32: [-]0x1.hhhp[+-]d, plus "inf" is refused. */
static int parse_float(word w, float *out) {
    const char *s = w.s, *e = w.s + w.n;
    int neg = s < e && *s == '-', exp = 0, point = -1, digits = 0;
    if (neg) s++;
    if (e - s < 4 || s[0] != '0' || s[1] != 'x') return -1;
    uint64_t mant = 0;
    for (s += 2; s < e && *s != 'p'; s++) {
        if (*s == '.' && point < 0) {
            point = digits;
            continue;
        }
        int d = hex_digit(*s);
        if (d < 0 || ++digits > 15) return -1;
        mant = mant << 4 | (uint64_t)d;
    }
    if (s == e || !digits) return -1;
    s++;
    if (s < e && *s == '+') s++;
    int64_t x;
    if (parse_int((word){s, (size_t)(e - s)}, &x) || x < -1000 || x > 1000) return -1;
    exp = (int)x - (point < 0 ? 0 : 4 * (digits - point));
    double v = (double)mant;
    for (; exp > 0; exp--) v *= 2;
    for (; exp < 0; exp++) v *= 0.5;
    *out = (float)(neg ? -v : v);
    return (double)*out == (neg ? -v : v) ? 0 : -1;
}

static int find_value(const tape *t, word w) {
    for (int32_t i = t->n_values - 1; i >= 0; i--)
        if (is(w, t->values[i].name)) return i;
    return -1;
}

/* ---- weights -------------------------------------------------------------------------------------------------------- */

/* "name" or "name[a:b]". */
static int split_slice(word *w, int64_t *a, int64_t *b) {
    *a = 0;
    *b = -1;
    if (!w->n || w->s[w->n - 1] != ']') return 0;
    const char *open = memchr(w->s, '[', w->n), *end = w->s + w->n - 1;
    if (!open) return -1;
    const char *at = open + 1;
    word first = next_word(&at, end, ':'), last = {at, (size_t)(end - at)};
    w->n = (size_t)(open - w->s);
    return parse_int(first, a) || parse_int(last, b) || *a < 0 || *b <= *a || *a % GROUP ? -1 : 0;
}

static int resolve(parser *p, weight *w, int64_t b) {
    pyllm_tensor info;
    w->tensor = gguf_find_tensor(p->g, w->name);
    if (w->tensor < 0)
        return err_set(p->err, PYLLM_ERR_FORMAT, "tape line %d: the file has no tensor %s\nhint: the file is incomplete or of a variant "
                       "that this architecture's description does not cover", p->line, w->name);
    gguf_tensor(p->g, w->tensor, &info);
    p->used[w->tensor] = 1;
    w->type = info.type;
    const qtype_info *q = qtype_get(info.type);
    if (!q) return err_set(p->err, PYLLM_ERR_UNSUPPORTED, "tensor %s has type id %u, which this build does not know\n"
                           "hint: a newer version may read it, or requantize the model", w->name, info.type);
    if (info.ne[3] != 1 && !w->is_vector) return err_set(p->err, PYLLM_ERR_FORMAT, "tensor %s has more dimensions than its use allows", w->name);
    for (int d = 0; d < 4; d++)
        if (info.ne[d] < 1) return err_set(p->err, PYLLM_ERR_FORMAT, "tensor %s is empty", w->name);
    w->stack = b < 0 && !w->is_vector ? info.ne[2] : 1;
    int64_t n = info.ne[1] * info.ne[2] * (w->is_vector ? info.ne[0] * info.ne[3] : 1);     /* vectors may come as a stack, one for each head */
    if (b < 0) b = n;
    if (b > n || (b % GROUP && b != n)) return err_set(p->err, PYLLM_ERR_FORMAT, "tape line %d: %s has %lld rows, the slice ends at %lld", p->line, w->name,
                                                       (long long)n, (long long)b);
    w->n = b - w->row0;
    w->k = w->is_vector ? 0 : info.ne[0];
    if (w->n < 1 || (!w->is_vector && (w->k < 1 || w->k % q->elems || (q->act > 1 && w->k % q->act))))
        return err_set(p->err, PYLLM_ERR_FORMAT, "tensor %s of type %s has rows of %lld values", w->name, q->name, (long long)w->k);
    if (w->is_vector && q->elems != 1) return err_set(p->err, PYLLM_ERR_FORMAT, "vector %s is quantized", w->name);
    return 0;
}

static int add_weight(parser *p, word w, int is_vector, int32_t *id) {
    tape *t = p->t;
    int64_t a, b;
    word whole = w;
    if (split_slice(&w, &a, &b) || !w.n || w.n >= TENSOR_NAME) return fail(p, "bad tensor name", whole);
    for (int32_t i = t->n_weights - 1; i >= 0; i--) {
        const weight *o = &t->weights[i];
        if (is(w, o->name) && o->row0 == a && o->is_vector == is_vector && o->slice_end == b) {
            *id = i;
            return 0;
        }
    }
    if (t->n_weights == LIMIT_WEIGHTS) return fail(p, "too many tensors", none);
    weight *n = &t->weights[t->n_weights];
    *n = (weight){.row0 = a, .slice_end = b, .is_vector = is_vector};
    n->name = mem_alloc(w.n + 1);
    if (!n->name) return err_set(p->err, PYLLM_ERR_MEMORY, "out of memory while reading the tape");
    memcpy(n->name, w.s, w.n);
    n->name[w.n] = 0;
    *id = t->n_weights++;
    return resolve(p, n, b);
}

/* ---- statements ------------------------------------------------------------------------------------------------------- */

static int parse_hparam(parser *p) {
    word name = next_word(&p->at, p->end, ' '), val = {p->at, (size_t)(p->end - p->at)};
    int64_t v;
    if (parse_int(val, &v) || v < 0) return fail(p, "bad hparam", name);
    if (is(name, "n_vocab")) p->t->n_vocab = v;
    if (is(name, "n_ctx_train")) p->t->n_ctx_train = v;
    return 0;
}

static int parse_table(parser *p) {
    tape *t = p->t;
    word name = next_word(&p->at, p->end, ' ');
    if (!name.n || name.n >= NAME || t->n_tables == LIMIT_TABLES) return fail(p, "bad table", name);
    table *b = &t->tables[t->n_tables];
    memcpy(b->name, name.s, name.n);
    b->f = mem_array(LIMIT_TABLE, sizeof(float));
    if (!b->f) return err_set(p->err, PYLLM_ERR_MEMORY, "out of memory while reading the tape");
    t->n_tables++;
    while (p->at < p->end) {
        word w = next_word(&p->at, p->end, ' ');
        if (b->n == LIMIT_TABLE || parse_float(w, &b->f[b->n++])) return fail(p, "bad table entry", w);
    }
    return b->n ? 0 : fail(p, "empty table", name);
}

static int parse_list(parser *p, char kind, word list, param *out) {
    const char *at = list.s, *end = list.s + list.n;
    while (at < end) {
        word w = next_word(&at, end, ',');
        if (out->n == OP_MAX) return fail(p, "list too long", list);
        int32_t *id = &out->id[out->n];
        int64_t *v = &out->i[out->n++];
        *id = -1;
        if (kind == 'l' && (parse_int(w, v) || *v < 0 || *v > (1 << 24))) return fail(p, "bad number", w);
        if (kind == 'V' && is(w, "-")) continue;
        if (kind == 'M' || kind == 'V') TRY(add_weight(p, w, kind == 'V', id));
    }
    return out->n ? 0 : fail(p, "empty list", list);
}

static int find_act(word w) {
#define ACT_NAME(kind, name, fn) if (is(w, #name)) return ACT_##kind;
    ACTS(ACT_NAME)
    return is(w, "swiglu_oai") ? ACT_SWIGLU_OAI : -1;
}

static int parse_value(parser *p, step *s, char kind, word v, param *out) {
    if (kind == 'M' || kind == 'V' || kind == 'l') return parse_list(p, kind, v, out);
    out->n = 1;
    switch (kind) {
    case 'i': return parse_int(v, &out->i[0]) || out->i[0] < 0 || out->i[0] > (1 << 30) ? fail(p, "bad number", v) : 0;
    case 'f': return parse_float(v, &out->f) ? fail(p, "bad float", v) : 0;
    case 'v':
        out->id[0] = find_value(p->t, v);
        if (out->id[0] < 0) return fail(p, "unknown value", v);
        p->t->values[out->id[0]].last = (int32_t)(s - p->t->steps);
        return 0;
    case 't':
        for (int32_t i = 0; i < p->t->n_tables; i++)
            if (is(v, p->t->tables[i].name)) {
                out->id[0] = i;
                return 0;
            }
        return fail(p, "unknown table", v);
    default:
        out->i[0] = find_act(v);
        return out->i[0] < 0 ? fail(p, "unknown activation", v) : 0;
    }
}

/* key=value pairs in the order of the op's parameter string. */
static int parse_params(parser *p, step *s) {
    const char *spec = s->op->params, *spec_end = spec + strlen(spec);
    for (int i = 0; spec < spec_end; i++) {
        word want = next_word(&spec, spec_end, ' ');
        char kind = want.s[want.n - 1];
        int optional = want.s[want.n - 3] == '?';
        size_t key = want.n - 2 - (size_t)optional;
        if (p->at >= p->end) {
            if (optional) continue;
            return fail(p, "missing parameter", (word){want.s, key});
        }
        const char *before = p->at;
        word pair = next_word(&p->at, p->end, ' ');
        if (pair.n <= key || memcmp(pair.s, want.s, key) || pair.s[key] != '=') {
            if (!optional) return fail(p, "unexpected parameter", pair);
            p->at = before;
            continue;
        }
        TRY(parse_value(p, s, kind, (word){pair.s + key + 1, pair.n - key - 1}, &s->p[i]));
    }
    return p->at < p->end ? fail(p, "too many parameters", none) : 0;
}

static int parse_inputs(parser *p, step *s) {
    if (!s->op->n_in) return 0;
    word pair = next_word(&p->at, p->end, ' ');
    if (pair.n < 4 || memcmp(pair.s, "in=", 3)) return fail(p, "in= expected", pair);
    const char *at = pair.s + 3, *end = pair.s + pair.n;
    while (at < end) {
        word w = next_word(&at, end, ',');
        int32_t v = find_value(p->t, w);
        if (v < 0 || s->n_in == s->op->n_in) return fail(p, "unknown or surplus input", w);
        p->t->values[v].last = (int32_t)(s - p->t->steps);
        s->in[s->n_in++] = v;
    }
    int least = strcmp(s->op->name, "rope") ? s->op->n_in : 1;      /* queries turn alone where the keys are those of another layer */
    return s->n_in >= least ? 0 : fail(p, "too few inputs", pair);
}

static int parse_step(parser *p, word op) {
    tape *t = p->t;
    if (t->n_steps == LIMIT_STEPS) return fail(p, "too many steps", none);
    step *s = &t->steps[t->n_steps];
    s->op = op_find(op.s, op.n);
    s->line = p->line;
    if (!s->op) return err_set(p->err, PYLLM_ERR_UNSUPPORTED, "tape line %d: unknown operation %.*s", p->line, (int)(op.n < 60 ? op.n : 60), op.s);
    word outs = next_word(&p->at, p->end, ' ');
    TRY(parse_inputs(p, s));
    for (const char *at = outs.s, *end = outs.s + outs.n; at < end;) {
        word w = next_word(&at, end, ',');
        if (!w.n || w.n >= NAME || s->n_out == s->op->max_out || t->n_values == LIMIT_VALUES || find_value(t, w) >= 0)
            return fail(p, "bad output", w);
        value *v = &t->values[t->n_values];
        memcpy(v->name, w.s, w.n);
        v->first = v->last = t->n_steps;
        v->late = s->n_in ? t->values[s->in[0]].late : 0;
        s->out[s->n_out++] = t->n_values++;
    }
    if (!s->n_out) return fail(p, "no output", none);
    TRY(parse_params(p, s));
    op_check c = {t->weights, t->values, t->tables, p->err};
    TRY(s->op->check(&c, s));
    for (int i = 0; i < s->n_out; i++)
        if (t->values[s->out[i]].width < 1 || t->values[s->out[i]].width > (1 << 24)) return fail(p, "value too wide", outs);
    if (!strncmp(s->op->params, "w:M", 3))
        for (int i = 0; i < s->p[0].n; i++) {
            weight *w = &t->weights[s->p[0].id[i]];
            if (!strcmp(s->op->name, "embed") || !strcmp(s->op->name, "positions")) w->embed++;
            else w->multiply++;
        }
    t->n_steps++;
    return 0;
}

/* ---- whole tape ---------------------------------------------------------------------------------------------------------- */

static int has_state(const step *s) { return !strncmp(s->op->params, "state:i", 7); }

/* Whether an attention step reads what another one stores. */
static int shares_kv(const step *s, const step *stored) {
    static const int same[] = {ATTN_KV_HEADS, ATTN_DIM, ATTN_WINDOW, ATTN_VALUES};
    int shares = !strcmp(s->op->name, "attn") && s->in[1] == stored->in[1] && s->in[2] == stored->in[2];
    for (size_t k = 0; k < sizeof same / sizeof *same; k++) shares &= s->p[same[k]].n == stored->p[same[k]].n && s->p[same[k]].i[0] == stored->p[same[k]].i[0];
    return shares;
}

/* Notes where the attention or recurrent step of each number is. Step 0 is neither: it has no input. */
static int number_step(parser *p, int32_t i, int32_t *steps, int32_t n, const char *what) {
    step *s = &p->t->steps[i];
    int64_t number = s->p[0].i[0];
    s->kv_stored = number < n && steps[number] && shares_kv(s, &p->t->steps[steps[number]]);
    if (s->kv_stored) return 0;
    if (number >= n || steps[number])
        return err_set(p->err, PYLLM_ERR_FORMAT, "tape line %d: %s %lld twice or out of range", s->line, what, (long long)number);
    steps[number] = i;
    return 0;
}

static int check_end(parser *p) {
    tape *t = p->t;
    if (!t->n_steps || !t->n_vocab || !t->n_ctx_train) return fail(p, "steps, n_vocab and n_ctx_train are needed", none);
    const value *y = &t->values[t->n_values - 1];
    if (!y->late || (strcmp(y->name, "embedding") && (strcmp(y->name, "logits") || y->width != t->n_vocab)))
        return err_set(p->err, PYLLM_ERR_FORMAT, "tape: the last value must be logits of width %lld, or an embedding, after rows or pool",
                       (long long)t->n_vocab);
    t->values[t->n_values - 1].last = t->n_steps;
    for (int32_t i = 0; i < t->n_steps; i++) {
        const step *s = &t->steps[i];
        if (!strcmp(s->op->name, "embed") && t->weights[s->p[0].id[0]].n < t->n_vocab)
            return err_set(p->err, PYLLM_ERR_FORMAT, "embedding %s has fewer rows than the vocabulary's %lld", t->weights[s->p[0].id[0]].name,
                           (long long)t->n_vocab);
        t->n_layers += !strcmp(s->op->name, "attn");
        t->n_states += has_state(s);
    }
    if (!t->n_layers && !t->n_states) return fail(p, "at least one attn or recurrent step is needed", none);
    t->attn_step = mem_array((size_t)t->n_layers + 1, sizeof *t->attn_step);
    t->state_step = mem_array((size_t)t->n_states + 1, sizeof *t->state_step);
    if (!t->attn_step || !t->state_step) return err_set(p->err, PYLLM_ERR_MEMORY, "out of memory while reading the tape");
    for (int32_t i = 0; i < t->n_steps; i++) {
        const step *s = &t->steps[i];
        int attn = !strcmp(s->op->name, "attn");
        if (attn || has_state(s)) TRY(number_step(p, i, attn ? t->attn_step : t->state_step, attn ? t->n_layers : t->n_states, attn ? "layer" : "state"));
    }
    while (t->n_layers && !t->attn_step[t->n_layers - 1]) t->n_layers--;        /* steps that share a layer leave numbers over */
    for (int32_t i = 0; i < t->n_layers; i++)
        if (!t->attn_step[i]) return err_set(p->err, PYLLM_ERR_FORMAT, "tape: there is no attn step of layer %d", i);
    for (int64_t i = 0; i < gguf_n_tensors(p->g); i++) {
        pyllm_tensor info;
        gguf_tensor(p->g, i, &info);
        if (!p->used[i])
            return err_set(p->err, PYLLM_ERR_UNSUPPORTED, "the file's tensor %s (%lld of %lld) is not part of this architecture as described\n"
                           "hint: the file may be a variant that needs its own description", info.name, (long long)i + 1, (long long)gguf_n_tensors(p->g));
    }
    return 0;
}

static int parse_lines(parser *p) {
    if (!next_line(p) || !is((word){p->at, (size_t)(p->end - p->at)}, "pyllm-tape 1")) return fail(p, "not a tape of version 1", none);
    while (next_line(p)) {
        word op = next_word(&p->at, p->end, ' ');
        if (is(op, "hparam")) TRY(parse_hparam(p));
        else if (is(op, "table")) TRY(parse_table(p));
        else if (is(op, "ignore")) {            /* a tensor that is known and used only while the tape is written */
            char name[TENSOR_NAME] = {0};
            if (p->end - p->at >= TENSOR_NAME) return fail(p, "bad tensor name", none);
            memcpy(name, p->at, (size_t)(p->end - p->at));
            int64_t i = gguf_find_tensor(p->g, name);
            if (i >= 0) p->used[i] = 1;
        } else TRY(parse_step(p, op));
    }
    return check_end(p);
}

int tape_parse(const char *text, int64_t len, const pyllm_gguf *g, tape *t, pyllm_error *err) {
    memset(t, 0, sizeof *t);
    size_t lines = 1, words = 1;
    for (int64_t i = 0; i < len; i++) {
        lines += text[i] == '\n';
        words += text[i] == ',' || text[i] == '=' || text[i] == ' ';
    }
    parser p = {.next = text, .stop = text + len, .t = t, .g = g, .err = err};
    t->steps = mem_array(lines < LIMIT_STEPS ? lines : LIMIT_STEPS, sizeof *t->steps);
    t->values = mem_array(words < LIMIT_VALUES ? words : LIMIT_VALUES, sizeof *t->values);
    t->tables = mem_array(LIMIT_TABLES, sizeof *t->tables);
    t->weights = mem_array(words < LIMIT_WEIGHTS ? words : LIMIT_WEIGHTS, sizeof *t->weights);
    p.used = mem_array((size_t)gguf_n_tensors(g) + 1, 1);
    int rc = t->steps && t->values && t->tables && t->weights && p.used ? parse_lines(&p)
           : err_set(err, PYLLM_ERR_MEMORY, "out of memory while reading the tape");
    mem_free(p.used);
    t->hash = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < len; i++) t->hash = (t->hash ^ (uint8_t)text[i]) * 0x100000001b3u;
    if (rc) tape_free(t);
    return rc;
}

void tape_free(tape *t) {
    for (int32_t i = 0; i < t->n_weights; i++) mem_free(t->weights[i].name);
    for (int32_t i = 0; i < t->n_tables; i++) mem_free(t->tables[i].f);
    mem_free(t->steps);
    mem_free(t->values);
    mem_free(t->tables);
    mem_free(t->weights);
    mem_free(t->attn_step);
    mem_free(t->state_step);
    memset(t, 0, sizeof *t);
}

/* First fit: a value takes the lowest offset that no value alive at the same time overlaps. */
int64_t tape_plan(tape *t, int64_t max_rows, int64_t max_late) {
    int64_t total = 0;
    int32_t live[64], n_live = 0;
    for (int32_t i = 0; i < t->n_values; i++) {
        value *v = &t->values[i];
        if (i == t->n_values - 1) {
            v->offset = SIZE_MAX;
            break;
        }
        int64_t size = (v->width * (v->late ? max_late : max_rows) + 15) / 16 * 16, at = 0;
        int32_t kept = 0;
        for (int32_t j = 0; j < n_live; j++)
            if (t->values[live[j]].last >= v->first) live[kept++] = live[j];
        n_live = kept;
        for (int32_t moved = 1; moved;) {
            moved = 0;
            for (int32_t j = 0; j < n_live; j++) {
                const value *o = &t->values[live[j]];
                int64_t begin = (int64_t)o->offset, end = begin + (o->width * (o->late ? max_late : max_rows) + 15) / 16 * 16;
                if (at < end && begin < at + size) {
                    at = end;
                    moved = 1;
                }
            }
        }
        v->offset = (size_t)at;
        if (n_live == 64) return -1;
        live[n_live++] = i;
        if (at + size > total) total = at + size;
    }
    return total;
}
