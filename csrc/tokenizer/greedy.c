/* RWKV's World tokenizer: at every place of a text the longest token that it goes on with. Texts of tokens are Python's way to write bytes. */
#include "vocab.h"

static int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

int64_t greedy_bytes(const char *s, int64_t n, char *out) {
    int64_t k = 0;
    for (int64_t i = 0; i < n; i++) {
        if (s[i] != '\\' || i + 1 == n) {
            out[k++] = s[i];
            continue;
        }
        char c = s[++i];
        if (c == 'x' && i + 2 < n && hex(s[i + 1]) >= 0 && hex(s[i + 2]) >= 0) {
            c = (char)(hex(s[i + 1]) << 4 | hex(s[i + 2]));
            i += 2;
        } else {
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
        }
        out[k++] = c;
    }
    return k;
}

int greedy_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out) {
    for (int64_t i = 0; i < n;) {
        int32_t id = longest_in(t, &t->all, s + i, n - i);
        if (id < 0) return err_set(out->err, PYLLM_ERR_ARG, "no token begins with byte %d", (uint8_t)s[i]);     /* index_tokens wants all bytes */
        id_add(out, id);
        i += t->bytes[id].len;
    }
    return 0;
}
