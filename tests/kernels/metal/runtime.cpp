// Apple's side for csrc/kernels/metal/device.c: Objective-C's run time and the classes of Metal that it uses, over the emulator. To be preloaded. It
// answers what it knows how to, and checks what Metal's own validation layer would: every message, bindings, sizes, offsets, grids, object
// lifetimes; in builds with EMU_TRACE also where every kernel reads and writes, and that commands which may run at the same time do not touch the
// same memory. What is wrong ends the command buffer with an error that says it.
//
// Environment: FAKE_METAL_SCHEDULE (emulator.h; also in which order commands without a barrier between them run), FAKE_METAL_MAX_BUFFER (bytes),
// FAKE_METAL_PAGE (bytes that memory must be a multiple of to be used in place), FAKE_METAL_FAMILY (newest GPU family), FAKE_METAL_NONE (no GPU),
// FAKE_METAL_DROP_BARRIERS (does not see them: what a host would look like that forgot them).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>

#include "emulator.h"

typedef unsigned long uinteger;
struct size3 { uinteger width, height, depth; };
typedef const char *selector;

static std::map<std::string, long> counters;
static long setting(const char *name, long otherwise) {
    const char *v = getenv(name);
    return v ? strtol(v, nullptr, 10) : otherwise;
}

// ---- objects ----

struct object {
    const char *type;
    int references = 1;
    explicit object(const char *t) : type(t) { counters["live"]++; }
    virtual ~object() { counters["live"]--; }
};

struct text : object {
    std::string s;
    explicit text(const std::string &v) : object("NSString"), s(v) {}
};
struct failure : object {
    std::string s;
    explicit failure(const std::string &v) : object("NSError"), s(v) {}
};
struct options : object {
    bool fast = true;
    long version = 0;
    options() : object("MTLCompileOptions") {}
};
struct class_object : object {
    std::string name;
    explicit class_object(const std::string &n) : object("class"), name(n) { counters["live"]--; }      // never goes
};
struct device : object { device() : object("MTLDevice") {} };
struct queue : object { queue() : object("MTLCommandQueue") {} };
struct library : object { library() : object("MTLLibrary") {} };
struct function : object {
    const emu_entry *k;
    explicit function(const emu_entry *e) : object("MTLFunction"), k(e) {}
};
struct pipeline : object {
    const emu_entry *k;
    explicit pipeline(const emu_entry *e) : object("MTLComputePipelineState"), k(e) {}
};
struct buffer : object {
    char *p;
    size_t n;
    bool copied;
    buffer(char *q, size_t bytes, bool c) : object("MTLBuffer"), p(q), n(bytes), copied(c) {}
    ~buffer() override {
        if (copied) free(p);
    }
};

struct command {
    const emu_entry *k;
    size3 grid, threads;
    std::string arguments;
    struct { buffer *b; size_t offset; } bound[32];
};
struct command_buffer;
struct encoder : object {
    command_buffer *to;
    const emu_entry *k = nullptr;
    command now = {};
    explicit encoder(command_buffer *t) : object("MTLComputeCommandEncoder"), to(t) {}
};
struct command_buffer : object {
    std::vector<std::vector<command>> parts = {{}};        // what stands between barriers
    bool encoding = false, committed = false;
    std::string error;
    command_buffer() : object("MTLCommandBuffer") {}
    void wrong(const std::string &what) {
        if (error.empty()) error = what;
    }
};

static int32_t *flag;           // set to 1 after so many command buffers
static long flag_after;
static std::vector<std::vector<object *>> pools;
static std::vector<std::string> complaints;             // where there is no command buffer to say it

static object *autoreleased(object *o) {
    if (pools.empty()) complaints.push_back(std::string(o->type) + " without an autorelease pool");
    else pools.back().push_back(o);
    return o;
}
static void release(object *o) {
    if (--o->references == 0) delete o;
}

// ---- running a command buffer ----

