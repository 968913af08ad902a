#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

// This file is built without -fsanitize=thread, also for race tests: what its fibers share is no business of the kernels.
#ifdef EMU_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
}
static void acquire(void *p) { __tsan_acquire(p); }
static void release(void *p) { __tsan_release(p); }
#else
static void acquire(void *) {}
static void release(void *) {}
#endif
#ifdef __SANITIZE_ADDRESS__
extern "C" {
void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *saved, const void **bottom, size_t *size);
void __asan_unpoison_memory_region(const volatile void *at, size_t bytes);
}
#endif

enum { THREADS = 1024, STACK = 256 << 10, MEMORY_IDS = 64, MEMORY_MAX = 32 << 10 };
enum fiber_state { READY, WAITING, DONE };

struct fiber {
    void *sp;               // or the context
    ucontext_t context;
    char *stack;
    void *race, *fake;
    emu_thread t;
    fiber_state state;
    int op, line;           // what it waits in
    int turn;               // simdgroup operations so far
};

struct simd { int waiting, op, line; emu_slot slots[2][32]; char mark; };

static struct {
    fiber fibers[THREADS];
    simd simds[THREADS / 32];
    int n, live, waiting, schedule, current;
    const emu_entry *kernel;
    uint32_t random;
    void *memory[MEMORY_IDS];
    size_t memory_bytes, sizes[MEMORY_IDS];
    char mark, begin, end, taken;
    ucontext_t home;
    void *home_sp, *home_race, *home_fake;
    const void *home_stack;
    size_t home_stack_bytes;
    char error[512];
    bool failed;
    emu_range *ranges;
} g;

static void fail(const char *what, const fiber *f) {
    if (g.failed) return;
    g.failed = true;
    snprintf(g.error, sizeof g.error, "%s: threadgroup (%u, %u, %u), thread %d: %s in line %d", g.kernel->name, f->t.group[0], f->t.group[1],
             f->t.group[2], f->t.thread, what, f->line);
}

// ---- fibers ----

#if defined(__x86_64__)
extern "C" void emu_swap(void **save, void *to);
asm(".text\n.globl emu_swap\n.type emu_swap,@function\nemu_swap:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size emu_swap,.-emu_swap\n");
#endif

static void body();

static void entry() {
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!g.home_stack) { g.home_stack = bottom; g.home_stack_bytes = size; }
#endif
    body();
}

static void prepare(fiber *f) {
#ifdef __SANITIZE_ADDRESS__
    if (f->stack) __asan_unpoison_memory_region(f->stack, STACK);       // what its last user never returned from
#endif
    if (!f->stack) f->stack = static_cast<char *>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
#if defined(__x86_64__)
    void **sp = reinterpret_cast<void **>(f->stack + STACK - 64);
    *--sp = nullptr;                                    // entry's return address: never used
    *--sp = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f->sp = sp;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = nullptr;
    makecontext(&f->context, entry, 0);
#endif
#ifdef EMU_TSAN
    f->race = __tsan_create_fiber(0);
#endif
}

// From a fiber, or from home (from = NULL), to another (to = NULL: home). gone: the fiber does not come back.
static void change(fiber *from, fiber *to, bool gone) {
    (void)gone;
    g.current = to ? int(to - g.fibers) : -1;
#ifdef EMU_TSAN
    __tsan_switch_to_fiber(to ? to->race : g.home_race, 1);         // 1: switching orders nothing
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(gone ? nullptr : from ? &from->fake : &g.home_fake, to ? to->stack : g.home_stack, to ? size_t(STACK) : g.home_stack_bytes);
#endif
#if defined(__x86_64__)
    emu_swap(from ? &from->sp : &g.home_sp, to ? to->sp : g.home_sp);
#else
    swapcontext(from ? &from->context : &g.home, to ? &to->context : &g.home);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from ? from->fake : g.home_fake, nullptr, nullptr);
#endif
}

