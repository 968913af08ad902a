#include "unicode.h"

uint8_t unicode_class(uint32_t cp) {
    int32_t lo = 0, hi = unicode_ranges - 1;
    while (lo < hi) {
        int32_t mid = (lo + hi + 1) / 2;
        if (unicode_table[mid].first <= cp) lo = mid;
        else hi = mid - 1;
    }
    return unicode_table[lo].class;
}

int utf8_decode(const uint8_t *s, int64_t n, uint32_t *cp) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    int len = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;
    *cp = 0xfffd;
    if (!len || len > n) return 1;
    uint32_t v = len == 1 ? s[0] : s[0] & (0x7f >> len);
    for (int i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 1;
        v = v << 6 | (s[i] & 63);
    }
    if (v < least[len] || v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) return 1;
    *cp = v;
    return len;
}

int utf8_encode(uint32_t cp, char *out) {
    int len = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = len - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 63));
    out[0] = (char)(len == 1 ? cp : (0xf00u >> len & 0xff) | cp);
    return len;
}
