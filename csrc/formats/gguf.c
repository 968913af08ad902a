/* GGUF v2/v3 (little-endian). Header: "GGUF", u32 version, u64 tensor count, u64 key count; keys (string, u32 type, value); tensor
 * entries (string, u32 dims, u64 sizes, u32 type, u64 offset); padding; data. Strings: u64 length, bytes. Every length is checked against
 * the file before memory is taken for it. Source: the GGUF specification of ggml. */
#include "gguf.h"

#include "../base/alloc.h"
#include "../base/checksum.h"
#include "../base/file.h"
#include "../base/hash.h"
#include "formats.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { KV_MAX = 1 << 16, TENSORS_MAX = 1 << 17, PARTS_MAX = 4096, KEY_MAX = 65535, NAME_MAX_BYTES = 256 };
static const uint64_t header_max = 1ULL << 29;
static const uint8_t value_bytes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
enum { TYPE_U16 = 2, TYPE_U32 = 4, TYPE_I32 = 5, TYPE_STRING = 8, TYPE_ARRAY = 9 };

typedef struct entry {          /* a key; offsets into the header bytes */
    uint64_t key, key_len, data, count;
    uint32_t type, item;
    uint64_t *strings;          /* [count] offsets of string lengths, arrays of strings only */
} entry;

typedef struct part {
    int fd;
    uint64_t size;
    struct timespec written, noted;     /* when it was opened: MTIME and CTIME */
    int settled;                /* when it was opened, these were so long ago that any later change has others */
    uint8_t *header;
    uint64_t have, room;
    char *path;
} part;

typedef struct name_index {     /* names to their place in a list: open addressing, -1 empty */
    int32_t *slot;
    uint32_t mask;
} name_index;

struct pyllm_gguf {
    part *parts;
    int32_t n_parts;
    entry *kv;
    int64_t n_kv;
    pyllm_tensor *tensors;
    int64_t n_tensors;
    char **kv_names, **tensor_names;
    hash_key key;
    name_index kv_index, tensor_index;
};

typedef struct reader {
    part *f;
    uint64_t at;
    pyllm_error *err;
} reader;

static int bad(const reader *r, const char *what) {
    return err_set(r->err, PYLLM_ERR_FORMAT, "%s: %s at byte %llu\nhint: the file is damaged or incomplete; fetch it again", r->f->path, what,
                   (unsigned long long)r->at);
}

/* Size and time of the last change, as the system has them now. 0 if they are what they were at opening. */
static int changed(const part *f) {
    file_info now;
    if (file_stat(f->fd, &now)) return -1;
    return (uint64_t)now.size != f->size || !same_time(now.written, f->written);
}

/* Whoever writes into an open model gets an error, never text from half a model: the look at the file comes after the reading. */
static int read_at(const part *f, uint64_t at, uint64_t n, uint8_t *dst, pyllm_error *err) {
    while (n) {
        int64_t got = file_read(f->fd, dst, n < (1u << 30) ? (size_t)n : 1u << 30, (int64_t)at);
        if (got <= 0)
            return err_set(err, PYLLM_ERR_IO, "%s: %s at byte %llu\nhint: the file was changed or its disk is failing", f->path,
                           got ? strerror(errno) : "ends", (unsigned long long)at);
        at += (uint64_t)got;
        dst += got;
        n -= (uint64_t)got;
    }
    return changed(f) ? err_set(err, PYLLM_ERR_IO, "%s was changed while it was in use\nhint: load the model again once it is complete", f->path) : 0;
}

