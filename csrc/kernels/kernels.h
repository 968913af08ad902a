/* The kernel table and every kernel's contract: the page a kernel author reads.
 *
 * A kernel is a pure function: it never allocates, prints, locks or keeps state. docs/numerics.md fixes the order of every float
 * operation; kernels/ref is its transcription in plain C and every other variant must equal it bit for bit (any NaN equals any
 * NaN). One table per CPU level; the file suffix, symbol suffix, CPU flag, compile flags and test label are one name. */
#ifndef PYLLM_KERNELS_H
#define PYLLM_KERNELS_H
#include "../formats/formats.h"
#include <stddef.h>
#include <stdint.h>

enum { GROUP = 16 };            /* output rows of a packed group: the SIMD lanes of a matmul */
enum { PANEL = 8 };             /* activation rows that a matmul kernel takes at most */
enum { WIDE_PANEL = 256 };      /* and that a wide one takes */
enum { PAGE = 16 };             /* tokens of a KV page */
enum { CHUNK = 256 };           /* positions of an attention chunk: 16 pages, at absolute multiples of 256 */

/* ---- quantized activations ----------------------------------------------------------------------------------------
 * 256 consecutive values of one row. A panel of m rows over k values is unit[ceil(k/256)][m], so that all rows of a unit lie
 * side by side. Blocks of 32: d[b] and sum32[b] per block; blocks of 256: only d[0] counts. Past k: q = 0, d = 0. */
typedef struct act_unit {
    int8_t q[256];              /* in [-127, 127] */
    int16_t sum16[16];          /* sums of 16 q */
    int16_t sum32[8];           /* sums of 32 q */
    float d[8];
} act_unit;
static inline size_t act_panel_bytes(int64_t k, int m) { return (size_t)((k + 255) / 256) * (size_t)m * sizeof(act_unit); }

/* x: m rows of k floats, ldx floats apart; block 32 or 256; k a multiple of block. dst: one panel. */
typedef void quantize_act_fn(const float *x, int64_t ldx, int m, int64_t k, int block, act_unit *dst);

/* ---- matmul ---------------------------------------------------------------------------------------------------------
 * y[c*ldy + 16*g + r] = dot(W row 16*g + r, activation row c), g < n_groups, r < 16, c < m, 1 <= m <= PANEL.
 * w: packed groups (pack.h), group_bytes apart; k: row length. a: a panel of m rows (types with act 32/256) or f32 rows lda floats
 * apart (types with act 1). Rows past the matrix's last are zero in w and are computed like any other. */
typedef void matmul_fn(const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const void *a, int64_t lda, int m,
                       float *y, int64_t ldy);

/* Wide kernels, on levels that have them, do the same for panels of up to WIDE_PANEL rows: they unpack weights once for all. For types with act 32 or
   256 only. */

/* The level's 8-bit dot product alone, weights in registers: `rounds` times PEAK_CHAINS independent accumulators of ROWS lanes, each adding 32
   products a lane of codes of 1 and the bytes at a[0..31]. No matmul of 4-bit codes can be faster. Returns the multiply-adds done; *sum: of all
   lanes, modulo 2^32, which is returned/32 times the sum of a on every level. */
enum { PEAK_CHAINS = 10 };
typedef int64_t dot_peak_fn(int64_t rounds, const int8_t *a, uint32_t *sum);

/* ---- vectors ------------------------------------------------------------------------------------------------------
 * All over f32; n any positive number; no alignment needed; y may equal x. */
/* y = x * (1/sqrt(mean(x^2) + eps)) * w  (w NULL: without). */
typedef void rmsnorm_fn(const float *x, const float *w, float *y, int64_t n, float eps);
/* y = ((x - mean) * (1/sqrt(mean((x - mean)^2) + eps))) * w + b  (b NULL: without). */
typedef void layernorm_fn(const float *x, const float *w, const float *b, float *y, int64_t n, float eps);
/* Activations by kind, name on the tape, and function of base/math.h; kinds are numbered in this order. */
#define ACTS(X) X(SILU, silu, silu) X(GELU_TANH, gelu, gelu) X(GELU_ERF, gelu_erf, gelu_erf) X(RELU, relu, relu) X(RELU2, relu2, relu2_) \
    X(SIGMOID, sigmoid, sigmoid) X(TANH, tanh, tanh) X(SOFTPLUS, softplus, softplus)