static std::string at(const command &c, const emu_param *p, size_t i) {
    (void)p;
    return std::string(c.k->name) + ", buffer " + std::to_string(i);
}

// What is wrong with a command before it runs.
static std::string check(const command &c) {
    size_t i = 0;
    if (!c.grid.width || !c.grid.height || !c.grid.depth) return std::string(c.k->name) + ": an empty grid";
    if (c.threads.width > 1024 || c.threads.width % 32 || c.threads.height != 1 || c.threads.depth != 1) return std::string(c.k->name) + ": bad threads";
    for (const emu_param *p = c.k->params; p->kind != EMU_END; p++) {
        if (p->kind == EMU_POSITION) continue;
        if (p->kind == EMU_ARGUMENTS) {
            if (c.arguments.size() != p->bytes)
                return at(c, p, i) + ": " + std::to_string(c.arguments.size()) + " bytes of arguments, not " + std::to_string(p->bytes);
        } else if (!c.bound[i].b) {
            return at(c, p, i) + ": not bound";
        } else if (c.bound[i].offset >= c.bound[i].b->n || c.bound[i].offset % 4) {
            return at(c, p, i) + ": offset " + std::to_string(c.bound[i].offset) + " of " + std::to_string(c.bound[i].b->n);
        }
        i++;
    }
    for (; i < 32; i++)
        if (c.bound[i].b) return std::string(c.k->name) + ": buffer " + std::to_string(i) + " is bound, but no parameter";
    return "";
}

struct touched { const char *name; emu_range r; };

// What is wrong with where a command read and wrote: outside of its buffers, or where one of `others`, which may run at the same time, did.
static std::string check_ranges(const command &c, const emu_range *r, std::vector<touched> &others, size_t n_before) {
    for (size_t i = 0; i < 32; i++) {
        if (!c.bound[i].b) continue;
        uintptr_t low = uintptr_t(c.bound[i].b->p) + c.bound[i].offset, high = uintptr_t(c.bound[i].b->p) + c.bound[i].b->n;
        bool reads = r[i].read_low != r[i].read_high, writes = r[i].write_low != r[i].write_high;
        if ((reads && (r[i].read_low < low || r[i].read_high > high)) || (writes && (r[i].write_low < low || r[i].write_high > high)))
            return at(c, nullptr, i) + ": access outside of the buffer";
        for (size_t k = 0; k < n_before; k++) {
            const emu_range &o = others[k].r;
            bool clash = (writes && o.write_low < r[i].write_high && r[i].write_low < o.write_high) ||
                         (writes && o.read_low < r[i].write_high && r[i].write_low < o.read_high) ||
                         (reads && o.write_low < r[i].read_high && r[i].read_low < o.write_high);
            if (clash) return at(c, nullptr, i) + ": may run at the same time as " + others[k].name + ", one writes what the other touches";
        }
        if (reads || writes) others.push_back({c.k->name, r[i]});
    }
    return "";
}

static std::string run(const std::vector<command> &part, int schedule) {
    std::vector<touched> others;
    std::vector<size_t> order(part.size());
    uint32_t random = uint32_t(schedule);
    for (size_t i = 0; i < part.size(); i++) order[i] = schedule == 1 ? part.size() - 1 - i : i;
    for (size_t i = part.size(); schedule > 1 && i > 1; i--) {
        random = random * 1664525u + 1013904223u;
        std::swap(order[i - 1], order[(random >> 8) % i]);
    }
    for (size_t i : order) {
        const command &c = part[i];
        void *buffers[32];
        emu_range ranges[32] = {};
        std::string bytes = c.arguments, wrong = check(c);
        if (!wrong.empty()) return wrong;
        for (size_t b = 0; b < 32; b++) buffers[b] = b ? c.bound[b].b ? c.bound[b].b->p + c.bound[b].offset : nullptr : bytes.data();
        uint32_t grid[3] = {uint32_t(c.grid.width), uint32_t(c.grid.height), uint32_t(c.grid.depth)};
        const char *failed = emu_run(c.k, buffers, grid, int(c.threads.width), schedule, ranges);
        if (failed) return failed;
        wrong = check_ranges(c, ranges, others, others.size());
        if (!wrong.empty()) return wrong;
        counters["dispatches"]++;
        counters[std::string("kernel ") + c.k->name]++;
    }
    return "";
}