/* Makes bytes [r->at, r->at + n) of the header available. */
static int need(reader *r, uint64_t n) {
    part *f = r->f;
    if (n > f->size || r->at > f->size - n) return bad(r, "the header runs past the end of the file");
    if (r->at + n <= f->have) return 0;
    if (r->at + n > header_max) return bad(r, "the header is larger than 512 MB");
    uint64_t want = r->at + n + (64 << 10);
    if (want > f->size) want = f->size;
    if (want > f->room) {
        uint64_t room = want > 2 * f->room ? want : 2 * f->room;
        uint8_t *p = mem_realloc(f->header, room);
        if (!p) return err_set(r->err, PYLLM_ERR_MEMORY, "%s: out of memory for a header of %llu bytes", f->path, (unsigned long long)want);
        f->header = p;
        f->room = room;
    }
    TRY(read_at(f, f->have, want - f->have, f->header + f->have, r->err));
    f->have = want;
    return 0;
}

static int get_u32(reader *r, uint32_t *v) {
    TRY(need(r, 4));
    memcpy(v, r->f->header + r->at, 4);
    r->at += 4;
    return 0;
}

static int get_u64(reader *r, uint64_t *v) {
    TRY(need(r, 8));
    memcpy(v, r->f->header + r->at, 8);
    r->at += 8;
    return 0;
}

static int get_string(reader *r, uint64_t *at, uint64_t *len) {
    TRY(get_u64(r, len));
    TRY(need(r, *len));
    *at = r->at;
    r->at += *len;
    return 0;
}

/* ---- keys ------------------------------------------------------------------------------------------------------------ */

static int get_strings(reader *r, entry *e) {
    uint64_t room = 0;
    for (uint64_t i = 0; i < e->count; i++) {
        if (i == room) {
            room = room ? 2 * room : 1024;
            if (room > e->count) room = e->count;
            uint64_t *p = mem_realloc(e->strings, room * sizeof *p);
            if (!p) return err_set(r->err, PYLLM_ERR_MEMORY, "%s: out of memory for %llu strings", r->f->path, (unsigned long long)e->count);
            e->strings = p;
        }
        uint64_t at, len;
        e->strings[i] = r->at;
        TRY(get_string(r, &at, &len));
    }
    return 0;
}

static int get_value(reader *r, entry *e) {
    e->count = 1;
    TRY(get_u32(r, &e->type));
    e->item = e->type;
    if (e->type == TYPE_ARRAY) {
        TRY(get_u32(r, &e->item));
        TRY(get_u64(r, &e->count));
    }
    if (e->item > 12 || e->item == TYPE_ARRAY) return bad(r, e->item == TYPE_ARRAY ? "arrays of arrays are not supported" : "unknown value type");
    e->data = r->at;
    if (e->item == TYPE_STRING) {
        if (e->count > r->f->size / 8) return bad(r, "an array is longer than the file");
        return get_strings(r, e);
    }
    if (e->count > r->f->size) return bad(r, "an array is longer than the file");
    TRY(need(r, e->count * value_bytes[e->item]));
    r->at += e->count * value_bytes[e->item];
    return 0;
}

static int get_keys(reader *r, entry *kv, uint64_t n, int64_t *done) {
    for (*done = 0; *done < (int64_t)n;) {
        entry *e = &kv[*done];
        TRY(get_string(r, &e->key, &e->key_len));
        if (!e->key_len || e->key_len > KEY_MAX || memchr(r->f->header + e->key, 0, e->key_len)) return bad(r, "a key is empty, too long or holds a zero byte");
        ++*done;                /* from here on its memory is freed with the file */
        TRY(get_value(r, e));
    }
    return 0;
}

