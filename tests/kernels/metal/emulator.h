// Runs a kernel as Metal would: threadgroup after threadgroup, the threads of one as fibers that take turns where they wait for each other, in an order
// that the schedule chooses. Found besides wrong numbers: barriers that some threads skip, simdgroup operations that lanes do not meet in, more
// threadgroup memory than a device has; with -fsanitize=thread races, with -fsanitize=address accesses out of bounds.
#pragma once
#include <cstddef>
#include <cstdint>

struct emu_slot { float f[4]; };

enum emu_op { EMU_GROUP = 1, EMU_SIMD, EMU_SUM, EMU_MAX, EMU_SHUFFLE, EMU_LOAD, EMU_STORE, EMU_MULTIPLY };
enum emu_kind { EMU_END, EMU_POSITION, EMU_ARGUMENTS, EMU_READS, EMU_WRITES };

struct emu_param { int kind; size_t bytes; };       // bytes: of arguments

struct emu_thread {
    uint32_t group[3];
    int thread;
    void *const *buffers;
};

struct emu_entry {
    const char *name;
    void (*run)(const emu_thread *);
    const emu_param *params;        // up to EMU_END
};

extern const emu_entry emu_entries[];       // up to one without a name; made from the kernels' source
extern const char emu_source_hash[];        // SHA-256 of that source

// Called by kernels.
void emu_barrier(int op, int line);
const emu_slot *emu_exchange(emu_slot mine, int op, int line);     // what each lane has brought, good until the next operation
int emu_lane();
void *emu_group_memory(size_t bytes, int id);
void emu_touch(int buffer, const void *at, size_t bytes, bool write);
float emu_from_half(uint16_t h);
uint16_t emu_to_half(float f);

// What a launch touched of one buffer: [low, high) addresses; low = high: nothing.
struct emu_range { uintptr_t read_low, read_high, write_low, write_high; };

const emu_entry *emu_find(const char *name);

// Schedules: 0 forward, 1 backward, others are seeds of a random order. ranges: NULL, or one a buffer (filled if built with EMU_TRACE).
// Returns NULL or what went wrong, until the next call.
const char *emu_run(const emu_entry *k, void *const *buffers, const uint32_t grid[3], int threads, int schedule, emu_range *ranges);
