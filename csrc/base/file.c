#ifndef _WIN32
#define _GNU_SOURCE
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

int file_open(const char *path) { return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); }

int file_create(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
    if (fd >= 0) flock(fd, LOCK_EX | LOCK_NB);
    return fd;
}

int file_dup(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }
void file_close(int fd) { close(fd); }

int file_stat(int fd, file_info *out) {
    struct stat st;
    if (fstat(fd, &st)) return -1;
    *out = (file_info){st.st_size, st.st_mtim, st.st_ctim, S_ISREG(st.st_mode), S_ISDIR(st.st_mode)};
    return 0;
}

int64_t file_read(int fd, void *dst, size_t n, int64_t at) {
    ssize_t got;
    do got = pread(fd, dst, n, (off_t)at);
    while (got < 0 && errno == EINTR);
    return got;
}

int64_t file_write(int fd, const void *src, size_t n, int64_t at) {
    ssize_t put;
    do put = pwrite(fd, src, n, (off_t)at);
    while (put < 0 && errno == EINTR);
    return put;
}

int file_sync(int fd) { return fsync(fd); }
void file_touch(int fd) { futimens(fd, (struct timespec[2]){{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}}); }

/* A rename is on the disk when the folder is. Not a failure if that cannot be had: after a crash there is then the old file or none. */
static void sync_folder(const char *path) {
    char folder[FILE_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    int fd = open(folder, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

int file_replace(const char *from, const char *to) {
    if (rename(from, to)) return -1;
    sync_folder(to);
    return 0;
}

int file_remove(const char *path) { return unlink(path); }

int file_real(const char *path, char *out) {
    char *real = realpath(path, NULL);
    int fits = real && strlen(real) < FILE_PATH_BYTES;
    if (fits) memcpy(out, real, strlen(real) + 1);
    else if (real) errno = ENAMETOOLONG;
    free(real);
    return fits ? 0 : -1;
}
#endif