/* An unsigned integer key of a part, or `missing`. */
static uint64_t get_number(const part *f, const entry *kv, int64_t n, const char *key, uint64_t missing) {
    for (int64_t i = 0; i < n; i++) {
        if (kv[i].key_len != strlen(key) || memcmp(f->header + kv[i].key, key, kv[i].key_len)) continue;
        if (kv[i].type != TYPE_U16 && kv[i].type != TYPE_U32 && kv[i].type != TYPE_I32) return missing;
        uint32_t v = 0;
        memcpy(&v, f->header + kv[i].data, value_bytes[kv[i].type]);
        return v;
    }
    return missing;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------------- */

static int check_shape(reader *r, pyllm_tensor *t, uint64_t name_len, const uint8_t *name) {
    uint64_t elems = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        if (t->ne[d] < 0 || __builtin_mul_overflow(elems, (uint64_t)t->ne[d], &elems) || elems > (1ULL << 60))
            return bad(r, "a tensor has impossible dimensions");
    }
    const qtype_info *q = qtype_get(t->type);
    t->bytes = 0;
    if (!q) return 0;           /* reported by name when something wants to use it */
    if (t->ne[0] % q->elems)
        return err_set(r->err, PYLLM_ERR_FORMAT, "%s: tensor %.*s has rows of %lld values, not a multiple of %s's %d", r->f->path,
                       (int)(name_len < 200 ? name_len : 200), name, (long long)t->ne[0], q->name, q->elems);
    t->bytes = elems / (uint64_t)q->elems * (uint64_t)q->bytes;
    return 0;
}

static int get_tensors(pyllm_gguf *g, reader *r, uint64_t n, uint64_t *names, uint32_t align) {
    int64_t first = g->n_tensors;
    for (uint64_t i = 0; i < n; i++) {
        pyllm_tensor *t = &g->tensors[first + (int64_t)i];
        uint64_t at, len, ne;
        memset(t, 0, sizeof *t);
        TRY(get_string(r, &at, &len));
        if (!len || len > NAME_MAX_BYTES || memchr(r->f->header + at, 0, len)) return bad(r, "a tensor name is empty, too long or holds a zero byte");
        names[i] = at;
        TRY(get_u32(r, &t->n_dims));
        if (t->n_dims < 1 || t->n_dims > 4) return bad(r, "a tensor has no or more than 4 dimensions");
        for (int d = 0; d < 4; d++) {
            ne = 1;
            if (d < (int)t->n_dims) TRY(get_u64(r, &ne));
            t->ne[d] = ne > (1ULL << 60) ? -1 : (int64_t)ne;
        }
        TRY(get_u32(r, &t->type));
        TRY(get_u64(r, &t->offset));
        TRY(check_shape(r, t, len, r->f->header + at));
        if (t->offset % align) return bad(r, "a tensor is not aligned");
        t->file = g->n_parts - 1;
    }
    uint64_t data = (r->at + align - 1) / align * align;
    for (uint64_t i = 0; i < n; i++) {
        pyllm_tensor *t = &g->tensors[first + (int64_t)i];
        if (data > r->f->size || t->offset > r->f->size - data || t->bytes > r->f->size - data - t->offset) {
            uint64_t len;
            memcpy(&len, r->f->header + names[i] - 8, 8);
            return err_set(r->err, PYLLM_ERR_FORMAT, "%s: tensor %.*s needs %llu bytes from byte %llu, the file has %llu\n"
                           "hint: the file is incomplete; fetch it again", r->f->path, (int)len, r->f->header + names[i],
                           (unsigned long long)t->bytes, (unsigned long long)(data + t->offset), (unsigned long long)r->f->size);
        }
        t->offset += data;
    }
    return 0;
}

/* ---- names ------------------------------------------------------------------------------------------------------------- */

static char *copy(const uint8_t *s, uint64_t n) {
    char *p = mem_alloc(n + 1);
    if (!p) return NULL;
    memcpy(p, s, n);
    p[n] = 0;
    return p;
}

/* The slot that holds name, or the empty one that it would take. */
static int32_t *find_slot(const pyllm_gguf *g, const name_index *x, char *const *names, const char *name) {
    uint32_t h = (uint32_t)hash_bytes(g->key, name, strlen(name)) & x->mask;
    while (x->slot[h] >= 0 && strcmp(names[x->slot[h]], name)) h = (h + 1) & x->mask;
    return &x->slot[h];
}

