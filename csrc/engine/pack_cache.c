#include "pack_cache.h"

#include "../base/alloc.h"
#include "../base/checksum.h"
#include "../base/file.h"
#include "../base/rng.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { VERSION = 1, CHUNK_BYTES = 2 << 20, DATA_OFFSET = MAPPING_ALIGN, VECTOR_SAMPLE = 4096 };
static const char magic[8] = {'P', 'Y', 'L', 'L', 'M', 'P', 'A', 'K'};

/* Followed by path_bytes (the path, NULs up to a multiple of 8), n_chunks sums of 8 bytes, and the checksum of all before it. */
typedef struct pack_header {
    char magic[8];
    uint32_t version, path_bytes;
    uint64_t identity, key;     /* of the model's files; of the weights */
    uint64_t data_bytes, n_chunks;
} pack_header;

static char *header_path(const pack_header *h) { return (char *)(h + 1); }
static uint64_t *header_sums(const pack_header *h) { return (uint64_t *)(header_path(h) + h->path_bytes); }
static size_t header_bytes(const pack_header *h) { return sizeof *h + h->path_bytes + 8 * (size_t)h->n_chunks + 8; }

static uint64_t chunks(uint64_t bytes) { return bytes / CHUNK_BYTES + (bytes % CHUNK_BYTES != 0); }
static size_t chunk_bytes(size_t all, int64_t i) {
    size_t left = all - (size_t)i * CHUNK_BYTES;
    return left < CHUNK_BYTES ? left : CHUNK_BYTES;
}

