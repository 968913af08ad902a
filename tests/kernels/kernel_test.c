/* Levels, cases, guarded buffers and the main program of the kernel test (kernel_test.h). */
#define _GNU_SOURCE
#include "kernel_test.h"

#include "../../csrc/base/threads.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const kernels *levels[MAX_LEVELS];
int n_levels, repeat = 4;
const char *only_type;
run_state run;

static struct {
    const char *slot;
    char sizes[256];
    int next;                   /* run to come: 0 is ref, then two per level */
    int failed;                 /* the current run */
    int64_t cases, passed, failures;
    uint64_t checksum;          /* of all that ref computed */
} state;

/* ---- levels ----------------------------------------------------------------------------------------------------------- */

const char *slot_symbol(const kernels *k, const char *slot) {
    size_t n = strlen(slot);
    for (int i = 0; i < k->n_names; i++)
        if (!strncmp(k->names[i], slot, n) && k->names[i][n] == '=') return k->names[i] + n + 1;
    return NULL;
}

int slot_own(const kernels *k, const char *slot) {
    const char *symbol = slot_symbol(k, slot), *suffix = symbol ? strrchr(symbol, '_') : NULL;
    return suffix && !strcmp(suffix + 1, k->level);
}

static void find_levels(void) {
    char text[256], *rest = text;
    snprintf(text, sizeof text, "%s", kernels_levels());
    for (char *name; (name = strsep(&rest, " ")) && n_levels < MAX_LEVELS;) levels[n_levels++] = kernels_get(name);
    printf("levels: %s\n", kernels_levels());
    for (int l = 1; l < n_levels; l++) {
        printf("inherited by %s:", levels[l]->level);
        for (int i = 0; i < levels[l]->n_names; i++) {
            char slot[64];
            snprintf(slot, sizeof slot, "%.*s", (int)strcspn(levels[l]->names[i], "="), levels[l]->names[i]);
            if (!slot_own(levels[l], slot)) printf(" %s", levels[l]->names[i]);
        }
        puts("");
    }
}

/* ---- guarded buffers ------------------------------------------------------------------------------------------------------ */

enum { GUARDS = 64, EDGE = 256 };       /* EDGE: bytes beside the data that are poisoned and checked where there is no page border */
static struct guard {
    uint8_t *pages;             /* the accessible part, with an unreadable page on each side */
    size_t capacity;
    uint8_t *data;
    size_t n;
    const void *source;         /* of an input, else NULL */
} guards[GUARDS];
static int guards_used;
static size_t page_size, gap;           /* gap: bytes between the data and the page after it; checked for writes like the other side */

static uint8_t poison(void) { return run.upper ? 0xa5 : 0x5a; }         /* as f32: small, finite */

/* Accessible bytes beside the data that are watched. */
static size_t before(const struct guard *g) { size_t n = (size_t)(g->data - g->pages); return n < EDGE ? n : EDGE; }
static size_t after(const struct guard *g) { size_t n = (size_t)(g->pages + g->capacity - g->data) - g->n; return n < EDGE ? n : EDGE; }

static void *guard_take(size_t n, const void *source) {
    if (guards_used == GUARDS) check(0, "out of guarded buffers"), exit(2);
    struct guard *g = &guards[guards_used++];
    if (n + gap > g->capacity || !g->pages) {
        if (g->pages) munmap(g->pages - page_size, g->capacity + 2 * page_size);
        g->capacity = (n + gap + page_size) / page_size * page_size;
        uint8_t *all = mmap(NULL, g->capacity + 2 * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED || mprotect(all + page_size, g->capacity, PROT_READ | PROT_WRITE)) {
            perror("mmap");
            exit(2);
        }
        g->pages = all + page_size;
    }
    g->n = n;
    g->source = source;
    g->data = run.upper ? g->pages + g->capacity - gap - n : g->pages;
    memset(g->data - before(g), poison(), before(g));
    memset(g->data + n, poison(), after(g));
    return g->data;
}

const void *guard_in(const void *src, size_t n) { return memcpy(guard_take(n, src), src, n); }
void *guard_inout(const void *src, size_t n) { return memcpy(guard_take(n, NULL), src, n); }
void *guard_out(size_t n) { return memset(guard_take(n, NULL), poison(), n); }

static void guards_check(void) {
    for (int i = 0; i < guards_used; i++) {
        struct guard *g = &guards[i];
        check_untouched("before a buffer", g->data - before(g), (int64_t)before(g));
        check_untouched("after a buffer", g->data + g->n, (int64_t)after(g));
        if (g->source) check(!memcmp(g->data, g->source, g->n), "buffer %d is an input and was changed", i);
    }
    guards_used = 0;
}

