/* A bounds-checked reader of GGUF v2/v3 headers (split sets included). See pyllm.h for what each function promises. */
#ifndef PYLLM_FORMATS_GGUF_H
#define PYLLM_FORMATS_GGUF_H
#include "../base/err.h"
#include "../pyllm.h"

int gguf_open(const char *path, pyllm_gguf **out, pyllm_error *err);
int gguf_add(pyllm_gguf *g, const char *path, const char *prefix, pyllm_error *err);
void gguf_close(pyllm_gguf *g);
int64_t gguf_n_kv(const pyllm_gguf *g);
int64_t gguf_n_tensors(const pyllm_gguf *g);
int gguf_kv(const pyllm_gguf *g, int64_t i, pyllm_kv *out);
int gguf_tensor(const pyllm_gguf *g, int64_t i, pyllm_tensor *out);
const char *gguf_string(const pyllm_gguf *g, int64_t i, uint64_t j, uint64_t *len);
int gguf_read(const pyllm_gguf *g, int64_t i, uint64_t begin, uint64_t n, void *dst, pyllm_error *err);

/* Index of a key or tensor by name, -1 if absent. */
int64_t gguf_find_kv(const pyllm_gguf *g, const char *key);
int64_t gguf_find_tensor(const pyllm_gguf *g, const char *name);
/* A second, independent handle on the same open files that can only gguf_read (for a model that outlives g). */
int gguf_reopen(const pyllm_gguf *g, pyllm_gguf **out, pyllm_error *err);
/* Hash of size, MTIME and CTIME of all files: the same as long as nobody has written to them, and another one if somebody has. Fails with
   PYLLM_ERR_STATE where they changed since they were opened, or so shortly before that a change could go unseen. */
int gguf_identity(const pyllm_gguf *g, uint64_t *id, pyllm_error *err);
const char *gguf_path(const pyllm_gguf *g);
#endif
