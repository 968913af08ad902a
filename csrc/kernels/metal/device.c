#include "device.h"

#include "../../base/alloc.h"

#include <string.h>
#if defined(__APPLE__)
#include <dlfcn.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

/* ---- Objective-C's run time -------------------------------------------------------------------------------------- */

typedef void *object;
typedef const void *selector;
typedef unsigned long uinteger;                         /* NSUInteger */
typedef struct size3 { uinteger width, height, depth; } size3;  /* MTLSize */

typedef struct runtime {
    object (*get_class)(const char *name);
    selector (*selector)(const char *name);
    void (*send)(void);                                 /* objc_msgSend: called as a function of the method's own type */
    void *(*pool_push)(void);
    void (*pool_pop)(void *pool);
    object (*default_device)(void);
} runtime;

#if defined(__APPLE__)
static int find_runtime(runtime *r) {
    static const char *const libraries[] = {"/usr/lib/libobjc.A.dylib", "/System/Library/Frameworks/Foundation.framework/Foundation",
                                            "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics",   /* without it there is no default GPU */
                                            "/System/Library/Frameworks/Metal.framework/Metal"};
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++)
        if (!dlopen(libraries[i], RTLD_LAZY | RTLD_GLOBAL)) return 0;
    struct { void **at; const char *name; } found[] = {
        {(void **)&r->get_class, "objc_getClass"}, {(void **)&r->selector, "sel_registerName"}, {(void **)&r->send, "objc_msgSend"},
        {(void **)&r->pool_push, "objc_autoreleasePoolPush"}, {(void **)&r->pool_pop, "objc_autoreleasePoolPop"},
        {(void **)&r->default_device, "MTLCreateSystemDefaultDevice"}};
    for (size_t i = 0; i < sizeof found / sizeof *found; i++)
        if (!(*found[i].at = dlsym(RTLD_DEFAULT, found[i].name))) return 0;
    return 1;
}
#elif defined(__ELF__)
/* There is no Metal, but a test may have put one there. */
object objc_getClass(const char *name) __attribute__((weak));
selector sel_registerName(const char *name) __attribute__((weak));
void objc_msgSend(void) __attribute__((weak));
void *objc_autoreleasePoolPush(void) __attribute__((weak));
void objc_autoreleasePoolPop(void *pool) __attribute__((weak));
object MTLCreateSystemDefaultDevice(void) __attribute__((weak));

static int find_runtime(runtime *r) {
    *r = (runtime){objc_getClass, sel_registerName, objc_msgSend, objc_autoreleasePoolPush, objc_autoreleasePoolPop, MTLCreateSystemDefaultDevice};
    return r->get_class && r->selector && r->send && r->pool_push && r->pool_pop && r->default_device;
}
#else
static int find_runtime(runtime *r) { (void)r; return 0; }
#endif

/* A message as a function of its type: SEND(r, result, object, "name:", (argument types), arguments...). */
#define TYPES(...) , ##__VA_ARGS__
#define SEND(r, result, to, name, types, ...) ((result (*)(object, selector TYPES types))(r)->send)(to, (r)->selector(name), ##__VA_ARGS__)

struct metal_device {
    runtime r;
    object device, queue, library;
    size_t max_buffer;
    char name[128];
    struct {                                            /* selectors of every step, looked up once */
        selector command_buffer, encoder, pipeline, buffer, bytes, dispatch, barrier, end, commit, wait, status;
    } s;
};
struct metal_buffer { const runtime *r; object object; };
struct metal_pipeline { const runtime *r; object object; };

static void release(const runtime *r, object o) {
    if (o) SEND(r, void, o, "release", ());
}

/* An NSError's text; "" if there is none. */
static const char *error_text(const runtime *r, object error) {
    object text = error ? SEND(r, object, error, "localizedDescription", ()) : NULL;
    const char *s = text ? SEND(r, const char *, text, "UTF8String", ()) : NULL;
    return s ? s : "";
}

static object string(const runtime *r, const char *s) {
    return SEND(r, object, r->get_class("NSString"), "stringWithUTF8String:", (const char *), s);
}

/* ---- the device ----------------------------------------------------------------------------------------------------- */

enum { APPLE7 = 1007, LANGUAGE_2_3 = 2 << 16 | 3 };     /* MTLGPUFamilyApple7, the first with simdgroup matrices; MTLLanguageVersion2_3 */
enum { SHARED = 0, CONCURRENT = 1, BUFFERS = 1, COMPLETED = 4 };        /* storage mode, dispatch type, barrier scope, command buffer status */

int metal_here(void) {
    runtime r;
    return find_runtime(&r);
}

