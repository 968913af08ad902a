/* A file of ours, mapped to be read. Whoever truncates it, or a disk that fails, would end the process with SIGBUS: the pages that are gone
   become zeros instead, and mapping_check tells. The handler is there while something is mapped; what is not in a mapping goes to the
   handler before. */
#ifndef PYLLM_BASE_MAPPING_H
#define PYLLM_BASE_MAPPING_H
#include "err.h"

#include <time.h>

enum { MAPPING_ALIGN = 2 << 20 };   /* a huge page: a file's whole pieces of this size can be mapped as one each */

typedef struct mapping {
    const uint8_t *p;               /* n bytes; NULL: nothing is mapped */
    size_t n;
    int fd, slot;
    int64_t file_bytes;             /* size and time of the last change when it was mapped */
    struct timespec written;
    char *path;
} mapping;

/* Maps [offset, offset + n) of an open file, offset a multiple of MAPPING_ALIGN. Takes fd over on success. Fails with PYLLM_ERR_IO where the
   system refuses, PYLLM_ERR_MEMORY. */
int mapping_new(int fd, const char *path, size_t offset, size_t n, mapping *m, pyllm_error *err);
void mapping_free(mapping *m);
/* Brings [at, at + n) in, n at least 1: faster than page by page. */
void mapping_fetch(const mapping *m, size_t at, size_t n);
/* After reading from it: 0, or PYLLM_ERR_IO if bytes were missing or the file was written to since it was mapped. Any thread. */
int mapping_check(const mapping *m, pyllm_error *err);

/* For those that implement it: all of *m but p and slot; whether the file is as it was. */
int mapping_describe(int fd, const char *path, size_t n, mapping *m, pyllm_error *err);
int mapping_compare(const mapping *m, int lost, pyllm_error *err);
#endif
