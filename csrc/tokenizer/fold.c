#include "fold.h"

enum { HANGUL = 0xac00, HANGUL_END = 0xd7a4, LEAD = 0x1100, VOWEL = 0x1161, TRAIL = 0x11a7, TRAILS = 28, BLOCK = 21 * TRAILS };

enum fold_class fold_class_of(uint32_t cp) {
    int32_t lo = 0, hi = fold_ranges - 1;
    while (lo < hi) {
        int32_t mid = (lo + hi + 1) / 2;
        if (fold_class_table[mid].first <= cp) lo = mid;
        else hi = mid - 1;
    }
    return (enum fold_class)fold_class_table[lo].class;
}

/* cp as a table maps it: itself where no run has it, 0: nothing. */
static uint32_t mapped(const fold_run *t, int32_t n, uint32_t cp) {
    int32_t lo = 0, hi = n - 1;
    while (lo < hi) {
        int32_t mid = (lo + hi + 1) / 2;
        if (t[mid].first <= cp) lo = mid;
        else hi = mid - 1;
    }
    /* A run of every second code point may hold another run between its own. */
    for (int32_t i = lo; i >= 0 && i > lo - 3; i--) {
        uint32_t d = cp - t[i].first;
        if (cp >= t[i].first && d % t[i].step == 0 && d / t[i].step < t[i].n) return t[i].to + d / t[i].step * t[i].to_step;
    }
    return cp;
}

static int decompose(uint32_t cp, uint32_t *out) {
    if (cp >= HANGUL && cp < HANGUL_END) {          /* by rule: Unicode, section 3.12 */
        uint32_t s = cp - HANGUL, trail = s % TRAILS;
        out[0] = LEAD + s / BLOCK;
        out[1] = VOWEL + s % BLOCK / TRAILS;
        if (trail) out[2] = TRAIL + trail;
        return trail ? 3 : 2;
    }
    for (int32_t lo = 0, hi = fold_strip_many_count - 1; lo <= hi;) {
        int32_t mid = (lo + hi) / 2;
        const fold_many *m = &fold_strip_many_table[mid];
        if (m->cp == cp) {
            int n = 0;
            while (n < 3 && m->to[n]) out[n] = m->to[n], n++;
            return n;
        }
        if (m->cp < cp) lo = mid + 1;
        else hi = mid - 1;
    }
    out[0] = mapped(fold_strip_table, fold_strip_runs, cp);
    return out[0] != 0 || !cp;
}

int fold(uint32_t cp, int strip, int lower, uint32_t *out) {
    int n = 1;
    out[0] = cp;
    if (strip) n = decompose(cp, out);
    for (int i = 0; lower && i < n; i++) {
        if (out[i] == 0x130) {                      /* the one letter whose lower case has two: i and a dot above */
            out[i] = 'i';
            out[n++] = 0x307;
            break;
        }
        out[i] = mapped(fold_lower_table, fold_lower_runs, out[i]);
    }
    return n;
}