#define ACT_ENUM(kind, name, fn) ACT_##kind,
enum act_kind { ACTS(ACT_ENUM) ACT_COUNT, ACT_SWIGLU_OAI = ACT_COUNT };
/* y = act(x). */
typedef void act_fn(int act, const float *x, float *y, int64_t n);
/* y = act(gate) * up; ACT_SWIGLU_OAI, which only this knows: with g = min(gate, 7), u = up within -7 to 7, (g * sigmoid(1.702 g)) * (u + 1). */
typedef void gated_fn(int act, const float *gate, const float *up, float *y, int64_t n);
/* y = e^(x - max x) / sum of these. */
typedef void softmax_fn(const float *x, float *y, int64_t n);
/* y = cap * tanh(x / cap). */
typedef void softcap_fn(const float *x, float *y, int64_t n, float cap);
/* out[i] = mscale*cos(pos*freq[i]), out[n+i] = mscale*sin(pos*freq[i]); the product and the reduction in double. */
typedef void angles_fn(const float *freq, int64_t n, int64_t pos, float mscale, float *out);
/* Rotates heads*dim values: the first rot of each head turn by angles [cos rot/2 | sin rot/2], the rest is copied.
   neox 0: pairs (2i, 2i+1); neox 1: pairs (i, i + rot/2). */
typedef void rope_fn(const float *x, const float *angles, float *y, int heads, int dim, int rot, int neox);

/* ---- scans -----------------------------------------------------------------------------------------------------------
 * One token of a recurrence, of one head. The lanes are the p values of a row of the state s [n][p], which changes in place; rows i ascend.
 * n, p at most SCAN_MAX; no alignment needed; y overlaps nothing. */
enum { SCAN_MAX = 256 };
/* RWKV 5 and 6, n = p: y = sum of r[i] * (u[i]*k[i]*v + s[i]); then s[i] = w[i]*s[i] + k[i]*v with w[i] = exp(-exp(d[i])). */
typedef void wkv_fn(float *s, int n, const float *r, const float *k, const float *v, const float *u, const float *d, float *y);
/* RWKV 7, n = p: with w[i] = exp(WKV7_DECAY * sigmoid(d[i])), e = k*k_k scaled to length 1, x = k * (1 + (a-1)*k_a), z = sum of e[i] * s[i]:
   s[i] = w[i]*s[i] - e[i]*a[i]*z + x[i]*v; y = sum of r[i] * s[i]; bonus = v * sum of r[i]*x[i]*r_k[i]. */
typedef struct wkv7_args {
    float *s;
    int n;
    const float *r, *d, *k, *v, *a, *k_k, *k_a, *r_k;
    float *y, *bonus;
} wkv7_args;
typedef void wkv7_fn(const wkv7_args *a);
#define WKV7_DECAY -0x1.368b3cp-1f      /* -0.606531 */
/* Mamba: every value has a decay of its own. s[i] = exp(dt*a[i])*s[i] + b[i]*(x*dt), a [n][p]; y = d*x + sum of c[i] * s[i]. */
typedef void ssm_fn(float *s, const float *a, int n, int p, const float *x, const float *dt, const float *b, const float *c, const float *d, float *y);
/* Mamba 2: the same with one dt, a and d for the head. */
typedef void ssd_fn(float *s, int n, int p, const float *x, float dt, float a, const float *b, const float *c, float d, float *y);
/* Gated delta rule: with w = exp(g) and z = beta * (v - sum of k[i] * w*s[i]): s[i] = w*s[i] + k[i]*z; y = sum of q[i] * s[i]. */
typedef void delta_fn(float *s, int n, int p, const float *q, const float *k, const float *v, float g, float beta, float *y);

/* ---- KV pages and attention -----------------------------------------------------------------------------------------
 * One page of one layer and kv head holds PAGE tokens. K: token is the lane. f32/f16: element [dim][16]. q8_0: for each block of 32
 * dims f16 d[16], then int8 [8][16][4] (dims in fours). V: dim is the lane. f32/f16: element [16][dim]. q8_0: f16 d[16][dim/32],
 * then int8 [16][dim]. q4_0 has what rotate.h makes of a head, its codes plus 8 in 4 bits: K for each block f16 d[16], then bytes [4][16][4] with dims 0..15 in the
 * low halves and 16..31 in the high ones, V f16 d[16][dim/32], then bytes [16][dim/32][16] with the same halves. dim is a multiple of 16 (q8_0, q4_0: of 32). */
enum kv_type { KV_F32 = 0, KV_F16 = 1, KV_Q8_0 = 2, KV_Q4_0 = 3, KV_TYPES = 4 };
static inline int kv_quantized(int type) { return type >= KV_Q8_0; }
static inline size_t kv_page_bytes(int type, int dim) {      /* of K or of V, one page, one kv head */
    size_t bits = type == KV_F32 ? 32 : type == KV_F16 ? 16 : type == KV_Q8_0 ? 8 : 4;
    return (size_t)PAGE * (dim * bits / 8 + (kv_quantized(type) ? dim / 16 : 0));
}
/* Stores one token's vector [dim] in slot 0..15 of a page. */
typedef void kv_store_fn(const float *x, int dim, uint8_t *page, int slot);