static int index_names(pyllm_gguf *g, name_index *x, char *const *names, int64_t n, const char *what, pyllm_error *err) {
    uint32_t size = 16;
    while (size < 2 * (uint64_t)n) size *= 2;
    x->slot = mem_alloc(size * sizeof *x->slot);
    if (!x->slot) return err_set(err, PYLLM_ERR_MEMORY, "%s: out of memory for an index of %lld names", g->parts[0].path, (long long)n);
    x->mask = size - 1;
    memset(x->slot, 255, size * sizeof *x->slot);
    for (int64_t i = 0; i < n; i++) {
        int32_t *slot = find_slot(g, x, names, names[i]);
        if (*slot >= 0) return err_set(err, PYLLM_ERR_FORMAT, "%s: %s %s stands twice in the file", g->parts[0].path, what, names[i]);
        *slot = (int32_t)i;
    }
    return 0;
}

static int name_keys(pyllm_gguf *g, pyllm_error *err) {
    g->kv_names = mem_array((size_t)g->n_kv + 1, sizeof *g->kv_names);
    if (!g->kv_names) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for %lld keys", (long long)g->n_kv);
    for (int64_t i = 0; i < g->n_kv; i++) {
        g->kv_names[i] = copy(g->parts[0].header + g->kv[i].key, g->kv[i].key_len);
        if (!g->kv_names[i]) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for %lld keys", (long long)g->n_kv);
    }
    return 0;
}

/* Clocks of file systems tick: a second change within a tick shows the time of the first. Where they keep no nanoseconds a tick is 1 or 2 s. */
static int settled(struct timespec last) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    double age = (double)(now.tv_sec - last.tv_sec) + 1e-9 * (double)(now.tv_nsec - last.tv_nsec);
    return age > (last.tv_nsec ? 0.05 : 3.0);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------- */

static int open_part(pyllm_gguf *g, const char *path, pyllm_error *err) {
    part *f = &g->parts[g->n_parts];
    file_info now;
    *f = (part){.fd = file_open(path)};
    if (f->fd < 0) return err_set(err, PYLLM_ERR_IO, "%s: %s\nhint: check the path", path, strerror(errno));
    g->n_parts++;
    f->path = copy((const uint8_t *)path, strlen(path));
    if (!f->path) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while opening a file");
    if (file_stat(f->fd, &now)) return err_set(err, PYLLM_ERR_IO, "%s: %s", path, strerror(errno));
    if (!now.is_file)
        return err_set(err, PYLLM_ERR_IO, "%s is %s\nhint: give the path of a GGUF file", path, now.is_folder ? "a folder" : "not a regular file");
    f->size = (uint64_t)now.size;
    f->written = now.written;
    f->noted = now.noted;
    f->settled = settled(f->noted);
    return 0;
}

static int grow_tensors(pyllm_gguf *g, uint64_t n, const reader *r) {
    if (n > TENSORS_MAX || n > r->f->size / 24) return bad(r, "more tensors than the file can hold");
    pyllm_tensor *t = mem_realloc(g->tensors, ((size_t)g->n_tensors + n + 1) * sizeof *t);
    if (t) g->tensors = t;
    char **names = t ? mem_realloc(g->tensor_names, ((size_t)g->n_tensors + n + 1) * sizeof *names) : NULL;
    if (!names) return err_set(r->err, PYLLM_ERR_MEMORY, "%s: out of memory for %llu tensors", r->f->path, (unsigned long long)n);
    g->tensor_names = names;
    memset(names + g->n_tensors, 0, ((size_t)n + 1) * sizeof *names);
    return 0;
}

static int add_tensors(pyllm_gguf *g, reader *r, uint64_t n, uint32_t align) {
    TRY(grow_tensors(g, n, r));
    uint64_t *names = mem_array(n + 1, sizeof *names);
    if (!names) return err_set(r->err, PYLLM_ERR_MEMORY, "%s: out of memory for %llu tensors", r->f->path, (unsigned long long)n);
    int rc = get_tensors(g, r, n, names, align);
    for (uint64_t i = 0; i < n && !rc; i++) {
        uint64_t len;
        memcpy(&len, r->f->header + names[i] - 8, 8);
        g->tensor_names[g->n_tensors] = copy(r->f->header + names[i], len);
        if (!g->tensor_names[g->n_tensors]) rc = err_set(r->err, PYLLM_ERR_MEMORY, "%s: out of memory for tensor names", r->f->path);
        else g->n_tensors++;
    }
    mem_free(names);
    return rc;
}

