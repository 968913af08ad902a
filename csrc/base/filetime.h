/* Times of a file: MTIME(st) of the last change of its bytes, CTIME(st) of anything about it, which nobody can set. */
#ifndef PYLLM_BASE_FILETIME_H
#define PYLLM_BASE_FILETIME_H
#include <sys/stat.h>
#include <time.h>

#ifdef __APPLE__
#define MTIME(st) ((st).st_mtimespec)
#define CTIME(st) ((st).st_ctimespec)
#else
#define MTIME(st) ((st).st_mtim)
#define CTIME(st) ((st).st_ctim)
#endif

static inline int same_time(struct timespec a, struct timespec b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }
#endif
