/* Tokenizers, built from a GGUF's tokenizer.ggml.* keys. See pyllm.h for what each function promises. */
#ifndef PYLLM_TOKENIZER_H
#define PYLLM_TOKENIZER_H
#include "../base/err.h"
#include "../formats/gguf.h"
#include "../pyllm.h"

int tokenizer_new(const pyllm_gguf *g, pyllm_tokenizer **out, pyllm_error *err);
void tokenizer_free(pyllm_tokenizer *t);
int32_t tokenizer_size(const pyllm_tokenizer *t);
int64_t tokenize(const pyllm_tokenizer *t, const char *text, int64_t n, int add_special, int parse_special,
                 int32_t *ids, int64_t max, pyllm_error *err);
const char *token_bytes(const pyllm_tokenizer *t, int32_t id, int special, int64_t *len);
int64_t detokenize(const pyllm_tokenizer *t, const int32_t *ids, int64_t n, int special, char *out, int64_t max, pyllm_error *err);
const char *token_text(const pyllm_tokenizer *t, int32_t id, int64_t *len);
int32_t token_type(const pyllm_tokenizer *t, int32_t id);
int32_t token_special(const pyllm_tokenizer *t, int kind);
int token_is_end(const pyllm_tokenizer *t, int32_t id);
#endif