static int compile(metal_device *d, const char *source, pyllm_error *err) {
    const runtime *r = &d->r;
    object failed = NULL, options = SEND(r, object, r->get_class("MTLCompileOptions"), "new", ());
    if (options) {
        SEND(r, void, options, "setFastMathEnabled:", (signed char), 0);
        SEND(r, void, options, "setLanguageVersion:", (uinteger), LANGUAGE_2_3);
    }
    d->library = SEND(r, object, d->device, "newLibraryWithSource:options:error:", (object, object, object *), string(r, source), options, &failed);
    release(r, options);
    return d->library ? 0 : err_set(err, PYLLM_ERR_UNSUPPORTED, "Metal does not compile the kernels: %.600s\nhint: backend=\"cpu\" runs every model",
                                    error_text(r, failed));
}

static int open_device(metal_device *d, const char *source, pyllm_error *err) {
    const runtime *r = &d->r;
    d->device = r->default_device();
    if (!d->device) return err_set(err, PYLLM_ERR_UNSUPPORTED, "Metal finds no GPU on this machine\nhint: backend=\"cpu\" runs every model");
    object name = SEND(r, object, d->device, "name", ());
    const char *text = name ? SEND(r, const char *, name, "UTF8String", ()) : NULL;
    strncpy(d->name, text ? text : "?", sizeof d->name - 1);
    if (!SEND(r, signed char, d->device, "supportsFamily:", (long), APPLE7))
        return err_set(err, PYLLM_ERR_UNSUPPORTED, "the GPU %s is older than Apple's M1, which the kernels need\nhint: backend=\"cpu\" runs every model",
                       d->name);
    d->max_buffer = SEND(r, uinteger, d->device, "maxBufferLength", ());
    d->queue = SEND(r, object, d->device, "newCommandQueue", ());
    if (!d->queue) return err_set(err, PYLLM_ERR_MEMORY, "Metal gives no command queue");
    TRY(compile(d, source, err));
    d->s.command_buffer = r->selector("commandBuffer");
    d->s.encoder = r->selector("computeCommandEncoderWithDispatchType:");
    d->s.pipeline = r->selector("setComputePipelineState:");
    d->s.buffer = r->selector("setBuffer:offset:atIndex:");
    d->s.bytes = r->selector("setBytes:length:atIndex:");
    d->s.dispatch = r->selector("dispatchThreadgroups:threadsPerThreadgroup:");
    d->s.barrier = r->selector("memoryBarrierWithScope:");
    d->s.end = r->selector("endEncoding");
    d->s.commit = r->selector("commit");
    d->s.wait = r->selector("waitUntilCompleted");
    d->s.status = r->selector("status");
    return 0;
}

int metal_open(const char *source, metal_device **out, pyllm_error *err) {
    *out = NULL;
    metal_device *d = mem_zalloc(sizeof *d);
    if (!d) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while opening the GPU");
    if (!find_runtime(&d->r)) {
        mem_free(d);
        return err_set(err, PYLLM_ERR_UNSUPPORTED, "there is no Metal on this machine\nhint: it is part of macOS; backend=\"cpu\" runs everywhere");
    }
    void *pool = d->r.pool_push();
    int rc = open_device(d, source, err);
    d->r.pool_pop(pool);
    if (rc) {
        metal_close(d);
        return rc;
    }
    *out = d;
    return 0;
}

void metal_close(metal_device *d) {
    if (!d) return;
    release(&d->r, d->library);
    release(&d->r, d->queue);
    release(&d->r, d->device);
    mem_free(d);
}

size_t metal_max_buffer(const metal_device *d) { return d->max_buffer; }
const char *metal_name(const metal_device *d) { return d->name; }

/* ---- buffers and pipelines --------------------------------------------------------------------------------------------- */

size_t metal_page(void) {
#if defined(_WIN32)
    return 4096;
#else
    return (size_t)sysconf(_SC_PAGESIZE);
#endif
}

int metal_wrap(metal_device *d, void *p, size_t bytes, int copy, metal_buffer **out, pyllm_error *err) {
    const runtime *r = &d->r;
    metal_buffer *b = *out = mem_zalloc(sizeof *b);
    if (!b) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while giving the GPU a buffer");
    b->r = r;
    if ((uintptr_t)p % metal_page() == 0 && bytes % metal_page() == 0)
        b->object = SEND(r, object, d->device, "newBufferWithBytesNoCopy:length:options:deallocator:", (void *, uinteger, uinteger, object), p, bytes,
                         SHARED, NULL);
    if (!b->object && copy)
        b->object = SEND(r, object, d->device, "newBufferWithBytes:length:options:", (const void *, uinteger, uinteger), p, bytes, SHARED);
    if (b->object) return 0;
    metal_buffer_free(b);
    *out = NULL;
    return err_set(err, PYLLM_ERR_MEMORY, "the GPU %s takes no buffer of %zu MB\nhint: a smaller context (ctx) or model needs less", d->name, bytes >> 20);
}