// ---- methods ----

static long zero(object *) { return 0; }

static object *m_retain(object *o, selector) { o->references++; return o; }
static void m_release(object *o, selector) { release(o); }
static object *class_string(object *, selector, const char *s) { return autoreleased(new text(s)); }
static object *class_new(object *o, selector) {
    if (static_cast<class_object *>(o)->name == "MTLCompileOptions") return new options;
    complaints.push_back("new of " + static_cast<class_object *>(o)->name);
    return nullptr;
}
static const char *string_utf8(text *t, selector) { return t->s.c_str(); }
static object *error_description(failure *f, selector) { return autoreleased(new text(f->s)); }
static void options_fast(options *o, selector, signed char yes) { o->fast = yes; }
static void options_version(options *o, selector, uinteger v) { o->version = long(v); }
static object *device_name(device *, selector) { return autoreleased(new text("Emulator")); }
static signed char device_family(device *, selector, long family) { return family <= setting("FAKE_METAL_FAMILY", 1007); }
static uinteger device_max(device *, selector) { return uinteger(setting("FAKE_METAL_MAX_BUFFER", 1L << 32)); }
static object *device_queue(device *, selector) { return new queue; }

std::string sha256(const std::string &s);

static object *device_library(device *, selector, text *source, options *o, object **error) {
    std::string wrong;
    if (!o || o->fast || o->version != (2L << 16 | 3)) wrong = "fast math, or not language version 2.3";
    else if (sha256(source->s) != emu_source_hash) wrong = "the emulator was built from other source";
    if (wrong.empty()) return new library;
    *error = autoreleased(new failure(wrong));
    return nullptr;
}
static object *library_function(library *, selector, text *name) {
    const emu_entry *k = emu_find(name->s.c_str());
    return k ? new function(k) : nullptr;
}
static object *device_pipeline(device *, selector, function *f, object **error) {
    (void)error;
    counters["pipelines"]++;
    return new pipeline(f->k);
}
static uinteger pipeline_threads(pipeline *, selector) { return 1024; }
static uinteger pipeline_width(pipeline *, selector) { return 32; }

static object *device_in_place(device *, selector, void *p, uinteger n, uinteger, object *deallocator) {
    uinteger page = uinteger(setting("FAKE_METAL_PAGE", sysconf(_SC_PAGESIZE)));
    if (uintptr_t(p) % page || n % page || !n || n > device_max(nullptr, nullptr) || deallocator) return nullptr;
    counters["in place"]++;
    return new buffer(static_cast<char *>(p), n, false);
}
static object *device_copy(device *, selector, const void *p, uinteger n, uinteger) {
    if (!n || n > device_max(nullptr, nullptr)) return nullptr;
    char *copy = static_cast<char *>(malloc(n));
    memcpy(copy, p, n);
    counters["copied"]++;
    return new buffer(copy, n, true);
}

static object *queue_buffer(queue *, selector) { return autoreleased(new command_buffer); }
static object *buffer_encoder(command_buffer *b, selector, uinteger type) {
    if (b->encoding || b->committed || type != 1) b->wrong("a second encoder, or not a concurrent one");
    b->encoding = true;
    return autoreleased(new encoder(b));
}
static void buffer_commit(command_buffer *b, selector) {
    if (b->encoding || b->committed) b->wrong("committed twice, or while an encoder is open");
    b->committed = true;
    int schedule = int(setting("FAKE_METAL_SCHEDULE", 0));
    for (const auto &part : b->parts)
        if (b->error.empty()) b->wrong(run(part, schedule));
    if (++counters["command buffers"] == flag_after) __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}