static void free_keys(entry *kv, int64_t n) {
    for (int64_t i = 0; kv && i < n; i++) mem_free(kv[i].strings);
    mem_free(kv);
}

/* What a file that does not begin like GGUF is, as far as its beginning tells. */
static int not_gguf(const part *f, pyllm_error *err) {
    static const struct { const char *begins, *is; } known[] = {
        {"version https://git-lfs", "is a Git LFS pointer, not the model\nhint: fetch the model itself with: git lfs pull"},
        {"PK", "is a zip archive, perhaps a PyTorch checkpoint\nhint: models must be converted to GGUF"},
        {"<", "is a web page or XML, not a model\nhint: the download went wrong; fetch the file itself"},
        {"tjgg", "is in a format from before GGUF\nhint: convert the model again with a current converter"},
        {"lmgg", "is in a format from before GGUF\nhint: convert the model again with a current converter"},
    };
    char head[32] = {0};
    if (!f->size) return err_set(err, PYLLM_ERR_FORMAT, "%s is empty\nhint: the file is incomplete; fetch it again", f->path);
    TRY(read_at(f, 0, f->size < sizeof head ? f->size : sizeof head, (uint8_t *)head, err));
    if (f->size < 24 && !memcmp(head, "GGUF", f->size < 4 ? (size_t)f->size : 4))
        return err_set(err, PYLLM_ERR_FORMAT, "%s ends after %llu bytes\nhint: the file is incomplete; fetch it again", f->path, (unsigned long long)f->size);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strncmp(head, known[i].begins, strlen(known[i].begins))) return err_set(err, PYLLM_ERR_FORMAT, "%s %s", f->path, known[i].is);
    if (!strncmp(head + 8, "{\"", 2)) return err_set(err, PYLLM_ERR_FORMAT, "%s is a safetensors file\nhint: models must be converted to GGUF", f->path);
    return err_set(err, PYLLM_ERR_FORMAT, "%s is not a GGUF file\nhint: models must be in GGUF format", f->path);
}

/* Which of how many files it is, and the tensors of all of them; zeros in a file that stands alone. */
typedef struct split { uint64_t no, count, tensors; } split;

/* Reads the header of one file. The first part's keys become the set's; of later ones only the tensors are kept. */
static int read_part(pyllm_gguf *g, split *s, pyllm_error *err) {
    reader r = {&g->parts[g->n_parts - 1], 0, err};
    uint32_t magic, version;
    uint64_t n_tensors, n_kv;
    if (r.f->size < 24) return not_gguf(r.f, err);
    TRY(get_u32(&r, &magic));
    TRY(get_u32(&r, &version));
    if (magic != 0x46554747u) return not_gguf(r.f, err);
    if (version == 0x02000000u || version == 0x03000000u)
        return err_set(err, PYLLM_ERR_UNSUPPORTED, "%s is a big-endian GGUF file\nhint: convert the model again for little-endian machines", r.f->path);
    if (version != 2 && version != 3)
        return err_set(err, PYLLM_ERR_UNSUPPORTED, "%s: GGUF version %u; versions 2 and 3 can be read\nhint: convert the model again with a "
                       "current converter", r.f->path, version);
    TRY(get_u64(&r, &n_tensors));
    TRY(get_u64(&r, &n_kv));
    if (n_kv > KV_MAX || n_kv > r.f->size / 13) return bad(&r, "more keys than the file can hold");
    entry *kv = mem_array(n_kv + 1, sizeof *kv);
    if (!kv) return err_set(err, PYLLM_ERR_MEMORY, "%s: out of memory for %llu keys", r.f->path, (unsigned long long)n_kv);
    int64_t read = 0;
    int rc = get_keys(&r, kv, n_kv, &read);
    uint64_t align = rc ? 32 : get_number(r.f, kv, read, "general.alignment", 32);
    *s = rc ? (split){0} : (split){get_number(r.f, kv, read, "split.no", 0), get_number(r.f, kv, read, "split.count", 0),
                                   get_number(r.f, kv, read, "split.tensors.count", 0)};
    if (g->n_parts == 1) {
        g->kv = kv;
        g->n_kv = read;
    } else {
        free_keys(kv, read);
    }
    if (!rc && (align < 1 || align > (1 << 20) || (align & (align - 1)))) rc = bad(&r, "general.alignment is not a power of two");
    return rc ? rc : add_tensors(g, &r, n_tensors, (uint32_t)align);
}