/* A kernel touched an unreadable page, or its instructions are not those of this CPU. */
static void crashed(int signal, siginfo_t *info, void *context) {
    (void)context;
    uint8_t *at = info->si_addr;
    printf("FAIL %s %s %s: %s", state.slot, run.k->level, state.sizes, strsignal(signal));
    for (int i = 0; i < guards_used; i++)
        if (at >= guards[i].pages - page_size && at < guards[i].pages + guards[i].capacity + page_size)
            printf(", at byte %td of buffer %d, which has %zu", at - guards[i].data, i, guards[i].n);
    printf("\nthe test ends here: %lld passed, %lld failed\n", (long long)state.passed, (long long)state.failures + 1);
    fflush(stdout);
    _exit(1);
}

/* ---- cases ------------------------------------------------------------------------------------------------------------------ */

enum { KEPT = 8 };
static struct { uint8_t *p; size_t capacity; } kept[KEPT];     /* ref's outputs, in the order of the check calls */
static int checks;

void case_begin(const char *slot, const char *sizes, ...) {
    va_list args;
    va_start(args, sizes);
    vsnprintf(state.sizes, sizeof state.sizes, sizes, args);
    va_end(args);
    state.slot = slot;
    state.next = 0;
    state.cases++;
}

static void end_run(void) {
    guards_check();
    if (state.failed) state.failures++;
    else state.passed++;
}

static int start_run(void) {
    run.k = levels[(state.next + 1) / 2];
    run.upper = state.next ? state.next % 2 : (int)(state.cases & 1);
    state.next++;
    state.failed = checks = 0;
    return 1;
}

int run_next(void) {
    if (state.next) end_run();
    while (state.next > 0 && state.next <= 2 * (n_levels - 1) && !slot_own(levels[(state.next + 1) / 2], state.slot)) state.next += 2;
    return state.next <= 2 * (n_levels - 1) && start_run();
}

int run_ref(void) {
    if (!state.next) return start_run();
    end_run();
    return 0;
}

void check(int ok, const char *what, ...) {
    if (ok || state.failed++) return;           /* the first finding of a run is enough */
    if (state.failures > 100) return;
    va_list args;
    va_start(args, what);
    printf("FAIL %s %s %s, against the %s page: ", state.slot, run.k->level, state.sizes, run.upper ? "upper" : "lower");
    vprintf(what, args);
    puts(state.failures == 100 ? "\n(further failures are counted, not printed)" : "");
    va_end(args);
}

/* ref's output of this check: kept now, or as it was kept. */
static const void *reference(const void *p, int64_t n) {
    int i = checks++;
    if (i == KEPT) fputs("too many outputs in a run\n", stderr), exit(2);
    if (run.k != levels[0]) return kept[i].p;
    if ((size_t)n > kept[i].capacity) kept[i].p = realloc(kept[i].p, kept[i].capacity = (size_t)n);
    return memcpy(kept[i].p, p, (size_t)n);
}

static void add_checksum(uint64_t value) {      /* FNV-1a, a value at a time */
    if (run.k == levels[0]) state.checksum = (state.checksum ^ value) * 0x100000001b3u;
}

void check_bytes(const char *name, const void *p, int64_t n) {
    const uint8_t *a = p, *b = reference(p, n);
    int64_t i = 0;
    while (i < n && a[i] == b[i]) add_checksum(a[i++]);
    check(i == n, "byte %lld of %s is %02x, ref %02x", (long long)i, name, i < n ? a[i] : 0, i < n ? b[i] : 0);
}

static int is_nan(uint32_t u) { return (u & 0x7fffffffu) > 0x7f800000u; }

void check_floats(const char *name, const float *p, int64_t n) {
    const uint8_t *b = reference(p, n * 4);
    for (int64_t i = 0; i < n; i++) {
        uint32_t x = f32_bits(p[i]), y = load_u32(b + 4 * i);
        add_checksum(is_nan(x) ? 0x7fc00000u : x);
        check(x == y || (is_nan(x) && is_nan(y)), "%s[%lld] is %a (%08x), ref %a (%08x)", name, (long long)i, f32_from_bits(x), x,
              f32_from_bits(y), y);
    }
}

void check_untouched(const char *name, const void *p, int64_t n) {
    const uint8_t *b = p;
    int64_t i = 0;
    while (i < n && b[i] == poison()) i++;
    check(i == n, "%s: byte %lld of %lld was written", name, (long long)i, (long long)n);
}

