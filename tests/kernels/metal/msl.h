// The part of the Metal shading language that csrc/kernels/metal uses, in C++: kernels run as fibers, one a thread, in emulator.cpp. Pointers are a type
// of their own for each address space, so that what Metal's compiler would refuse is refused here too. Matrices of a simdgroup lie in its lanes, two
// elements each: where Metal keeps them is not known, and no kernel may rely on it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulator.h"

namespace metal {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

struct uint3 { uint x, y, z; };
struct ulong2 { ulong x, y; ulong2(ulong a, ulong b) : x(a), y(b) {} };

template <class To, class From> static inline To as_type(From v) {
    static_assert(sizeof(To) == sizeof(From), "as_type between sizes");
    To t;
    std::memcpy(&t, &v, sizeof t);
    return t;
}

struct half {
    uint16_t bits;
    half() = default;
    explicit half(float f) : bits(emu_to_half(f)) {}
    operator float() const { return emu_from_half(bits); }
};

// ---- address spaces ----

enum space { device_space, constant_space, threadgroup_space };

template <space S, class T> struct ptr {
    T *p;
#ifdef EMU_TRACE
    int buffer = -1;            // number of the kernel's parameter that it came from
    ptr(T *q, int b) : p(q), buffer(b) {}
    template <class U, class = std::enable_if_t<std::is_convertible<U *, T *>::value>> ptr(const ptr<S, U> &q) : p(q.p), buffer(q.buffer) {}
    template <class U, class = std::enable_if_t<!std::is_convertible<U *, T *>::value>, class = void>
    explicit ptr(const ptr<S, U> &q) : p((T *)q.p), buffer(q.buffer) {}
    ptr operator+(long i) const { return ptr(p + i, buffer); }
    T &operator[](long i) const {
        if (buffer >= 0) emu_touch(buffer, p + i, sizeof(T), !std::is_const<T>::value);
        return p[i];
    }
#else
    ptr(T *q, int) : p(q) {}
    template <class U, class = std::enable_if_t<std::is_convertible<U *, T *>::value>> ptr(const ptr<S, U> &q) : p(q.p) {}
    template <class U, class = std::enable_if_t<!std::is_convertible<U *, T *>::value>, class = void>
    explicit ptr(const ptr<S, U> &q) : p((T *)q.p) {}
    ptr operator+(long i) const { return ptr(p + i, 0); }
    T &operator[](long i) const { return p[i]; }
#endif
    ptr() = default;
    T &operator*() const { return (*this)[0]; }
};

// ---- functions ----

namespace precise {
static inline float cos(float x) { return cosf(x); }
static inline float sin(float x) { return sinf(x); }
}
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float rint(float x) { return rintf(x); }
static inline float sqrt(float x) { return sqrtf(x); }
static inline float fabs(float x) { return fabsf(x); }
static inline float copysign(float x, float y) { return copysignf(x, y); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float clamp(float x, float a, float b) { return fminf(fmaxf(x, a), b); }
static inline bool isnan(float x) { return __builtin_isnan(x); }
static inline bool isfinite(float x) { return __builtin_isfinite(x); }

// ---- barriers and simdgroups ----

namespace mem_flags { enum flags { mem_none, mem_device, mem_threadgroup }; }
#define threadgroup_barrier(flags) emu_barrier(EMU_GROUP, __LINE__)
#define simdgroup_barrier(flags) emu_barrier(EMU_SIMD, __LINE__)

#define SIMD_OP __builtin_LINE()
static inline float simd_sum(float v, int line = SIMD_OP) {
    float s[32];
    const emu_slot *all = emu_exchange(emu_slot{{v, 0, 0, 0}}, EMU_SUM, line);
    for (int i = 0; i < 32; i++) s[i] = all[i].f[0];
    for (int half = 16; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}
static inline float simd_max(float v, int line = SIMD_OP) {
    const emu_slot *all = emu_exchange(emu_slot{{v, 0, 0, 0}}, EMU_MAX, line);
    float m = all[0].f[0];
    for (int i = 1; i < 32; i++) m = fmaxf(m, all[i].f[0]);
    return m;
}
static inline float simd_shuffle(float v, ushort lane, int line = SIMD_OP) {
    return emu_exchange(emu_slot{{v, 0, 0, 0}}, EMU_SHUFFLE, line)[lane & 31].f[0];
}
static inline float simd_shuffle_xor(float v, ushort mask, int line = SIMD_OP) {
    return emu_exchange(emu_slot{{v, 0, 0, 0}}, EMU_SHUFFLE, line)[(emu_lane() ^ mask) & 31].f[0];
}

struct simdgroup_float8x8 { float e[2]; };      // of lane l: row l / 4, columns l % 4 * 2 and the next

template <class T, int R, int C> static inline simdgroup_float8x8 make_filled_simdgroup_matrix(T v) {
    static_assert(R == 8 && C == 8 && std::is_same<T, float>::value, "only 8x8 floats");
    return {{v, v}};
}
template <space S, class T>
static inline void simdgroup_load(simdgroup_float8x8 &d, ptr<S, T> src, ulong stride = 8, ulong2 origin = ulong2(0, 0), bool transpose = false,
                                  int line = SIMD_OP) {
    int lane = emu_lane();
    emu_exchange(emu_slot{}, EMU_LOAD, line);
    for (int e = 0; e < 2; e++) {
        ulong row = ulong(lane / 4), col = ulong(lane % 4 * 2 + e);
        d.e[e] = src[long(((transpose ? col : row) + origin.y) * stride + (transpose ? row : col) + origin.x)];
    }
}
template <space S>
static inline void simdgroup_store(simdgroup_float8x8 s, ptr<S, float> dst, ulong stride = 8, int line = SIMD_OP) {
    int lane = emu_lane();
    emu_exchange(emu_slot{}, EMU_STORE, line);
    for (int e = 0; e < 2; e++) dst[long(ulong(lane / 4) * stride + ulong(lane % 4 * 2 + e))] = s.e[e];
}
static inline void simdgroup_multiply_accumulate(simdgroup_float8x8 &d, simdgroup_float8x8 a, simdgroup_float8x8 b, simdgroup_float8x8 c,
                                                 int line = SIMD_OP) {
    const emu_slot *all = emu_exchange(emu_slot{{a.e[0], a.e[1], b.e[0], b.e[1]}}, EMU_MULTIPLY, line);
    int lane = emu_lane(), row = lane / 4, col = lane % 4;
    float s[2] = {c.e[0], c.e[1]};
    for (int k = 0; k < 8; k++) {
        float x = all[row * 4 + k / 2].f[k % 2];
        const float *y = all[k * 4 + col].f + 2;
        s[0] = __builtin_fmaf(x, y[0], s[0]);
        s[1] = __builtin_fmaf(x, y[1], s[1]);
    }
    d.e[0] = s[0];
    d.e[1] = s[1];
}
static inline void simdgroup_multiply(simdgroup_float8x8 &d, simdgroup_float8x8 a, simdgroup_float8x8 b, int line = SIMD_OP) {
    simdgroup_multiply_accumulate(d, a, b, simdgroup_float8x8{{0, 0}}, line);
}

// ---- threadgroup memory and kernels ----

// Memory of a declaration in a kernel, the same for all threads of a threadgroup; full of NaN at first.
template <class T> static inline ptr<threadgroup_space, T> emu_array(int n, int id) {
    return ptr<threadgroup_space, T>(static_cast<T *>(emu_group_memory(size_t(n) * sizeof(T), id)), -1);
}

// A thread's arguments by the types of a kernel's parameters: arguments and buffers in order, then position, lane and simdgroup.
struct emu_args {
    const emu_thread *t;
    int at = 0, shorts = 0;
    template <class A> A take() {
        typedef std::remove_reference_t<A> V;
        if constexpr (std::is_same<V, uint3>::value) {
            return uint3{t->group[0], t->group[1], t->group[2]};
        } else if constexpr (std::is_same<V, ushort>::value) {
            return shorts++ ? ushort(t->thread / 32) : ushort(t->thread % 32);
        } else if constexpr (std::is_reference<A>::value) {
            return *static_cast<V *>(t->buffers[at++]);
        } else {
            int i = at++;
            return V(static_cast<decltype(V::p)>(t->buffers[i]), i);
        }
    }
};

template <class A> constexpr emu_param emu_describe() {
    typedef std::remove_reference_t<A> V;
    if constexpr (std::is_same<V, uint3>::value || std::is_same<V, ushort>::value) return {EMU_POSITION, 0};
    else if constexpr (std::is_reference<A>::value) return {EMU_ARGUMENTS, sizeof(V)};
    else return {std::is_const<std::remove_pointer_t<decltype(V::p)>>::value ? EMU_READS : EMU_WRITES, 0};
}

template <class... A> struct emu_kernel_of {
    template <void (*F)(A...)> static void run(const emu_thread *t) {
        emu_args from{t};
        call<F>(from, std::make_integer_sequence<int, sizeof...(A)>());
    }
    template <void (*F)(A...), int... I> static void call(emu_args &from, std::integer_sequence<int, I...>) {
        struct all { std::tuple<A...> v; } args{std::tuple<A...>{from.template take<A>()...}};      // braces: in order
        F(std::get<I>(args.v)...);
    }
};

template <class... A> constexpr emu_kernel_of<A...> emu_kernel(void (*)(A...)) { return {}; }
template <class... A> struct emu_params_of { static constexpr emu_param all[] = {emu_describe<A>()..., {EMU_END, 0}}; };
template <class... A> constexpr const emu_param *emu_params(void (*)(A...)) { return emu_params_of<A...>::all; }
#define EMU_ENTRY(name) {#name, &decltype(emu_kernel(&name))::run<&name>, emu_params(&name)}
}