/* "stem-00001-of-00003.gguf" with its number replaced. */
static int split_path(const char *first, uint64_t no, uint64_t count, char *out, pyllm_error *err) {
    char tail[32];
    size_t n = strlen(first), k = (size_t)snprintf(tail, sizeof tail, "-%05u-of-%05u.gguf", 1u, (unsigned)count);
    if (n <= k || n >= FILE_PATH_BYTES || strcmp(first + n - k, tail))
        return err_set(err, PYLLM_ERR_FORMAT, "%s: the first of %llu files must be named ...%s\nhint: keep the names of the set as published", first,
                       (unsigned long long)count, tail);
    snprintf(out, FILE_PATH_BYTES, "%.*s-%05u-of-%05u.gguf", (int)(n - k), first, (unsigned)no + 1, (unsigned)count);
    return 0;
}

static int open_rest(pyllm_gguf *g, const char *path, const split *set, pyllm_error *err) {
    char next[FILE_PATH_BYTES];
    part *p = mem_realloc(g->parts, set->count * sizeof *p);
    if (!p) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while opening %llu files", (unsigned long long)set->count);
    g->parts = p;
    for (uint64_t i = 1; i < set->count; i++) {
        split s;
        TRY(split_path(path, i, set->count, next, err));
        TRY(open_part(g, next, err));
        TRY(read_part(g, &s, err));
        if (s.no != i || s.count != set->count || s.tensors != set->tensors)
            return err_set(err, PYLLM_ERR_FORMAT, "%s says that it is file %llu of %llu with %llu tensors, not file %llu of %llu with %llu\n"
                           "hint: put all files of one set into one folder, with their names as published", next, (unsigned long long)s.no + 1,
                           (unsigned long long)s.count, (unsigned long long)s.tensors, (unsigned long long)i + 1, (unsigned long long)set->count,
                           (unsigned long long)set->tensors);
    }
    if (set->tensors && set->tensors != (uint64_t)g->n_tensors)
        return err_set(err, PYLLM_ERR_FORMAT, "%s: the %llu files of the set hold %lld tensors, they should hold %llu\n"
                       "hint: the files are of different sets; fetch them again", path, (unsigned long long)set->count, (long long)g->n_tensors,
                       (unsigned long long)set->tensors);
    return 0;
}

static int open_all(pyllm_gguf *g, const char *path, pyllm_error *err) {
    split set;
    g->parts = mem_array(1, sizeof *g->parts);
    if (!g->parts) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while opening a file");
    TRY(open_part(g, path, err));
    TRY(read_part(g, &set, err));
    if (set.no || set.count > PARTS_MAX)
        return err_set(err, PYLLM_ERR_ARG, "%s is file %llu of a set of %llu\nhint: open the set's first file", path,
                       (unsigned long long)set.no + 1, (unsigned long long)set.count);
    if (set.count > 1) TRY(open_rest(g, path, &set, err));
    TRY(name_keys(g, err));
    for (int64_t i = 0; i < g->n_tensors; i++) g->tensors[i].name = g->tensor_names[i];
    g->key = hash_key_new(g);
    TRY(index_names(g, &g->kv_index, g->kv_names, g->n_kv, "key", err));
    return index_names(g, &g->tensor_index, g->tensor_names, g->n_tensors, "tensor", err);
}