uint64_t pack_key(const tape *t, size_t bytes) {
    uint64_t key = checksum_mix(GROUP, bytes);
    for (int32_t i = 0; i < t->n_weights; i++) {
        const weight *w = &t->weights[i];
        int64_t shape[8] = {w->row0, w->n, w->k, w->type, w->is_vector, (int64_t)w->group_bytes, (int64_t)w->bytes, (int64_t)w->offset};
        key = checksum_mix(checksum_mix(key, checksum(w->name, strlen(w->name))), checksum(shape, sizeof shape));
    }
    return key;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

static int damaged(const char *path, const char *what, pyllm_error *err) {
    return err_set(err, PYLLM_ERR_STATE, "%s is damaged: %s", path, what);
}

/* n bytes at an offset; PYLLM_ERR_STATE where the file ends before. */
static int read_bytes(int fd, const char *path, void *dst, size_t n, size_t at, pyllm_error *err) {
    for (size_t done = 0; done < n;) {
        int64_t got = file_read(fd, (uint8_t *)dst + done, n - done, (int64_t)(at + done));
        if (got < 0) return err_set(err, PYLLM_ERR_IO, "%s: %s", path, strerror(errno));
        if (!got) return damaged(path, "it ends too early", err);
        done += (size_t)got;
    }
    return 0;
}

/* The checked header with what follows it; mem_free it. */
static int read_header(int fd, const char *path, pack_header **out, pyllm_error *err) {
    pack_header h;
    file_info now;
    uint64_t sum;
    *out = NULL;
    if (file_stat(fd, &now)) return err_set(err, PYLLM_ERR_IO, "%s: %s", path, strerror(errno));
    TRY(read_bytes(fd, path, &h, sizeof h, 0, err));
    if (memcmp(h.magic, magic, sizeof magic)) return damaged(path, "it does not begin as it should", err);
    if (h.version != VERSION) return err_set(err, PYLLM_ERR_STATE, "%s is of another version", path);
    if (!h.path_bytes || h.path_bytes > FILE_PATH_BYTES || h.path_bytes % 8 || h.data_bytes > INT64_MAX - DATA_OFFSET ||
        h.n_chunks != chunks(h.data_bytes) || h.n_chunks > DATA_OFFSET / 8 - FILE_PATH_BYTES)
        return damaged(path, "its header makes no sense", err);
    if ((uint64_t)now.size != DATA_OFFSET + h.data_bytes) return damaged(path, "it has not the size that its header says", err);
    size_t bytes = header_bytes(&h);
    pack_header *all = mem_alloc(bytes);
    if (!all) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while reading %s", path);
    int rc = read_bytes(fd, path, all, bytes, 0, err);
    memcpy(&sum, (uint8_t *)all + bytes - 8, 8);
    if (!rc && (memcmp(all, &h, sizeof h) || checksum(all, bytes - 8) != sum || header_path(all)[h.path_bytes - 1]))
        rc = damaged(path, "the checksum of its header does not match", err);
    if (rc) mem_free(all);
    else *out = all;
    return rc;
}

static int open_pack(const char *path, pyllm_error *err) {
    int fd = file_open(path);
    return fd < 0 ? err_set(err, PYLLM_ERR_IO, "%s: %s", path, strerror(errno)) : fd;
}

int pack_info(const char *path, pyllm_pack *out, pyllm_error *err) {
    pack_header *h;
    int fd = open_pack(path, err);
    if (fd < 0) return fd;
    int rc = read_header(fd, path, &h, err);
    file_close(fd);
    if (rc) return rc;
    *out = (pyllm_pack){.bytes = (int64_t)h->data_bytes};
    snprintf(out->model, sizeof out->model, "%s", header_path(h));
    mem_free(h);
    return 0;
}

/* ---- checking ------------------------------------------------------------------------------------------------------------ */

typedef struct check_job {
    const char *path;
    const mapping *map;
    const pack_header *h;
    const pyllm_gguf *g;
    const tape *t;
    uint64_t chance;                /* another one each time */
    uint8_t *buffers;               /* worker by worker: file bytes and the packed form of a sample */
    size_t file_bytes, packed_bytes;
    atomic_int rc;
    pyllm_error *errors;            /* one a worker */
} check_job;

static void check_chunk(void *ctx, int64_t i, int worker) {
    check_job *j = ctx;
    size_t n = chunk_bytes(j->map->n, i);
    if (atomic_load(&j->rc)) return;
    mapping_fetch(j->map, (size_t)i * CHUNK_BYTES, n);
    if (checksum_block(j->map->p + (size_t)i * CHUNK_BYTES, n) != header_sums(j->h)[i])
        atomic_store(&j->rc, damaged(j->path, "a checksum of its data does not match", &j->errors[worker]));
}

/* Units [first, first + n) of a weight as the model's file has them now. */
static int check_units(const check_job *j, const weight *w, int64_t first, int64_t n, int worker, pyllm_error *err) {
    uint8_t *file = j->buffers + (size_t)worker * (j->file_bytes + j->packed_bytes), *packed = file + j->file_bytes;
    size_t unit = w->bytes / (size_t)weight_units(w);
    TRY(weight_load(j->g, w, first, n, file, packed, err));
    if (!memcmp(packed, j->map->p + w->offset + (size_t)first * unit, (size_t)n * unit)) return 0;
    return err_set(err, PYLLM_ERR_STATE, "%s does not hold %s as it is in %s and is packed now", j->path, w->name, gguf_path(j->g));
}

static void check_weight(void *ctx, int64_t i, int worker) {
    check_job *j = ctx;
    const weight *w = &j->t->weights[i];
    if (atomic_load(&j->rc) || !w->bytes) return;
    int64_t units = weight_units(w), n = w->is_vector && units > VECTOR_SAMPLE ? VECTOR_SAMPLE : w->is_vector ? units : 1;
    int64_t first = (int64_t)(rng_mix(j->chance ^ (uint64_t)i) % (uint64_t)(units - n + 1));
    int rc = check_units(j, w, first, n, worker, &j->errors[worker]);
    if (!rc && !w->is_vector && w->n % GROUP) rc = check_units(j, w, units - 1, 1, worker, &j->errors[worker]);
    if (rc) atomic_store(&j->rc, rc);
}

static int check_all(check_job *j, int n_threads, const volatile int32_t *cancel, pyllm_error *err) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    j->chance = rng_mix((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    j->file_bytes = j->packed_bytes = VECTOR_SAMPLE * 8;
    for (int32_t i = 0; i < j->t->n_weights; i++) {
        const weight *w = &j->t->weights[i];
        size_t file = w->is_vector ? 0 : (weight_row_bytes(w) * GROUP + 63) / 64 * 64;
        if (file > j->file_bytes) j->file_bytes = file;
        if (w->group_bytes > j->packed_bytes) j->packed_bytes = w->group_bytes;
    }
    pool *p = pool_new(n_threads);
    j->buffers = mem_alloc((j->file_bytes + j->packed_bytes) * (size_t)n_threads);
    j->errors = mem_array((size_t)n_threads, sizeof *j->errors);
    int rc = p && j->buffers && j->errors ? 0 : err_set(err, PYLLM_ERR_MEMORY, "out of memory or threads while checking %s", j->path);
    if (!rc) {
        int left_out = pool_run(p, check_weight, j, j->t->n_weights, 1, cancel);
        if (!left_out) left_out = pool_run(p, check_chunk, j, (int64_t)j->h->n_chunks, 1, cancel);
        rc = atomic_load(&j->rc);
        for (int w = 0; rc && w < n_threads; w++)
            if (j->errors[w].code && err) *err = j->errors[w];
        if (!rc && left_out) rc = err_set(err, PYLLM_ERR_CANCELLED, "loading was cancelled");
    }
    mem_free(j->errors);
    mem_free(j->buffers);
    pool_free(p);
    return rc ? rc : mapping_check(j->map, err);
}

int pack_map(const char *path, const pyllm_gguf *g, const tape *t, size_t bytes, int n_threads, const volatile int32_t *cancel, mapping *out,
             pyllm_error *err) {
    pack_header *h = NULL;
    uint64_t identity;
    *out = (mapping){0};
    int fd = open_pack(path, err);
    if (fd < 0) return fd;
    int rc = read_header(fd, path, &h, err);
    if (!rc) rc = gguf_identity(g, &identity, err);
    if (!rc && h->identity != identity) rc = err_set(err, PYLLM_ERR_STATE, "%s was packed before %s was changed", path, gguf_path(g));
    if (!rc && (h->key != pack_key(t, bytes) || h->data_bytes != bytes))
        rc = err_set(err, PYLLM_ERR_STATE, "%s has not the weights in the places that the model needs", path);
    if (!rc) rc = mapping_new(fd, path, DATA_OFFSET, bytes, out, err);
    if (rc) {
        file_close(fd);
    } else {
        check_job j = {.path = path, .map = out, .h = h, .g = g, .t = t};
        rc = check_all(&j, n_threads, cancel, err);
        if (rc) mapping_free(out);
        else file_touch(fd);            /* its last use */
    }
    mem_free(h);
    return rc;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

typedef struct store_job {
    const pyllm_model *m;
    int fd;
    uint64_t *sums;
    atomic_int failed;              /* errno */
} store_job;

/* errno, or 0. */
static int write_bytes(int fd, const void *src, size_t n, size_t at) {
    for (size_t done = 0; done < n;) {
        int64_t put = file_write(fd, (const uint8_t *)src + done, n - done, (int64_t)(at + done));
        if (put <= 0) return put ? errno : ENOSPC;
        done += (size_t)put;
    }
    return 0;
}

static void store_chunk(void *ctx, int64_t i, int worker) {
    store_job *j = ctx;
    size_t at = (size_t)i * CHUNK_BYTES, n = chunk_bytes(j->m->memory_bytes, i);
    (void)worker;
    if (atomic_load(&j->failed)) return;
    j->sums[i] = checksum_block(j->m->memory + at, n);
    int failed = write_bytes(j->fd, j->m->memory + at, n, DATA_OFFSET + at);
    if (failed) atomic_store(&j->failed, failed);
}

/* The header without sums: what model and which weights. */
static int make_header(const pyllm_model *m, const pyllm_gguf *g, pack_header **out, pyllm_error *err) {
    char real[FILE_PATH_BYTES];
    pack_header h = {.version = VERSION, .key = pack_key(&m->t, m->memory_bytes), .data_bytes = m->memory_bytes, .n_chunks = chunks(m->memory_bytes)};
    memcpy(h.magic, magic, sizeof magic);
    TRY(gguf_identity(g, &h.identity, err));       /* after all of the model was read: what was read is of this identity */
    if (file_real(gguf_path(g), real)) return err_set(err, PYLLM_ERR_IO, "%s: %s", gguf_path(g), strerror(errno));
    h.path_bytes = (uint32_t)(strlen(real) + 8) / 8 * 8;
    if (header_bytes(&h) > DATA_OFFSET) return err_set(err, PYLLM_ERR_UNSUPPORTED, "%s is too large for a file of packed weights", real);
    pack_header *all = mem_zalloc(header_bytes(&h));
    if (!all) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while storing packed weights");
    *all = h;
    memcpy(header_path(all), real, strlen(real));
    *out = all;
    return 0;
}

/* Data, then the header, whose sums are known by then. */
static int write_pack(int fd, const char *path, const pyllm_model *m, pack_header *h, int n_threads, const volatile int32_t *cancel,
                      pyllm_error *err) {
    store_job j = {.m = m, .fd = fd, .sums = header_sums(h)};
    pool *p = pool_new(n_threads);
    if (!p) return err_set(err, PYLLM_ERR_MEMORY, "out of memory or threads while storing packed weights");
    int left_out = pool_run(p, store_chunk, &j, (int64_t)h->n_chunks, 1, cancel);
    pool_free(p);
    int failed = atomic_load(&j.failed);
    if (!failed && left_out) return err_set(err, PYLLM_ERR_CANCELLED, "storing packed weights was cancelled");
    size_t bytes = header_bytes(h);
    uint64_t sum = checksum(h, bytes - 8);
    memcpy((uint8_t *)h + bytes - 8, &sum, 8);
    if (!failed) failed = write_bytes(fd, h, bytes, 0);
    if (!failed && file_sync(fd)) failed = errno;
    return failed ? err_set(err, PYLLM_ERR_IO, "%s cannot be written: %s", path, strerror(failed)) : 0;
}

int pack_store(const pyllm_model *m, const pyllm_gguf *g, const char *path, int n_threads, const volatile int32_t *cancel, pyllm_error *err) {
    char temporary[FILE_PATH_BYTES];
    struct timespec now = {0};
    pack_header *h = NULL;
    clock_gettime(CLOCK_REALTIME, &now);
    if (n_threads < 1 || n_threads > 1024) return err_set(err, PYLLM_ERR_ARG, "n_threads is %d, must be 1 to 1024", n_threads);
    if (snprintf(temporary, sizeof temporary, "%s.%lx-%lx.tmp", path, (long)getpid(), (long)now.tv_nsec) >= (int)sizeof temporary)
        return err_set(err, PYLLM_ERR_ARG, "the path %s is too long", path);
    TRY(make_header(m, g, &h, err));
    int rc, fd = file_create(temporary);
    if (fd < 0) {
        rc = err_set(err, PYLLM_ERR_IO, "%s cannot be written: %s", temporary, strerror(errno));
    } else {
        rc = write_pack(fd, temporary, m, h, n_threads, cancel, err);
        if (!rc && file_replace(temporary, path)) rc = err_set(err, PYLLM_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
        if (rc) file_remove(temporary);
        file_close(fd);
    }
    mem_free(h);
    return rc;
}
