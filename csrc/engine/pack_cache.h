/* Packed weights as a file, so that the next load maps them instead of packing.
 *
 * The file: a header (below), the path of the model, a checksum for every 2 MB of the data, a checksum over all that; at MAPPING_ALIGN the
 * data, which is the model's weight memory as it stands. It is written to a temporary name, synced and renamed, and never changed
 * afterwards. It is used if
 *   - header and size fit together, and the checksums are right: of the header and of all the data, before anything is computed;
 *   - the model's files have the identity (gguf_identity) that they had when it was written;
 *   - every weight has the place and shape that the tape gives it now (pack_key);
 *   - of every weight one group of rows, another one each time, is what packing it now gives, and the last one if it is not full. So
 *     a change of the packed layout needs no version number: it is seen. */
#ifndef PYLLM_ENGINE_PACK_CACHE_H
#define PYLLM_ENGINE_PACK_CACHE_H
#include "../base/mapping.h"
#include "model.h"

/* Names the packed form of these weights: the same for tapes that read the same weights. bytes: of the weight memory. */
uint64_t pack_key(const tape *t, size_t bytes);

/* Maps the file of the laid out weights of t. PYLLM_ERR_IO: it is not there or cannot be read; PYLLM_ERR_STATE: it is damaged or does not
   belong to this model as it is now. */
int pack_map(const char *path, const pyllm_gguf *g, const tape *t, size_t bytes, int n_threads, const volatile int32_t *cancel, mapping *out,
             pyllm_error *err);
/* Writes the weights of m, which was loaded from g, in place of what is at path. On any error nothing of it is left. The temporary file, path
   with .tmp at the end, is locked (flock) while it is written to. */
int pack_store(const pyllm_model *m, const pyllm_gguf *g, const char *path, int n_threads, const volatile int32_t *cancel, pyllm_error *err);
/* What the header says. PYLLM_ERR_IO, PYLLM_ERR_STATE as above. */
int pack_info(const char *path, pyllm_pack *out, pyllm_error *err);
#endif
