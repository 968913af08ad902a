/* A GPU through Metal, by Objective-C's run time alone: no framework is linked, no Objective-C compiler is needed, and a test can stand in for
 * Apple's side (tests/kernels/metal/runtime.cpp). Of an object only one thread at a time makes use.
 *
 * Work is a list of commands: which kernel over which buffers with how many threadgroups. They may run at the same time up to one that says
 * `barrier`, which waits for all before it. */
#ifndef PYLLM_METAL_DEVICE_H
#define PYLLM_METAL_DEVICE_H
#include "../../base/err.h"

enum { METAL_BUFFERS = 7, METAL_ARGUMENT_BYTES = 64 };

typedef struct metal_device metal_device;
typedef struct metal_buffer metal_buffer;
typedef struct metal_pipeline metal_pipeline;

typedef struct metal_bind {
    const metal_buffer *buffer;
    size_t offset;                  /* bytes */
} metal_bind;

typedef struct metal_command {
    const metal_pipeline *pipeline;
    uint32_t grid[3];               /* threadgroups */
    uint32_t threads;               /* of each */
    int32_t n_buffers, argument_bytes;
    int32_t barrier;
    metal_bind buffers[METAL_BUFFERS];          /* of the kernel's parameters 1, 2, ...; parameter 0 is the arguments */
    unsigned char arguments[METAL_ARGUMENT_BYTES];
} metal_command;

/* Whether this process can reach Metal at all. */
int metal_here(void);
/* The system's default GPU with the kernels of `source` (NUL-terminated) compiled. PYLLM_ERR_UNSUPPORTED: there is none, or none that can run them. */
int metal_open(const char *source, metal_device **out, pyllm_error *err);
void metal_close(metal_device *d);                      /* after all its buffers and pipelines are freed; NULL is fine */
size_t metal_max_buffer(const metal_device *d);         /* bytes of one buffer */
const char *metal_name(const metal_device *d);

/* Memory that both sides read and write, in place, and that outlives the buffer: p and bytes are multiples of the system's page.
   Where `copy`, memory that does not meet that is copied once instead: for what nobody writes any more. */
int metal_wrap(metal_device *d, void *p, size_t bytes, int copy, metal_buffer **out, pyllm_error *err);
void metal_buffer_free(metal_buffer *b);
size_t metal_page(void);                                /* bytes of the system's page */

/* A kernel of the source, ready to run in threadgroups of so many threads. */
int metal_pipeline_new(metal_device *d, const char *kernel, uint32_t threads, metal_pipeline **out, pyllm_error *err);
void metal_pipeline_free(metal_pipeline *p);

/* Encodes the commands into a fresh command buffer, runs them and waits. */
int metal_run(metal_device *d, const metal_command *commands, int32_t n, pyllm_error *err);
#endif
