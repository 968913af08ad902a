/* Windows refuses to truncate a file that is mapped, so no page of it goes missing but by a failing disk. */
#ifdef _WIN32
#include "alloc.h"
#include "file.h"
#include "mapping.h"

#include <io.h>
#include <windows.h>

int mapping_new(int fd, const char *path, size_t offset, size_t n, mapping *m, pyllm_error *err) {
    TRY(mapping_describe(fd, path, n, m, err));
    HANDLE section = CreateFileMappingW((HANDLE)_get_osfhandle(fd), NULL, PAGE_READONLY, 0, 0, NULL);
    if (section) m->p = MapViewOfFile(section, FILE_MAP_READ, (DWORD)((uint64_t)offset >> 32), (DWORD)offset, n);
    DWORD reason = GetLastError();
    if (section) CloseHandle(section);          /* the view keeps it */
    if (m->p) return 0;
    mem_free(m->path);
    return err_set(err, PYLLM_ERR_IO, "%s cannot be mapped: Windows error %lu", path, reason);
}

void mapping_free(mapping *m) {
    if (!m->p) return;
    UnmapViewOfFile(m->p);
    file_close(m->fd);
    mem_free(m->path);
    m->p = NULL;
}

void mapping_fetch(const mapping *m, size_t at, size_t n) {
    WIN32_MEMORY_RANGE_ENTRY range = {(void *)(m->p + at), n};
    PrefetchVirtualMemory(GetCurrentProcess(), 1, &range, 0);
}

int mapping_check(const mapping *m, pyllm_error *err) { return mapping_compare(m, 0, err); }
#endif
