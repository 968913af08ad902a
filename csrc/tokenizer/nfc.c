/* Decompose, order marks by class, compose. Source: Unicode Standard Annex 15; Hangul syllables by the rule of the standard's section 3.12. */
#include "nfc.h"

#include "unicode.h"

#include "../base/alloc.h"

#include <string.h>

enum { S0 = 0xac00, L0 = 0x1100, V0 = 0x1161, T0 = 0x11a7, LS = 19, VS = 21, TS = 28, SS = LS * VS * TS };
enum { PARTS = 4, RAW = 1 << 30 };      /* code points of a decomposition at most; mark of a byte that is no UTF-8 */
enum { SHORT_RUN = 32 };                /* marks that are put in order one by one */

static const nfc_parts *parts_of(uint32_t cp) {
    int32_t lo = 0, hi = nfc_parts_count - 1;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (nfc_parts_table[mid].cp < cp) lo = mid + 1;
        else hi = mid;
    }
    return nfc_parts_table[lo].cp == cp ? &nfc_parts_table[lo] : NULL;
}

static uint8_t class_of(uint32_t cp) {
    int32_t lo = 0, hi = nfc_class_count - 1;
    if (cp < 0x300) return 0;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (nfc_class_table[mid].last < cp) lo = mid + 1;
        else hi = mid;
    }
    return cp >= nfc_class_table[lo].first && cp <= nfc_class_table[lo].last ? nfc_class_table[lo].class : 0;
}

/* What a and b become together; 0 if nothing. */
static uint32_t compose(uint32_t a, uint32_t b) {
    if (a - L0 < LS && b - V0 < VS) return S0 + ((a - L0) * VS + b - V0) * TS;
    if (a - S0 < SS && (a - S0) % TS == 0 && b > T0 && b - T0 < TS) return a + b - T0;
    int32_t lo = 0, hi = nfc_composed_count - 1;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        const nfc_parts *p = &nfc_parts_table[nfc_composed[mid]];
        if (p->first < a || (p->first == a && p->second < b)) lo = mid + 1;
        else hi = mid;
    }
    const nfc_parts *p = &nfc_parts_table[nfc_composed[lo]];
    return p->first == a && p->second == b ? p->cp : 0;
}

/* The canonical decomposition of cp to out[PARTS]; returns how many. */
static int decompose(uint32_t cp, uint32_t *out) {
    if (cp - S0 < SS) {
        uint32_t s = cp - S0;
        out[0] = L0 + s / (VS * TS);
        out[1] = V0 + s % (VS * TS) / TS;
        out[2] = T0 + s % TS;
        return 2 + (s % TS > 0);
    }
    uint32_t behind[PARTS];
    int n = 0;
    for (const nfc_parts *p; n < PARTS - 1 && (p = parts_of(cp)); cp = p->first)
        if (p->second) behind[n++] = p->second;
    out[0] = cp;
    for (int i = 0; i < n; i++) out[1 + i] = behind[n - 1 - i];
    return 1 + n;
}

/* Whether cp may change, or change what stands before it: everything else may stay without a look at its neighbours. */
static int may_change(uint32_t cp) {
    if (cp < 0x300 || cp - 0x3100 < 0xa66f - 0x3100 || cp - S0 < SS) return 0;
    if (cp - V0 < VS || (cp > T0 && cp - T0 < TS) || class_of(cp)) return 1;
    const nfc_parts *p = parts_of(cp);
    if (p && (!p->second || compose(p->first, p->second) != cp)) return 1;
    for (int32_t i = 0; i < nfc_seconds_count; i++)
        if (nfc_seconds[i] == cp) return 1;
    return 0;
}

/* Marks [from, to) by class, equal ones as they are. */
static void sort_marks(uint32_t *cp, uint8_t *class, int64_t from, int64_t to, uint32_t *other) {
    if (to - from <= SHORT_RUN) {
        for (int64_t i = from + 1; i < to; i++)
            for (int64_t k = i; k > from && class[k - 1] > class[k]; k--) {
                uint32_t c = cp[k];
                uint8_t x = class[k];
                cp[k] = cp[k - 1], class[k] = class[k - 1];
                cp[k - 1] = c, class[k - 1] = x;
            }
        return;
    }
    int64_t at[257] = {0};
    for (int64_t i = from; i < to; i++) at[class[i] + 1]++;
    for (int k = 0; k < 256; k++) at[k + 1] += at[k];
    for (int64_t i = from; i < to; i++) other[at[class[i]]++] = cp[i];
    memcpy(cp + from, other, (size_t)(to - from) * sizeof *cp);
    for (int64_t i = from; i < to; i++) class[i] = class_of(cp[i]);
}

static int64_t write_out(const uint32_t *cp, int64_t n, char *out) {
    char *p = out;
    for (int64_t i = 0; i < n; i++) {
        if (cp[i] & RAW) *p++ = (char)(cp[i] & 255);
        else p += utf8_encode(cp[i], p);
    }
    return p - out;
}

char *nfc(const char *s, int64_t n, int64_t *len) {
    int change = 0;
    int64_t count = 0, m = 0, k = 0;
    for (int64_t i = 0; i < n; count++) {
        uint32_t c;
        i += utf8_decode((const uint8_t *)s + i, n - i, &c);
        change |= may_change(c);
    }
    *len = n;
    if (!change) return (char *)(uintptr_t)s;
    size_t room = (size_t)count * PARTS + 1;
    uint32_t *cp = mem_alloc(room * sizeof *cp), *other = mem_alloc(room * sizeof *other);
    uint8_t *class = mem_alloc(room);
    char *out = NULL;
    if (cp && other && class) {
        for (int64_t i = 0; i < n;) {
            uint32_t c;
            int bytes = utf8_decode((const uint8_t *)s + i, n - i, &c);
            if (c == 0xfffd && bytes == 1) cp[m++] = RAW | (uint8_t)s[i];
            else m += decompose(c, cp + m);
            i += bytes;
        }
        for (int64_t i = 0; i < m; i++) class[i] = cp[i] & RAW ? 0 : class_of(cp[i]);
        for (int64_t i = 0, e; i < m; i = e) {
            for (e = i + 1; e < m && class[i] && class[e];) e++;
            if (e - i > 1) sort_marks(cp, class, i, e, other);
        }
        int64_t starter = -1;               /* where what composes stands in the output */
        uint8_t last = 0;                   /* class of what stands before, 0 directly behind the starter */
        for (int64_t i = 0; i < m; i++) {
            uint32_t c = starter >= 0 && (last < class[i] || starter == k - 1) ? compose(cp[starter], cp[i]) : 0;
            if (c) {
                cp[starter] = c;
                continue;
            }
            if (!class[i]) starter = k;
            last = class[i];
            cp[k++] = cp[i];
        }
        out = mem_alloc((size_t)k * 4 + 1);
        if (out) *len = write_out(cp, k, out);
    }
    mem_free(class);
    mem_free(other);
    mem_free(cp);
    return out;
}
