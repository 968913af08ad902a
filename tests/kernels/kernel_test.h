/* The kernel test: every level's kernels against the reference, bit for bit, on buffers that end at unreadable pages.
 *
 * A case is one slot of the table with one set of inputs. It is run by the reference first, whose outputs are kept, and then by every
 * level that has a kernel of its own for the slot, twice: with each buffer flush against the unreadable page after it, then against
 * the one before it. A test reads like this:
 *
 *     for (case_begin("softcap", "n=%d", n); run_next();)  {
 *         float *y = guard_out(n * 4);
 *         run.k->softcap(guard_in(x, n * 4), y, n, cap);
 *         check_floats("y", y, n);
 *     }
 */
#ifndef PYLLM_KERNEL_TEST_H
#define PYLLM_KERNEL_TEST_H
#include "../../csrc/kernels/kernels.h"

/* ---- levels ---- */
enum { MAX_LEVELS = 16 };
extern const char *only_type;                   /* NULL, or the one weight type to test or to time the matmuls of */
extern const kernels *levels[MAX_LEVELS];       /* [0] is ref */
extern int n_levels;
/* The symbol that fills a slot ("matmul_q4_k" -> "matmul_q4_k_avx2"); NULL if the level's table has no such slot. */
const char *slot_symbol(const kernels *k, const char *slot);
/* 1 if that symbol is the level's own, 0 if it comes from a lower level. */
int slot_own(const kernels *k, const char *slot);

/* ---- cases and runs ---- */
extern int repeat;                              /* random cases per kind of case; 1 in emulators */
typedef struct run_state {
    const kernels *k;
    int upper;                                  /* buffers are flush against the page after them */
} run_state;
extern run_state run;
void case_begin(const char *slot, const char *sizes, ...) __attribute__((format(printf, 2, 3)));
int run_next(void);                             /* next run of the case; ends the previous one and checks its guards */
int run_ref(void);                              /* the same for cases that only ref is asked for */
/* The run's n outputs, kept if this is ref, else compared with what was kept: in bits, any NaN equal to any NaN. */
void check_floats(const char *name, const float *p, int64_t n);
void check_bytes(const char *name, const void *p, int64_t n);
/* Bytes that no kernel may have written. */
void check_untouched(const char *name, const void *p, int64_t n);
/* Any other condition; a false one fails the run. */
void check(int ok, const char *what, ...) __attribute__((format(printf, 2, 3)));

/* ---- buffers between unreadable pages, valid for one run ---- */
const void *guard_in(const void *src, size_t n);        /* a copy, which must not have changed at the end of the run */
void *guard_inout(const void *src, size_t n);           /* a copy */
void *guard_out(size_t n);                              /* poisoned */

/* ---- random inputs ---- */
uint64_t rnd(void);
int rnd_below(int n);                                   /* 0..n-1 */
float rnd_float(float scale);                           /* roughly normal, times scale */
float rnd_any_bits(void);                               /* any f32: subnormals, infinities and NaN included */
void *scratch(int which, size_t n);                     /* plain memory of the test, one block per number 0..15, kept between cases */

/* What float inputs are made of. EXTREME mixes the values that break shortcuts: +-0, subnormals, +-1e-30, huge, infinities, NaN. */
enum fill { FILL_NORMAL, FILL_HUGE, FILL_TINY, FILL_EXTREME, FILL_ONE_NAN, FILL_ONE_INF, FILL_ANY_BITS, FILLS };
extern const char *const fill_names[FILLS];
void fill_floats(float *p, int64_t n, int fill);

/* ---- the tests ---- */
void test_dot_peak(void);
void test_matmul(void);
void test_quantize_act(void);
void test_vectors(void);
void test_scans(void);
void test_kv_store(void);
void test_attention(void);
void test_encoders(void);
/* The reference against straightforward arithmetic in double, within bounds derived from the number of roundings. */
void test_matmul_exact(void);
void test_vectors_exact(void);
void test_scans_exact(void);
void test_attention_exact(void);
void bench(void);

/* Random file bytes of `rows` rows of k weights, with scales of the given kind (kernel_weights.c). */
enum scales { SCALES_USUAL, SCALES_ZERO, SCALES_SUBNORMAL, SCALES_LARGEST, SCALES_INF, SCALES_NAN, SCALES_MIXED, SCALES };
extern const char *const scale_names[SCALES];
/* code_byte -1: random codes, else every byte of a block that is not a scale. */
void fill_weights(uint32_t type, uint8_t *dst, int64_t rows, int64_t k, int code_byte, int scales);
#endif
