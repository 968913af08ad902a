/* Files as csrc uses them, by descriptor: POSIX in file.c, Windows in file_windows.c. Paths are UTF-8. What fails returns -1 and sets errno. */
#ifndef PYLLM_BASE_FILE_H
#define PYLLM_BASE_FILE_H
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { FILE_PATH_BYTES = 4096 };        /* of a path, with its end */

typedef struct file_info {
    int64_t size;
    struct timespec written, noted;     /* last change of its bytes; of anything about it, which nobody can set */
    int is_file, is_folder;
} file_info;

int file_open(const char *path);        /* to be read; not inherited by children; a pipe does not make us wait */
int file_create(const char *path);      /* a new file to be written, which others can only read; locked against other processes that look, where files can be */
int file_dup(int fd);                   /* another descriptor of the same */
void file_close(int fd);
int file_stat(int fd, file_info *out);
/* Up to n bytes from an offset on: how many, 0 at the end. Any thread; no position moves. */
int64_t file_read(int fd, void *dst, size_t n, int64_t at);
int64_t file_write(int fd, const void *src, size_t n, int64_t at);
int file_sync(int fd);                  /* onto the disk */
void file_touch(int fd);                /* the time of its last use becomes now, if the system lets us */
int file_replace(const char *from, const char *to);     /* by one atomic step, on the disk when it returns, where folders can be synced */
int file_remove(const char *path);
int file_real(const char *path, char *out);             /* the absolute path, FILE_PATH_BYTES of room */

static inline int same_time(struct timespec a, struct timespec b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }
#endif
