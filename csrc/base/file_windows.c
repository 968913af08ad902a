#ifdef _WIN32
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <io.h>
#include <string.h>
#include <sys/stat.h>
#include <windows.h>

typedef struct wide { wchar_t text[FILE_PATH_BYTES]; } wide;

static int widen(const char *path, wide *out) {
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, out->text, FILE_PATH_BYTES)) return 0;
    errno = EINVAL;
    return -1;
}

/* errno of the last call's failure, as far as messages need it. */
static int failed(void) {
    switch (GetLastError()) {
    case ERROR_ACCESS_DENIED: case ERROR_SHARING_VIOLATION: case ERROR_LOCK_VIOLATION: errno = EACCES; break;
    case ERROR_FILE_NOT_FOUND: case ERROR_PATH_NOT_FOUND: errno = ENOENT; break;
    case ERROR_DISK_FULL: case ERROR_HANDLE_DISK_FULL: errno = ENOSPC; break;
    default: errno = EIO;
    }
    return -1;
}

static HANDLE handle(int fd) { return (HANDLE)_get_osfhandle(fd); }

/* Others may replace or delete the file meanwhile, as elsewhere. */
static int open_with(const char *path, DWORD access, DWORD share, DWORD how, int flags) {
    wide w;
    if (widen(path, &w)) return -1;
    HANDLE h = CreateFileW(w.text, access, share, NULL, how, FILE_ATTRIBUTE_NORMAL | FILE_FLAG_BACKUP_SEMANTICS, NULL);
    if (h == INVALID_HANDLE_VALUE) return failed();
    int fd = _open_osfhandle((intptr_t)h, flags | _O_BINARY | _O_NOINHERIT);
    if (fd < 0) CloseHandle(h);
    return fd;
}

int file_open(const char *path) { return open_with(path, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, OPEN_EXISTING, _O_RDONLY); }
int file_create(const char *path) {
    return open_with(path, GENERIC_READ | GENERIC_WRITE | DELETE, FILE_SHARE_READ | FILE_SHARE_DELETE, CREATE_NEW, _O_RDWR);
}
int file_dup(int fd) {
    int other = _dup(fd);
    if (other >= 0) SetHandleInformation(handle(other), HANDLE_FLAG_INHERIT, 0);
    return other;
}
void file_close(int fd) { _close(fd); }

/* Windows counts 100 ns since 1601. */
static struct timespec time_of(LARGE_INTEGER t) {
    return (struct timespec){(time_t)(t.QuadPart / 10000000 - 11644473600), (long)(t.QuadPart % 10000000 * 100)};
}

int file_stat(int fd, file_info *out) {
    FILE_BASIC_INFO times;
    FILE_STANDARD_INFO sizes;
    HANDLE h = handle(fd);
    if (GetFileType(h) != FILE_TYPE_DISK) {
        *out = (file_info){0};
        return 0;
    }
    if (!GetFileInformationByHandleEx(h, FileBasicInfo, &times, sizeof times) || !GetFileInformationByHandleEx(h, FileStandardInfo, &sizes, sizeof sizes))
        return failed();
    *out = (file_info){sizes.EndOfFile.QuadPart, time_of(times.LastWriteTime), time_of(times.ChangeTime), !sizes.Directory, sizes.Directory};
    return 0;
}

static OVERLAPPED place(int64_t at) { return (OVERLAPPED){.Offset = (DWORD)at, .OffsetHigh = (DWORD)(at >> 32)}; }

int64_t file_read(int fd, void *dst, size_t n, int64_t at) {
    DWORD got = 0;
    OVERLAPPED o = place(at);
    if (ReadFile(handle(fd), dst, n < (1u << 30) ? (DWORD)n : 1u << 30, &got, &o)) return got;
    return GetLastError() == ERROR_HANDLE_EOF ? 0 : failed();
}

int64_t file_write(int fd, const void *src, size_t n, int64_t at) {
    DWORD put = 0;
    OVERLAPPED o = place(at);
    return WriteFile(handle(fd), src, n < (1u << 30) ? (DWORD)n : 1u << 30, &put, &o) ? put : failed();
}

int file_sync(int fd) { return FlushFileBuffers(handle(fd)) ? 0 : failed(); }

void file_touch(int fd) {
    FILETIME now;
    GetSystemTimeAsFileTime(&now);
    SetFileTime(handle(fd), NULL, &now, NULL);
}

int file_replace(const char *from, const char *to) {
    wide a, b;
    if (widen(from, &a) || widen(to, &b)) return -1;
    return MoveFileExW(a.text, b.text, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) ? 0 : failed();
}

int file_remove(const char *path) {
    wide w;
    return widen(path, &w) ? -1 : DeleteFileW(w.text) ? 0 : failed();
}

int file_real(const char *path, char *out) {
    wide w, full;
    if (widen(path, &w)) return -1;
    DWORD n = GetFullPathNameW(w.text, FILE_PATH_BYTES, full.text, NULL);
    if (n && n < FILE_PATH_BYTES && WideCharToMultiByte(CP_UTF8, 0, full.text, -1, out, FILE_PATH_BYTES, NULL, NULL)) return 0;
    errno = ENAMETOOLONG;
    return -1;
}
#endif