// The next fiber that can run, or home if none can.
static fiber *choose() {
    if (g.failed) return nullptr;
    int start = g.current, step = 1;
    if (g.schedule == 1) step = -1;
    if (g.schedule > 1) {
        g.random = g.random * 1664525u + 1013904223u;
        start = int((g.random >> 8) % unsigned(g.n));
        if (g.random >> 31) step = -1;
    }
    if (start < 0) start = step > 0 ? -1 : g.n;
    for (int i = 1, at = start; i <= g.n; i++) {
        at += step;
        if (at >= g.n) at = 0;
        if (at < 0) at = g.n - 1;
        if (g.fibers[at].state == READY) return &g.fibers[at];
    }
    return nullptr;
}

static void body() {
    fiber *f = &g.fibers[g.current];
    acquire(&g.begin);
    g.kernel->run(&f->t);
    release(&g.end);
    f->state = DONE;
    g.live--;
    change(f, choose(), true);
}

static void wait_turn(fiber *f) {
    f->state = WAITING;
    fiber *next = choose();
    change(f, next, false);
}

void emu_barrier(int op, int line) {
    fiber *f = &g.fibers[g.current];
    simd *s = &g.simds[f->t.thread / 32];
    f->op = op;
    f->line = line;
    if (op == EMU_SIMD) {
        release(&s->mark);
        emu_exchange(emu_slot{}, EMU_SIMD, line);
        acquire(&s->mark);
        return;
    }
    release(&g.mark);
    if (++g.waiting == g.n) {
        g.waiting = 0;
        for (int i = 0; i < g.n; i++) {
            if (g.fibers[i].line != line) fail("meets the others' barrier at another place", &g.fibers[i]);
            g.fibers[i].state = READY;
        }
    } else {
        wait_turn(f);
    }
    if (g.failed) change(f, nullptr, true);
    acquire(&g.mark);
}

const emu_slot *emu_exchange(emu_slot mine, int op, int line) {
    fiber *f = &g.fibers[g.current];
    int lane = f->t.thread % 32;
    simd *s = &g.simds[f->t.thread / 32];
    emu_slot *slots = s->slots[f->turn++ & 1];
    slots[lane] = mine;
    f->op = op;
    f->line = line;
    if (!s->waiting) {
        s->op = op;
        s->line = line;
    }
    if (s->op != op || s->line != line) fail("meets other lanes in a different simdgroup operation", f);
    if (++s->waiting == 32) {
        s->waiting = 0;
        fiber *first = f - lane;
        for (int i = 0; i < 32; i++) first[i].state = READY;
    } else {
        wait_turn(f);
    }
    if (g.failed) change(f, nullptr, true);
    return slots;
}

int emu_lane() { return g.fibers[g.current].t.thread % 32; }

void *emu_group_memory(size_t bytes, int id) {
    if (!g.memory[id]) {
        g.memory_bytes += (bytes + 15) / 16 * 16;
        if (g.memory_bytes > MEMORY_MAX) fail("wants more than 32 KB of threadgroup memory", &g.fibers[g.current]);
        g.memory[id] = malloc(bytes);
        g.sizes[id] = bytes;
        for (size_t i = 0; i < bytes; i++) static_cast<unsigned char *>(g.memory[id])[i] = 0xff;
        release(&g.taken);
    }
    acquire(&g.taken);          // that it is there, and no more: declarations come before everything else
    return g.memory[id];
}

void emu_touch(int buffer, const void *at, size_t bytes, bool write) {
    if (!g.ranges) return;
    emu_range *r = &g.ranges[buffer];
    uintptr_t a = reinterpret_cast<uintptr_t>(at);
    uintptr_t *low = write ? &r->write_low : &r->read_low, *high = write ? &r->write_high : &r->read_high;
    if (*low == *high) {
        *low = a;
        *high = a + bytes;
    }
    if (a < *low) *low = a;
    if (a + bytes > *high) *high = a + bytes;
}

const emu_entry *emu_find(const char *name) {
    for (const emu_entry *e = emu_entries; e->name; e++)
        if (!strcmp(e->name, name)) return e;
    return nullptr;
}