static void buffer_wait(command_buffer *b, selector) {
    if (!b->committed) b->wrong("waited for before it is committed");
}
static uinteger buffer_status(command_buffer *b, selector) { return b->error.empty() ? 4 : 5; }
static object *buffer_error(command_buffer *b, selector) { return autoreleased(new failure(b->error)); }

static void encoder_pipeline(encoder *e, selector, pipeline *p) {
    e->k = p->k;
    e->now = {};            // stricter than Metal, where bindings stay: every command says all of its own
}
static void encoder_buffer(encoder *e, selector, buffer *b, uinteger offset, uinteger index) {
    if (index < 1 || index > 31) e->to->wrong("buffer index " + std::to_string(index));
    else e->now.bound[index] = {b, offset};
}
static void encoder_bytes(encoder *e, selector, const void *p, uinteger n, uinteger index) {
    if (index != 0 || n > 4096) e->to->wrong("bytes at index " + std::to_string(index));
    e->now.arguments.assign(static_cast<const char *>(p), n);
}
static void encoder_dispatch(encoder *e, selector, size3 grid, size3 threads) {
    if (!e->k) return e->to->wrong("a dispatch without a pipeline");
    command c = e->now;
    c.k = e->k;
    c.grid = grid;
    c.threads = threads;
    e->to->parts.back().push_back(c);
}
static void encoder_barrier(encoder *e, selector, uinteger scope) {
    if (scope != 1) e->to->wrong("a barrier that is not for buffers");
    if (setting("FAKE_METAL_DROP_BARRIERS", 0)) return;
    if (!e->to->parts.back().empty()) e->to->parts.emplace_back();
    counters["barriers"]++;
}
static void encoder_end(encoder *e, selector) { e->to->encoding = false; }

#define METHOD(type, name, fn) {{type, name}, reinterpret_cast<void *>(fn)}
static const std::map<std::pair<std::string, std::string>, void *> methods = {
    METHOD("class", "stringWithUTF8String:", class_string), METHOD("class", "new", class_new),
    METHOD("NSString", "UTF8String", string_utf8), METHOD("NSError", "localizedDescription", error_description),
    METHOD("MTLCompileOptions", "setFastMathEnabled:", options_fast), METHOD("MTLCompileOptions", "setLanguageVersion:", options_version),
    METHOD("MTLDevice", "name", device_name), METHOD("MTLDevice", "supportsFamily:", device_family),
    METHOD("MTLDevice", "maxBufferLength", device_max), METHOD("MTLDevice", "newCommandQueue", device_queue),
    METHOD("MTLDevice", "newLibraryWithSource:options:error:", device_library),
    METHOD("MTLLibrary", "newFunctionWithName:", library_function),
    METHOD("MTLDevice", "newComputePipelineStateWithFunction:error:", device_pipeline),
    METHOD("MTLComputePipelineState", "maxTotalThreadsPerThreadgroup", pipeline_threads),
    METHOD("MTLComputePipelineState", "threadExecutionWidth", pipeline_width),
    METHOD("MTLDevice", "newBufferWithBytesNoCopy:length:options:deallocator:", device_in_place),
    METHOD("MTLDevice", "newBufferWithBytes:length:options:", device_copy),
    METHOD("MTLCommandQueue", "commandBuffer", queue_buffer),
    METHOD("MTLCommandBuffer", "computeCommandEncoderWithDispatchType:", buffer_encoder),
    METHOD("MTLCommandBuffer", "commit", buffer_commit), METHOD("MTLCommandBuffer", "waitUntilCompleted", buffer_wait),
    METHOD("MTLCommandBuffer", "status", buffer_status), METHOD("MTLCommandBuffer", "error", buffer_error),
    METHOD("MTLComputeCommandEncoder", "setComputePipelineState:", encoder_pipeline),
    METHOD("MTLComputeCommandEncoder", "setBuffer:offset:atIndex:", encoder_buffer),
    METHOD("MTLComputeCommandEncoder", "setBytes:length:atIndex:", encoder_bytes),
    METHOD("MTLComputeCommandEncoder", "dispatchThreadgroups:threadsPerThreadgroup:", encoder_dispatch),
    METHOD("MTLComputeCommandEncoder", "memoryBarrierWithScope:", encoder_barrier),
    METHOD("MTLComputeCommandEncoder", "endEncoding", encoder_end),
};