void metal_buffer_free(metal_buffer *b) {
    if (!b) return;
    release(b->r, b->object);
    mem_free(b);
}

static int make_pipeline(metal_device *d, const char *kernel, uint32_t threads, metal_pipeline *p, pyllm_error *err) {
    const runtime *r = &d->r;
    object failed = NULL, function = SEND(r, object, d->library, "newFunctionWithName:", (object), string(r, kernel));
    if (!function) return err_set(err, PYLLM_ERR_UNSUPPORTED, "Metal has no kernel %s", kernel);
    p->object = SEND(r, object, d->device, "newComputePipelineStateWithFunction:error:", (object, object *), function, &failed);
    release(r, function);
    if (!p->object) return err_set(err, PYLLM_ERR_UNSUPPORTED, "Metal cannot prepare kernel %s: %.400s", kernel, error_text(r, failed));
    uinteger most = SEND(r, uinteger, p->object, "maxTotalThreadsPerThreadgroup", ()), width = SEND(r, uinteger, p->object, "threadExecutionWidth", ());
    if (most < threads || width != 32)
        return err_set(err, PYLLM_ERR_UNSUPPORTED, "kernel %s needs %u threads in simdgroups of 32, the GPU %s has %lu of %lu", kernel, threads, d->name,
                       most, width);
    return 0;
}

int metal_pipeline_new(metal_device *d, const char *kernel, uint32_t threads, metal_pipeline **out, pyllm_error *err) {
    metal_pipeline *p = *out = mem_zalloc(sizeof *p);
    if (!p) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while preparing kernel %s", kernel);
    p->r = &d->r;
    void *pool = d->r.pool_push();
    int rc = make_pipeline(d, kernel, threads, p, err);
    d->r.pool_pop(pool);
    if (rc) {
        metal_pipeline_free(p);
        *out = NULL;
    }
    return rc;
}

void metal_pipeline_free(metal_pipeline *p) {
    if (!p) return;
    release(p->r, p->object);
    mem_free(p);
}

/* ---- running --------------------------------------------------------------------------------------------------------- */

static void encode(const metal_device *d, object encoder, const metal_command *c) {
    void (*send)(void) = d->r.send;
    if (c->barrier) ((void (*)(object, selector, uinteger))send)(encoder, d->s.barrier, BUFFERS);
    ((void (*)(object, selector, object))send)(encoder, d->s.pipeline, c->pipeline->object);
    ((void (*)(object, selector, const void *, uinteger, uinteger))send)(encoder, d->s.bytes, c->arguments, (uinteger)c->argument_bytes, 0);
    for (int32_t i = 0; i < c->n_buffers; i++)
        ((void (*)(object, selector, object, uinteger, uinteger))send)(encoder, d->s.buffer, c->buffers[i].buffer->object, c->buffers[i].offset,
                                                                       (uinteger)i + 1);
    ((void (*)(object, selector, size3, size3))send)(encoder, d->s.dispatch, (size3){c->grid[0], c->grid[1], c->grid[2]}, (size3){c->threads, 1, 1});
}

static int run(metal_device *d, const metal_command *commands, int32_t n, pyllm_error *err) {
    void (*send)(void) = d->r.send;
    object buffer = ((object (*)(object, selector))send)(d->queue, d->s.command_buffer);
    object encoder = buffer ? ((object (*)(object, selector, uinteger))send)(buffer, d->s.encoder, CONCURRENT) : NULL;
    if (!encoder) return err_set(err, PYLLM_ERR_MEMORY, "the GPU %s takes no work", d->name);
    for (int32_t i = 0; i < n; i++) encode(d, encoder, &commands[i]);
    ((void (*)(object, selector))send)(encoder, d->s.end);
    ((void (*)(object, selector))send)(buffer, d->s.commit);
    ((void (*)(object, selector))send)(buffer, d->s.wait);
    if (((uinteger (*)(object, selector))send)(buffer, d->s.status) == COMPLETED) return 0;
    return err_set(err, PYLLM_ERR_IO, "the GPU %s gave up: %.600s\nhint: backend=\"cpu\" runs every model", d->name,
                   error_text(&d->r, SEND(&d->r, object, buffer, "error", ())));
}

int metal_run(metal_device *d, const metal_command *commands, int32_t n, pyllm_error *err) {
    void *pool = d->r.pool_push();
    int rc = run(d, commands, n, err);
    d->r.pool_pop(pool);
    return rc;
}
