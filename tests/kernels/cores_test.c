/* base/cores.c over a made-up machine: files are opened below argv[1], argv[2] is the affinity mask (bits, hexadecimal).
 * Prints "default allowed". tests/unit/test_threads.py makes the trees. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

static const char *root;
static unsigned long long mask;

static int open_below(const char *path, int flags) {
    char full[4096];
    snprintf(full, sizeof full, "%s%s", root, path);
    return open(full, flags);
}

static int made_up_affinity(int pid, size_t n, cpu_set_t *set) {
    for (size_t c = 0; c < 64 && c < 8 * n; c++)
        if (mask >> c & 1) CPU_SET(c, set);
    return pid;
}

#define open open_below
#define sched_getaffinity made_up_affinity
#include "../../csrc/base/cores.c"

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    root = argv[1];
    mask = strtoull(argv[2], NULL, 16);
    printf("%d %d\n", threads_default(), threads_allowed());
    return 0;
}
