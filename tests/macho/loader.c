/* Maps a dylib for macOS into a process of Linux and lends its functions to it, so that the very bytes of a wheel for macOS are executed where
 * there is no Mac. Built as a shared library for Linux that exports what csrc/pyllm.h declares and, when it is loaded, looks for libpyllm.dylib
 * beside itself. darwin.c stands in for libSystem.
 *
 * What this is not: dyld, code signing, macOS's kernel and C library. The dylib's page protections are not applied to its data. */
#define _GNU_SOURCE
#include "darwin.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the file, as Apple documents it: everything is little-endian, as both machines are ---- */

enum {
    MAGIC_64 = 0xfeedfacfu, CPU_ARM64 = 0x0100000c, CPU_X86_64 = 0x01000007, TYPE_DYLIB = 6,
    CMD_SEGMENT_64 = 0x19, CMD_SYMTAB = 2, CMD_DYLD_INFO = 0x22, CMD_DYLD_INFO_ONLY = 0x80000022u, CMD_CHAINED_FIXUPS = 0x80000034u,
    SEGMENTS = 16, NAME = 256,
    N_STAB = 0xe0, N_TYPE = 0x0e, N_EXT = 1, N_SECT = 0xe
};

typedef struct { uint32_t magic, cpu, subtype, type, n_commands, commands_bytes, flags, reserved; } header;
typedef struct { uint32_t command, bytes; } command;
typedef struct {
    command c;
    char name[16];
    uint64_t address, size, offset, file_size;
    uint32_t max_protection, protection, n_sections, flags;
} segment;
typedef struct { command c; uint32_t symbols, n_symbols, strings, string_bytes; } symtab;
typedef struct { command c; uint32_t rebase, rebase_bytes, bind, bind_bytes, weak, weak_bytes, lazy, lazy_bytes, exports, exports_bytes; } dyld_info;
typedef struct { uint32_t name; uint8_t type, section; uint16_t description; uint64_t value; } symbol;

typedef struct {
    const uint8_t *file;
    size_t bytes;
    uint8_t *base;                  /* where address 0 of the dylib is */
    const segment *segments[SEGMENTS];
    int n_segments;
    symtab symbols;
    dyld_info info;
} image;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("macho loader: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    exit(70);
}

static const uint8_t *part(const image *m, uint64_t offset, uint64_t n) {
    if (offset > m->bytes || n > m->bytes - offset) fail("the file ends before byte %llu", (unsigned long long)(offset + n));
    return m->file + offset;
}

static void read_commands(image *m) {
    const header *h = (const header *)part(m, 0, sizeof *h);
#if defined(__aarch64__)
    const uint32_t cpu = CPU_ARM64;
#else
    const uint32_t cpu = CPU_X86_64;
#endif
    if (h->magic != MAGIC_64 || h->cpu != cpu || h->type != TYPE_DYLIB) fail("this is no dylib for this CPU");
    uint64_t at = sizeof *h;
    for (uint32_t i = 0; i < h->n_commands; i++) {
        const command *c = (const command *)part(m, at, sizeof *c);
        part(m, at, c->bytes);
        if (c->command == CMD_SEGMENT_64) {
            if (m->n_segments == SEGMENTS) fail("too many segments");
            m->segments[m->n_segments++] = (const segment *)c;
        } else if (c->command == CMD_SYMTAB) {
            m->symbols = *(const symtab *)c;
        } else if (c->command == CMD_DYLD_INFO || c->command == CMD_DYLD_INFO_ONLY) {
            m->info = *(const dyld_info *)c;
        } else if (c->command == CMD_CHAINED_FIXUPS) {
            fail("chained fixups: build for macOS 11 or older");
        }
        at += c->bytes;
    }
}

/* Address space for all segments, and their contents. Everything stays writable until code is made executable. */
static void map_segments(image *m) {
    uint64_t end = 0;
    for (int i = 0; i < m->n_segments; i++)
        if (m->segments[i]->address + m->segments[i]->size > end) end = m->segments[i]->address + m->segments[i]->size;
    m->base = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m->base == MAP_FAILED) fail("no memory");
    for (int i = 0; i < m->n_segments; i++)
        memcpy(m->base + m->segments[i]->address, part(m, m->segments[i]->offset, m->segments[i]->file_size), m->segments[i]->file_size);
}

static void protect_code(const image *m) {
    for (int i = 0; i < m->n_segments; i++) {
        const segment *s = m->segments[i];
        if (!(s->protection & 4)) continue;
        __builtin___clear_cache((char *)m->base + s->address, (char *)m->base + s->address + s->size);
        if (mprotect(m->base + s->address, s->size, PROT_READ | PROT_EXEC)) fail("code cannot be made executable");
    }
}

/* ---- rebase and bind opcodes ---- */

static uint64_t uleb(const uint8_t **p, const uint8_t *end) {
    uint64_t v = 0;
    for (int shift = 0; *p < end && shift < 64; shift += 7) {
        uint8_t byte = *(*p)++;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return v;
    }
    fail("a broken number among the fixups");
}

static uint64_t *pointer(const image *m, unsigned n, uint64_t offset) {
    if (n >= (unsigned)m->n_segments || offset > m->segments[n]->size - 8) fail("a fixup outside of the segments");
    return (uint64_t *)(m->base + m->segments[n]->address + offset);
}

