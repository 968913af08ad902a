/* How many threads pay: physical performance cores that the affinity mask and the cgroup quota allow. Linux: /proc and /sys. */
#define _GNU_SOURCE
#include "threads.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int read_text(const char *path, char *buf, size_t n) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t got = read(fd, buf, n - 1);
    close(fd);
    if (got < 0) return -1;
    buf[got] = 0;
    return 0;
}

static int64_t to_int(const char *s, const char **end) {
    int64_t v = 0;
    while (*s >= '0' && *s <= '9' && v < (1LL << 40)) v = v * 10 + (*s++ - '0');
    if (end) *end = s;
    return v;
}

static int64_t cpu_number(int cpu, const char *what) {
    char path[128], text[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", cpu, what);
    return read_text(path, text, sizeof text) ? -1 : to_int(text, NULL);
}

/* CPUs that the cgroup's bandwidth quota pays for, rounded up; 0 = no quota. */
static int quota(void) {
    char text[128];
    const char *rest;
    if (!read_text("/sys/fs/cgroup/cpu.max", text, sizeof text) && text[0] >= '0' && text[0] <= '9') {
        int64_t q = to_int(text, &rest), period = *rest == ' ' ? to_int(rest + 1, NULL) : 0;
        return period > 0 ? (int)((q + period - 1) / period) : 0;
    }
    if (!read_text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", text, sizeof text) && text[0] >= '0' && text[0] <= '9') {
        int64_t q = to_int(text, NULL), period = 100000;
        if (!read_text("/sys/fs/cgroup/cpu/cpu.cfs_period_us", text, sizeof text)) period = to_int(text, NULL);
        return period > 0 ? (int)((q + period - 1) / period) : 0;
    }
    return 0;
}

int threads_default(void) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return 1;
    int64_t best = 0;
    for (int c = 0; c < CPU_SETSIZE; c++) {
        if (!CPU_ISSET(c, &allowed)) continue;
        int64_t capacity = cpu_number(c, "cpu_capacity");
        if (capacity > best) best = capacity;
    }
    int n = 0;
    for (int c = 0; c < CPU_SETSIZE; c++) {
        if (!CPU_ISSET(c, &allowed)) continue;
        int64_t capacity = cpu_number(c, "cpu_capacity"), first = cpu_number(c, "topology/thread_siblings_list");
        if (best > 0 && capacity * 5 < best * 4) continue;                  /* an efficiency core */
        if (first >= 0 && first != c && CPU_ISSET((int)first, &allowed)) continue;   /* second thread of a counted core */
        n++;
    }
    int paid = quota();
    if (paid && paid < n) n = paid;
    return n < 1 ? 1 : n;
}