static void run_group() {
    g.live = g.n;
    g.waiting = 0;
    g.memory_bytes = 0;
    memset(g.memory, 0, sizeof g.memory);
    for (int i = 0; i < g.n / 32; i++) g.simds[i].waiting = 0;
    for (int i = 0; i < g.n; i++) {
        prepare(&g.fibers[i]);
        g.fibers[i].state = READY;
        g.fibers[i].turn = 0;
        g.fibers[i].line = 0;
    }
    g.current = -1;
    while (fiber *next = choose()) {
        change(nullptr, next, false);
        if (g.live == 0) break;
        if (g.failed) break;
        for (int i = 0; i < g.n; i++)
            if (g.fibers[i].state == WAITING) {
                fail("waits for threads that have ended or wait elsewhere", &g.fibers[i]);
                break;
            }
    }
    acquire(&g.end);
    for (int i = 0; i < MEMORY_IDS; i++) free(g.memory[i]);
#ifdef EMU_TSAN
    for (int i = 0; i < g.n; i++) {
        __tsan_destroy_fiber(g.fibers[i].race);
        munmap(g.fibers[i].stack, STACK);               // a stack that is used again would look like a race
        g.fibers[i].stack = nullptr;
    }
#endif
}

const char *emu_run(const emu_entry *k, void *const *buffers, const uint32_t grid[3], int threads, int schedule, emu_range *ranges) {
    if (threads < 32 || threads > THREADS || threads % 32) return "a threadgroup must have 32 to 1024 threads, a multiple of 32";
    g.kernel = k;
    g.n = threads;
    g.schedule = schedule;
    g.random = uint32_t(schedule);
    g.failed = false;
    g.ranges = ranges;
#ifdef EMU_TSAN
    g.home_race = __tsan_get_current_fiber();
#endif
    release(&g.begin);
    for (uint32_t z = 0; z < grid[2] && !g.failed; z++)
        for (uint32_t y = 0; y < grid[1] && !g.failed; y++)
            for (uint32_t x = 0; x < grid[0] && !g.failed; x++) {
                for (int i = 0; i < threads; i++) g.fibers[i].t = emu_thread{{x, y, z}, i, buffers};
                run_group();
            }
    acquire(&g.end);
    return g.failed ? g.error : nullptr;
}

// ---- halves ----

float emu_from_half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023, bits;
    if (e == 31) bits = sign | 0x7f800000u | m << 13;
    else if (e) bits = sign | (e + 112) << 23 | m << 13;
    else {
        float v = float(m) * 0x1p-24f;
        return sign ? -v : v;
    }
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}

uint16_t emu_to_half(float f) {
    uint32_t u;
    __builtin_memcpy(&u, &f, 4);
    uint32_t sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000u) return uint16_t(sign | 0x7e00);
    if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00);
    float v;
    if (a < 0x38800000u) {                              // subnormal halves are multiples of 2^-24
        __builtin_memcpy(&v, &a, 4);
        return uint16_t(sign | uint32_t(__builtin_rintf(v * 0x1p24f)));
    }
    return uint16_t(sign | (a - 0x38000000u + 0xfff + (a >> 13 & 1)) >> 13);
}

// ---- for tests: one launch over copies of exactly the buffers' sizes ----

extern "C" int emu_launch(const char *name, void *const *buffers, const size_t *sizes, const uint32_t *grid, int threads, int schedule, char *error,
                          size_t error_bytes) {
    const emu_entry *k = emu_find(name);
    void *copies[16];
    int n = 0;
    if (!k) {
        snprintf(error, error_bytes, "there is no kernel %s", name);
        return -1;
    }
    for (const emu_param *p = k->params; p->kind != EMU_END; p++) n += p->kind != EMU_POSITION;
    for (int i = 0; i < n; i++) {
        copies[i] = malloc(sizes[i]);
        memcpy(copies[i], buffers[i], sizes[i]);
    }
    const char *wrong = emu_run(k, copies, grid, threads, schedule, nullptr);
    for (int i = 0; i < n; i++) {
        memcpy(buffers[i], copies[i], sizes[i]);
        free(copies[i]);
    }
    if (wrong) snprintf(error, error_bytes, "%s", wrong);
    return wrong ? -1 : 0;
}

extern "C" const char *emu_name(int i) { return emu_entries[i].name; }