/* One chunk for `rows` query rows of the `group` heads that share a kv head. Query (i, h) is q + i*ldq + h*dim, i < rows, h < group.
   pages[p] covers positions 16p..16p+15 of the chunk; row i sees positions [lo[i], hi[i]) of the chunk, 0 <= lo < hi <= 256. Pages that
   no row sees may be NULL. next_pages: keys that will be wanted next, to be fetched meanwhile and never read; any may be NULL. Result of (i, h) at index s = i*group + h:
   m[s], l[s], o[s*v_dim .. +v_dim] (unnormalised). rows*group <= 64. dim: of queries and keys; v_dim: of values, a multiple of 16 (q8_0: of 32). */
typedef struct attn_args {
    const float *q;
    int64_t ldq;
    int rows, group, dim, v_dim;
    float scale, softcap;       /* softcap 0 = off */
    const uint8_t *const *k_pages, *const *v_pages, *const *next_pages;     /* [16] each */
    const int16_t *lo, *hi;
    float *m, *l, *o;
    void *scratch;              /* attn_scratch_bytes(dim), 64-byte aligned */
} attn_args;
enum { ATTN_MAX = 64 };         /* rows*group of one call */
static inline size_t attn_scratch_bytes(int dim) { return (size_t)ATTN_MAX * (CHUNK * 4 + (size_t)dim * 4 + 256) + 4096; }
typedef void attn_chunk_fn(const attn_args *a);
/* The page of values that are the first v_dim of each key, out of the page of keys: the same bytes in the other order (no slot: nothing is computed). */
void kv_values_of_keys(int type, int v_dim, const uint8_t *k_page, uint8_t *v_page);
/* state (m0, l0, o0) becomes the merge of itself with the later chunk (m1, l1, o1). */
typedef void attn_merge_fn(float *m0, float *l0, float *o0, float m1, float l1, const float *o1, int dim);
/* y = o * (1/l). */
typedef void attn_finish_fn(const float *o, float l, float *y, int dim);

/* ---- encoders -------------------------------------------------------------------------------------------------------
 * n blocks of `type` from the n * elems finite floats at x, to n * bytes at dst, with the least sum of w * (x - decoded)^2 that the search
 * finds. w: weights >= 0 of the per_row blocks of a matrix row, [per_row * elems]; block i has those of block (first + i) % per_row. NULL:
 * all 1. The bytes of a block depend on its values and weights alone. */
typedef void quantize_fn(const float *x, const float *w, int64_t n, int64_t first, int64_t per_row, uint8_t *dst);

/* ---- the table ------------------------------------------------------------------------------------------------------ */
typedef struct kernels {
    const char *level;
    quantize_act_fn *quantize_act;
    dot_peak_fn *dot_peak;
    matmul_fn *matmul[QTYPE_COUNT];             /* NULL: this type cannot be multiplied */
    matmul_fn *matmul_wide[QTYPE_COUNT];        /* NULL: none */
    rmsnorm_fn *rmsnorm;
    layernorm_fn *layernorm;
    act_fn *act;
    gated_fn *gated;
    softmax_fn *softmax;
    softcap_fn *softcap;
    angles_fn *angles;
    rope_fn *rope;
    wkv_fn *wkv;
    wkv7_fn *wkv7;
    ssm_fn *ssm;
    ssd_fn *ssd;
    delta_fn *delta;
    kv_store_fn *kv_store_k[KV_TYPES], *kv_store_v[KV_TYPES];
    attn_chunk_fn *attn_chunk[KV_TYPES];
    attn_merge_fn *attn_merge;
    attn_finish_fn *attn_finish;
    quantize_fn *quantize[QTYPE_COUNT];         /* NULL: this type has no encoder */
    /* "slot=symbol" of every entry in the order above; filled together with the pointers. */
    const char *names[3 * QTYPE_COUNT + 32];
    int n_names;
} kernels;

/* The table of a level ("ref", "avx2", "avxvnni", "avx512vnni", "amx"; "neon", "dotprod", "i8mm"), built on first use and constant after. NULL level: PYLLM_CPU, else the best that
   this CPU has. NULL result: no such level here. Thread-safe. */
const kernels *kernels_get(const char *level);
const char *kernels_levels(void);               /* "ref avx2 ...", best last */
#endif
