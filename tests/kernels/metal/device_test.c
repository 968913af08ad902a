/* csrc/kernels/metal/device.c against the fake device: a command that is right, and what is said of wrong ones. argv[1]: the shader source. Prints one line
   a case: its name, a tab, "ok" or the first line of the error. */
#include "../../../csrc/base/alloc.h"
#include "../../../csrc/kernels/metal/args.h"
#include "../../../csrc/kernels/metal/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 300 };

static pyllm_error error;
static metal_device *d;
static metal_buffer *x, *z, *y;
static metal_pipeline *add;
static float *values;

static void say(const char *name, int rc) {
    char *end = strchr(error.message, '\n');
    if (end) *end = 0;
    printf("%s\t%s\n", name, rc ? error.message : "ok");
}

/* y = x + z: right, before a case changes it. */
static metal_command command(void) {
    metal_command c = {.pipeline = add, .grid = {2, 1, 1}, .threads = 256, .n_buffers = 3, .argument_bytes = sizeof(metal_map_args),
                       .buffers = {{x, 0}, {z, 0}, {y, 0}}};
    metal_map_args a = {.n = N, .width = N, .gate_width = N};
    memcpy(c.arguments, &a, sizeof a);
    return c;
}

static void try(const char *name, const metal_command *c, int n) { say(name, metal_run(d, c, n, &error)); }

static void wrong_commands(void) {
    metal_command c = command(), two[2];
    c.n_buffers = 2;
    try("a buffer is missing", &c, 1);
    c = command();
    c.n_buffers = 4;
    c.buffers[3] = c.buffers[2];
    try("a buffer too many", &c, 1);
    c = command();
    c.argument_bytes -= 4;
    try("arguments too short", &c, 1);
    c = command();
    c.buffers[0].offset = metal_page();
    try("offset behind the end", &c, 1);
    c = command();
    c.buffers[0].offset = 2;
    try("offset between floats", &c, 1);
    c = command();
    c.buffers[2].offset = metal_page() - 4 * (N - 1);
    try("buffer too short", &c, 1);
    c = command();
    c.grid[1] = 0;
    try("empty grid", &c, 1);
    c = command();
    c.threads = 250;
    try("threads", &c, 1);
    two[0] = two[1] = command();
    two[1].buffers[0].buffer = y;
    two[1].buffers[2].buffer = z;
    try("reads what the last one writes", two, 2);
    two[1].barrier = 1;
    try("reads that behind a barrier", two, 2);
    two[1] = command();
    two[1].buffers[2].buffer = x;
    try("writes what the last one reads", two, 2);
    two[1] = command();
    try("writes what the last one writes", two, 2);
}

int main(int argc, char **argv) {
    static char source[1 << 20];
    FILE *f = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!f) return 2;
    source[fread(source, 1, sizeof source - 1, f)] = 0;
    fclose(f);
    size_t page = metal_page();
    values = mem_map(4 * page);             /* one behind the buffers, for a case that writes past its own */
    say("open", metal_open(source, &d, &error));
    if (!d) return 1;
    say("pipeline", metal_pipeline_new(d, "add", 256, &add, &error));
    metal_pipeline *none;
    say("no such kernel", metal_pipeline_new(d, "subtract", 256, &none, &error));
    say("too many threads", metal_pipeline_new(d, "add", 2048, &none, &error));
    say("in place", metal_wrap(d, values, page, 0, &x, &error) || metal_wrap(d, (char *)values + page, page, 0, &z, &error) ||
                        metal_wrap(d, (char *)values + 2 * page, page, 0, &y, &error));
    metal_buffer *b;
    say("not at a page", metal_wrap(d, (char *)values + 64, page, 0, &b, &error));
    say("not whole pages", metal_wrap(d, values, page - 4, 0, &b, &error));
    for (int i = 0; i < N; i++) values[i] = (float)i;
    int rc = metal_wrap(d, (char *)values + 4, page - 4, 1, &b, &error);
    say("copied", rc);
    metal_command c = command();
    c.buffers[0].buffer = c.buffers[1].buffer = b;          /* values from the second on: the copy does not see what comes later */
    values[1] = 77;
    try("right", &c, 1);
    const float *sum = (const float *)((char *)values + 2 * page);
    printf("sum\t%g %g %g\n", (double)sum[0], (double)sum[1], (double)sum[N - 2]);
    metal_buffer_free(b);
    wrong_commands();
    metal_pipeline_free(add);
    metal_buffer_free(x);
    metal_buffer_free(y);
    metal_buffer_free(z);
    metal_close(d);
    long fake_counter(const char *);
    printf("live\t%ld\n", fake_counter("live"));
    mem_unmap(values, 4 * page);
    return 0;
}