int gguf_open(const char *path, pyllm_gguf **out, pyllm_error *err) {
    *out = NULL;
    pyllm_gguf *g = mem_zalloc(sizeof *g);
    if (!g) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while opening a file");
    int rc = open_all(g, path, err);
    if (rc) gguf_close(g);
    else *out = g;
    return rc;
}

static char *prefixed(const char *prefix, const char *name) {
    size_t n = strlen(prefix), k = strlen(name);
    char *p = mem_alloc(n + k + 1);
    if (!p) return NULL;
    memcpy(p, prefix, n);
    memcpy(p + n, name, k + 1);
    return p;
}

int gguf_add(pyllm_gguf *g, const char *path, const char *prefix, pyllm_error *err) {
    int64_t first = g->n_tensors;
    split s;
    part *p = g->n_parts < PARTS_MAX ? mem_realloc(g->parts, ((size_t)g->n_parts + 1) * sizeof *p) : NULL;
    if (!p) return err_set(err, PYLLM_ERR_MEMORY, "no room for %s beside the files that are open", path);
    g->parts = p;
    TRY(open_part(g, path, err));
    TRY(read_part(g, &s, err));
    if (s.count > 1) return err_set(err, PYLLM_ERR_UNSUPPORTED, "%s is one of %llu files\nhint: give one whole file", path, (unsigned long long)s.count);
    for (int64_t i = first; i < g->n_tensors; i++) {
        char *name = prefixed(prefix, g->tensor_names[i]);
        if (!name) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for tensor names");
        mem_free(g->tensor_names[i]);
        g->tensor_names[i] = name;
    }
    for (int64_t i = 0; i < g->n_tensors; i++) g->tensors[i].name = g->tensor_names[i];     /* the table may have moved */
    mem_free(g->tensor_index.slot);
    g->tensor_index.slot = NULL;
    return index_names(g, &g->tensor_index, g->tensor_names, g->n_tensors, "tensor", err);
}

void gguf_close(pyllm_gguf *g) {
    if (!g) return;
    for (int32_t i = 0; i < g->n_parts; i++) {
        file_close(g->parts[i].fd);
        mem_free(g->parts[i].header);
        mem_free(g->parts[i].path);
    }
    for (int64_t i = 0; g->kv_names && i < g->n_kv; i++) mem_free(g->kv_names[i]);
    for (int64_t i = 0; g->tensor_names && i < g->n_tensors; i++) mem_free(g->tensor_names[i]);
    free_keys(g->kv, g->n_kv);
    mem_free(g->kv_names);
    mem_free(g->tensor_names);
    mem_free(g->tensors);
    mem_free(g->kv_index.slot);
    mem_free(g->tensor_index.slot);
    mem_free(g->parts);
    mem_free(g);
}

int gguf_reopen(const pyllm_gguf *g, pyllm_gguf **out, pyllm_error *err) {
    *out = NULL;
    pyllm_gguf *n = mem_zalloc(sizeof *n);
    if (n) n->parts = mem_array((size_t)g->n_parts, sizeof *n->parts);
    if (n) n->tensors = mem_array((size_t)g->n_tensors + 1, sizeof *n->tensors);
    int rc = n && n->parts && n->tensors ? 0 : err_set(err, PYLLM_ERR_MEMORY, "out of memory while keeping the model file open");
    for (int32_t i = 0; i < g->n_parts && !rc; i++) {
        part *f = &n->parts[i];
        f->fd = file_dup(g->parts[i].fd);
        if (f->fd < 0) {
            rc = err_set(err, PYLLM_ERR_IO, "%s: %s", g->parts[i].path, strerror(errno));
            break;
        }
        n->n_parts++;
        f->size = g->parts[i].size;
        f->written = g->parts[i].written;
        f->noted = g->parts[i].noted;
        f->settled = g->parts[i].settled;
        f->path = copy((const uint8_t *)g->parts[i].path, strlen(g->parts[i].path));
        if (!f->path) rc = err_set(err, PYLLM_ERR_MEMORY, "out of memory while keeping the model file open");
    }
    if (rc) {
        gguf_close(n);
        return rc;
    }
    memcpy(n->tensors, g->tensors, (size_t)g->n_tensors * sizeof *n->tensors);
    for (int64_t i = 0; i < g->n_tensors; i++) n->tensors[i].name = "";
    n->n_tensors = g->n_tensors;
    *out = n;
    return 0;
}

