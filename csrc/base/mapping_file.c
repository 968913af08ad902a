/* What mappings of every system remember of their file. */
#include "alloc.h"
#include "file.h"
#include "mapping.h"

#include <errno.h>
#include <string.h>

int mapping_describe(int fd, const char *path, size_t n, mapping *m, pyllm_error *err) {
    file_info now;
    *m = (mapping){.n = n, .fd = fd, .slot = -1};
    if (file_stat(fd, &now)) return err_set(err, PYLLM_ERR_IO, "%s: %s", path, strerror(errno));
    m->file_bytes = now.size;
    m->written = now.written;
    m->path = mem_alloc(strlen(path) + 1);
    if (!m->path) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while mapping %s", path);
    memcpy(m->path, path, strlen(path) + 1);
    return 0;
}

int mapping_compare(const mapping *m, int lost, pyllm_error *err) {
    file_info now;
    if (!lost && !file_stat(m->fd, &now) && now.size == m->file_bytes && same_time(now.written, m->written)) return 0;
    return err_set(err, PYLLM_ERR_IO, "%s was changed while it was in use, or cannot be read any more\nhint: load the model again", m->path);
}