static void rebase(const image *m) {
    const uint8_t *p = part(m, m->info.rebase, m->info.rebase_bytes), *end = p + m->info.rebase_bytes;
    unsigned at_segment = 0;
    uint64_t offset = 0;
    while (p < end) {
        uint8_t op = *p & 0xf0, small = *p & 0x0f;
        uint64_t count = 0, skip = 0;
        p++;
        switch (op) {
            case 0x00: return;
            case 0x10: continue;                                                        /* the kind: only pointers exist */
            case 0x20: at_segment = small, offset = uleb(&p, end); continue;
            case 0x30: offset += uleb(&p, end); continue;
            case 0x40: offset += small * 8; continue;
            case 0x50: count = small; break;
            case 0x60: count = uleb(&p, end); break;
            case 0x70: count = 1, skip = uleb(&p, end); break;
            case 0x80: count = uleb(&p, end), skip = uleb(&p, end); break;
            default: fail("rebase opcode %#x", op);
        }
        for (; count; count--, offset += 8 + skip) *pointer(m, at_segment, offset) += (uint64_t)m->base;
    }
}

static void bind_one(const image *m, unsigned n, uint64_t offset, const char *name, int64_t addend) {
    void *target = darwin_symbol(name);
    if (!target) fail("libSystem's %s has no stand-in here", name);
    *pointer(m, n, offset) = (uint64_t)target + (uint64_t)addend;
}

/* lazy: one binding after the other, each with a `done` behind it. */
static void bind(const image *m, uint32_t from, uint32_t bytes, int lazy) {
    const uint8_t *p = part(m, from, bytes), *end = p + bytes;
    const char *name = "";
    unsigned at_segment = 0;
    uint64_t offset = 0;
    int64_t addend = 0;
    while (p < end) {
        uint8_t op = *p & 0xf0, small = *p & 0x0f;
        uint64_t count = 1, skip = 0;
        p++;
        switch (op) {
            case 0x00: if (!lazy) return; continue;
            case 0x10: case 0x30: case 0x50: continue;                                  /* which library, the kind */
            case 0x20: uleb(&p, end); continue;
            case 0x40:
                name = (const char *)p;
                p += strnlen(name, (size_t)(end - p)) + 1;
                continue;
            case 0x60: fail("an addend in the bindings");
            case 0x70: at_segment = small, offset = uleb(&p, end); continue;
            case 0x80: offset += uleb(&p, end); continue;
            case 0x90: break;
            case 0xa0: skip = uleb(&p, end); break;
            case 0xb0: skip = small * 8; break;
            case 0xc0: count = uleb(&p, end), skip = uleb(&p, end); break;
            default: fail("bind opcode %#x", op);
        }
        for (; count; count--, offset += 8 + skip) bind_one(m, at_segment, offset, name, addend);
    }
}

/* ---- what is exported ---- */

static void *exported(const image *m, const char *wanted) {
    const symbol *s = (const symbol *)part(m, m->symbols.symbols, m->symbols.n_symbols * sizeof *s);
    const char *names = (const char *)part(m, m->symbols.strings, m->symbols.string_bytes);
    for (uint32_t i = 0; i < m->symbols.n_symbols; i++, s++)
        if (!(s->type & N_STAB) && (s->type & N_TYPE) == N_SECT && s->type & N_EXT && s->name < m->symbols.string_bytes &&
            names[s->name] == '_' && !strcmp(names + s->name + 1, wanted))
            return m->base + s->value;
    fail("the dylib has no %s", wanted);
}

/* Every function of the API jumps to where the dylib has it. api.inc, made of csrc/pyllm.h: FUNCTION(pyllm_...) lines. */
#if defined(__aarch64__)
#define JUMP(name) "adrp x16, to_" #name "\nldr x16, [x16, :lo12:to_" #name "]\nbr x16\n"
#else
#define JUMP(name) "jmp *to_" #name "(%rip)\n"
#endif
#define FUNCTION(name)                                                                                                       \
    __attribute__((visibility("hidden"))) void *to_##name;                                                                    \
    __asm__(".text\n.globl " #name "\n.type " #name ", %function\n" #name ":\n" JUMP(name) ".size " #name ", .-" #name "\n");
#include "api.inc"
#undef FUNCTION

__attribute__((constructor)) static void load(void) {
    static image m;
    Dl_info self;
    char path[4096];
    struct stat st;
    if (!dladdr(&m, &self) || !self.dli_fname) fail("this library does not know where it is");
    const char *slash = strrchr(self.dli_fname, '/');
    snprintf(path, sizeof path, "%.*slibpyllm.dylib", slash ? (int)(slash + 1 - self.dli_fname) : 0, self.dli_fname);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st)) fail("%s cannot be opened", path);
    m.bytes = (size_t)st.st_size;
    m.file = mmap(NULL, m.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (m.file == MAP_FAILED) fail("%s cannot be mapped", path);
    read_commands(&m);
    map_segments(&m);
    rebase(&m);
    bind(&m, m.info.bind, m.info.bind_bytes, 0);
    bind(&m, m.info.lazy, m.info.lazy_bytes, 1);
    protect_code(&m);
#define FUNCTION(name) to_##name = exported(&m, #name);
#include "api.inc"
#undef FUNCTION
}