/* ---- access ------------------------------------------------------------------------------------------------------------- */

int64_t gguf_n_kv(const pyllm_gguf *g) { return g->n_kv; }
int64_t gguf_n_tensors(const pyllm_gguf *g) { return g->n_tensors; }
const char *gguf_path(const pyllm_gguf *g) { return g->parts[0].path; }

int gguf_kv(const pyllm_gguf *g, int64_t i, pyllm_kv *out) {
    if (i < 0 || i >= g->n_kv) return PYLLM_ERR_ARG;
    const entry *e = &g->kv[i];
    *out = (pyllm_kv){.key = g->kv_names[i], .type = e->type, .item_type = e->item, .count = e->count, .data = g->parts[0].header + e->data};
    return 0;
}

int gguf_tensor(const pyllm_gguf *g, int64_t i, pyllm_tensor *out) {
    if (i < 0 || i >= g->n_tensors) return PYLLM_ERR_ARG;
    *out = g->tensors[i];
    return 0;
}

const char *gguf_string(const pyllm_gguf *g, int64_t i, uint64_t j, uint64_t *len) {
    if (i < 0 || i >= g->n_kv || g->kv[i].item != TYPE_STRING || j >= g->kv[i].count) return NULL;
    const uint8_t *p = g->parts[0].header + g->kv[i].strings[j];
    memcpy(len, p, 8);
    return (const char *)p + 8;
}

int gguf_read(const pyllm_gguf *g, int64_t i, uint64_t begin, uint64_t n, void *dst, pyllm_error *err) {
    if (i < 0 || i >= g->n_tensors) return err_set(err, PYLLM_ERR_ARG, "tensor %lld does not exist", (long long)i);
    const pyllm_tensor *t = &g->tensors[i];
    if (n > t->bytes || begin > t->bytes - n)
        return err_set(err, PYLLM_ERR_ARG, "bytes %llu to %llu of a tensor of %llu", (unsigned long long)begin, (unsigned long long)(begin + n),
                       (unsigned long long)t->bytes);
    return read_at(&g->parts[t->file], t->offset + begin, n, dst, err);
}

int gguf_identity(const pyllm_gguf *g, uint64_t *id, pyllm_error *err) {
    *id = (uint64_t)g->n_parts;
    for (int32_t i = 0; i < g->n_parts; i++) {
        const part *f = &g->parts[i];
        file_info now;
        if (file_stat(f->fd, &now)) return err_set(err, PYLLM_ERR_IO, "%s: %s", f->path, strerror(errno));
        if ((uint64_t)now.size != f->size || !same_time(now.written, f->written) || !same_time(now.noted, f->noted))
            return err_set(err, PYLLM_ERR_STATE, "%s was changed while it was in use", f->path);
        if (!f->settled) return err_set(err, PYLLM_ERR_STATE, "%s was changed a moment before it was opened", f->path);
        int64_t marks[5] = {now.size, f->written.tv_sec, f->written.tv_nsec, f->noted.tv_sec, f->noted.tv_nsec};
        *id = checksum_mix(*id, checksum(marks, sizeof marks));
    }
    return 0;
}

int64_t gguf_find_kv(const pyllm_gguf *g, const char *key) { return *find_slot(g, &g->kv_index, g->kv_names, key); }
int64_t gguf_find_tensor(const pyllm_gguf *g, const char *name) { return *find_slot(g, &g->tensor_index, g->tensor_names, name); }