/* ---- random inputs ------------------------------------------------------------------------------------------------------------ */

static uint64_t rnd_state;

/* splitmix64 (Steele, Lea, Flood 2014). */
uint64_t rnd(void) {
    uint64_t z = rnd_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
int rnd_below(int n) { return (int)((rnd() >> 32) * (uint64_t)n >> 32); }
float rnd_any_bits(void) { return f32_from_bits((uint32_t)rnd()); }
float rnd_float(float scale) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)(int32_t)rnd() * 0x1p-31f;
    return sum * 0.866f * scale;            /* variance of the sum: 4/3 */
}

void *scratch(int which, size_t n) {
    static struct { void *p; size_t n; } blocks[16];
    if (n > blocks[which].n) blocks[which].p = realloc(blocks[which].p, blocks[which].n = n);
    return blocks[which].p;
}

const char *const fill_names[FILLS] = {"normal", "huge", "tiny", "extreme", "one NaN", "one inf", "any bits"};

void fill_floats(float *p, int64_t n, int fill) {
    static const uint32_t extreme[] = {0, 0x80000000u, 1, 0x80000001u, 0x007fffffu, 0x00800000u, 0x0da24260u /* 1e-30 */, 0x0da2425fu,
                                       0x7f7fffffu, 0xff7fffffu, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00001u, 0x7f800001u};
    for (int64_t i = 0; i < n; i++) {
        float v = rnd_float(1);
        switch (fill) {
            case FILL_HUGE: v *= 1e35f; break;
            case FILL_TINY: v *= 1e-38f; break;
            case FILL_EXTREME: v = rnd_below(3) ? v : f32_from_bits(extreme[rnd_below(sizeof extreme / sizeof *extreme)]); break;
            case FILL_ANY_BITS: v = rnd_any_bits(); break;
            default: break;
        }
        p[i] = v;
    }
    float *one = p + rnd_below((int)n);
    if (fill == FILL_ONE_NAN) *one = f32_from_bits(0xffc01234u);
    if (fill == FILL_ONE_INF) *one = f32_from_bits(rnd_below(2) ? 0x7f800000u : 0xff800000u);
}

/* ---- main ------------------------------------------------------------------------------------------------------------------------ */

static int usage(void) {
    puts("usage: kernel_test [--seed N] [--repeat N] [--gap BYTES (a multiple of 64)] [--type NAME] [--bench]");
    return 2;
}

int main(int argc, char **argv) {
    int benching = 0;
    rnd_state = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench")) benching = 1;
        else if (!strcmp(argv[i], "--seed") && i + 1 < argc) rnd_state = strtoull(argv[++i], NULL, 0);
        else if (!strcmp(argv[i], "--repeat") && i + 1 < argc) repeat = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--type") && i + 1 < argc) only_type = argv[++i];
        else if (!strcmp(argv[i], "--gap") && i + 1 < argc) gap = (size_t)atoi(argv[++i]) / 64 * 64;
        else return usage();
    }
    page_size = (size_t)sysconf(_SC_PAGESIZE);
    setvbuf(stdout, NULL, _IOLBF, 0);
    fpenv_enter();
    find_levels();
    if (benching) {
        bench();
        return 0;
    }
    printf("seed %llu, repeat %d\n", (unsigned long long)rnd_state, repeat);
    struct sigaction action = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO};
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (int i = 0; i < 4; i++) sigaction(signals[i], &action, NULL);
    static const struct { const char *name; void (*run)(void); } tests[] = {
        {"quantize_act", test_quantize_act}, {"dot_peak", test_dot_peak}, {"matmul", test_matmul}, {"vectors", test_vectors}, {"scans", test_scans}, {"kv_store", test_kv_store},
        {"attention", test_attention}, {"encoders", test_encoders}, {"matmul in double", test_matmul_exact}, {"vectors in double", test_vectors_exact},
        {"scans in double", test_scans_exact}, {"attention in double", test_attention_exact}};
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (only_type && strncmp(tests[i].name, "matmul", 6)) continue;
        int64_t before = state.passed + state.failures;
        tests[i].run();
        printf("%-20s %8lld runs\n", tests[i].name, (long long)(state.passed + state.failures - before));
    }
    printf("checksum of the reference's results: %016llx\n", (unsigned long long)state.checksum);
    printf("%lld passed, %lld failed\n", (long long)state.passed, (long long)state.failures);
    return state.failures != 0;
}