extern "C" {
void *fake_method(object *to, selector name) {
    if (!to) return reinterpret_cast<void *>(zero);
    if (!strcmp(name, "release")) return reinterpret_cast<void *>(m_release);
    if (!strcmp(name, "retain")) return reinterpret_cast<void *>(m_retain);
    auto found = methods.find({to->type, name});
    if (found != methods.end()) return found->second;
    fprintf(stderr, "%s does not know %s\n", to->type, name);
    abort();
}

#if defined(__x86_64__)
void objc_msgSend(void);
asm(".text\n.globl objc_msgSend\n.type objc_msgSend,@function\nobjc_msgSend:\n"
    "push %rbp\nmov %rsp, %rbp\npush %rdi\npush %rsi\npush %rdx\npush %rcx\npush %r8\npush %r9\n"
    "call fake_method@PLT\nmov %rax, %r11\n"
    "pop %r9\npop %r8\npop %rcx\npop %rdx\npop %rsi\npop %rdi\npop %rbp\njmp *%r11\n.size objc_msgSend,.-objc_msgSend\n");
#else
#error "objc_msgSend is written for x86-64 only"
#endif

object *objc_getClass(const char *name) {
    static std::map<std::string, class_object *> classes;
    if (!classes.count(name)) classes[name] = new class_object(name);
    return classes[name];
}
selector sel_registerName(const char *name) {
    static std::map<std::string, int> names;
    return names.insert({name, 0}).first->first.c_str();
}
void *objc_autoreleasePoolPush(void) {
    pools.emplace_back();
    return reinterpret_cast<void *>(pools.size());
}
void objc_autoreleasePoolPop(void *pool) {
    while (pools.size() >= reinterpret_cast<size_t>(pool)) {
        for (object *o : pools.back()) release(o);
        pools.pop_back();
    }
}
object *MTLCreateSystemDefaultDevice(void) { return setting("FAKE_METAL_NONE", 0) ? nullptr : new device; }

long fake_counter(const char *name) { return counters[name]; }
void fake_set_after(long command_buffers, int32_t *where) {
    flag = where;
    flag_after = counters["command buffers"] + command_buffers;
}
int fake_complaints(void) { return int(complaints.size()); }
}

// ---- SHA-256 (FIPS 180-4) ----

std::string sha256(const std::string &s) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
        0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
        0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
        0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
        0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::string m = s + '\x80';
    while (m.size() % 64 != 56) m += '\0';
    for (int i = 7; i >= 0; i--) m += char(uint64_t(s.size()) * 8 >> 8 * i);
    auto turn = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
    for (size_t at = 0; at < m.size(); at += 64) {
        uint32_t w[64], v[8];
        for (int i = 0; i < 16; i++) {
            w[i] = 0;
            for (int b = 0; b < 4; b++) w[i] = w[i] << 8 | uint8_t(m[at + size_t(4 * i + b)]);
        }
        for (int i = 16; i < 64; i++)
            w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
                   (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
        memcpy(v, h, sizeof v);
        for (int i = 0; i < 64; i++) {
            uint32_t a = v[7] + (turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
            uint32_t b = (turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
            for (int j = 7; j > 0; j--) v[j] = v[j - 1];
            v[4] += a;
            v[0] = a + b;
        }
        for (int i = 0; i < 8; i++) h[i] += v[i];
    }
    char out[65];
    for (int i = 0; i < 8; i++) snprintf(out + 8 * i, 9, "%08x", h[i]);
    return out;
}
