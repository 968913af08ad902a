/* Matmuls of two or more activation rows for levels with a matrix product of 2 rows by 8 bytes with 2 columns by 8 bytes (vi_mmla): included by
 * matmul_tmpl.h and matmul_codebook_tmpl.h where PAIRS is defined. Loaders, formats and the order of float operations are those of matmul_tmpl.h.
 *
 * Columns go in pairs, an odd one with zeros; their codes are interleaved into a buffer on the stack, PAIR_K elements at a time, which serves all groups of a
 * call. A register of products holds rows r and r+1 for both columns of a pair: [r c, r c', r+1 c, r+1 c']; two of them are 4 rows. */

enum { PAIR_K = 1024 };
typedef struct act_pair {
    int8_t q[32][16];           /* 8 codes of the first column, 8 of the second */
    int32_t start[16][2];       /* of each sum: -zero * sum of the codes, for 16 or 32 of them as the format says */
    int16_t sum16[2][16], sum32[2][8];
    float d[2][8];
} act_pair;

INLINE int sums_of_16(const format *f) { return f->sub == 16 || f->each16; }

/* Column c of a pair, or zeros; the rest of a unit past the row's end is zero, too. */
INLINE void set_column(const format *f, act_pair *p, int c, const act_unit *u) {
    memcpy(p->sum16[c], u->sum16, sizeof u->sum16);
    memcpy(p->sum32[c], u->sum32, sizeof u->sum32);
    memcpy(p->d[c], u->d, sizeof u->d);
    for (int i = 0; i < 32; i++) memcpy(p->q[i] + 8 * c, u->q + 8 * i, 8);
    for (int i = 0; i < 16; i++) p->start[i][c] = f->is_signed ? 0 : sums_of_16(f) ? -f->zero * u->sum16[i] : -f->zero * u->sum32[i % 8];
}

static void interleave(const format *f, const act_unit *a, int64_t units, int m, act_pair *pairs) {
    static const act_unit none;
    for (int64_t u = 0; u < units; u++, a += m)
        for (int c = 0; c < m; c += 2, pairs++) {
            set_column(f, pairs, 0, a + c);
            set_column(f, pairs, 1, c + 1 < m ? a + c + 1 : &none);
        }
}

/* 8 vectors of 4 rows by 4 codes as 4 times 2 rows by 8 codes and the 2 rows after them. */
INLINE void zip_rows(vi *q) {
    for (int j = 0; j < 8; j += 2) {
        vi a = q[j], b = q[j + 1];
        q[j] = vi_zip_low32(a, b);
        q[j + 1] = vi_zip_high32(a, b);
    }
}

/* Products of P pairs with codes 8*from..8*to of sub-block s, from start number n on. Chains of all pairs run side by side. */
INLINE void pair_products(const format *f, const vi *q, const act_pair *u, int P, int64_t s, int from, int to, int64_t n, vi (*dot)[2]) {
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) dot[p][0] = dot[p][1] = f->is_signed || !f->zero ? vi_set1(0) : vi_set2(u[p].start[n]);
    for (int j = from; j < to; j++)
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            vi x = vi_load(u[p].q[4 * s + j]);
            dot[p][0] = vi_mmla(dot[p][0], q[2 * j], x);
            dot[p][1] = vi_mmla(dot[p][1], q[2 * j + 1], x);
        }
}

/* The 4 rows of column c out of a pair's products. */
INLINE vi column(const vi *dot, int c) { return c ? vi_odd32(dot[0], dot[1]) : vi_even32(dot[0], dot[1]); }

/* Sums go on where the last PAIR_K left them, in y. */
INLINE void load_columns(vf (*sum)[2], int P, int m, int more, const float *y, int64_t ldy) {
    for (int c = 0; c < 2 * P; c++) sum[c / 2][c % 2] = more && c < m ? vf_load(y + c * ldy) : vf_set1(0);
}
INLINE void store_columns(vf (*sum)[2], int P, int m, float *y, int64_t ldy) {
    for (int c = 0; c < 2 * P; c++)
        if (c < m) vf_store(y + c * ldy, sum[c / 2][c % 2]);
}

INLINE void pair_tile32(const format *f, const uint8_t *w, int64_t k, const act_pair *a, int P, int m, int more, float *y, int64_t ldy) {
    int parts = f->parts ? f->parts : 1, halves = f->each16 ? 2 : 1;
    for (int h = 0; h < NV; h++, y += ROWS) {
        vf sum[PANEL / 2][2];
        load_columns(sum, P, m, more, y, ldy);
        const uint8_t *p = w + h * ROWS * 4, *sp = w + 64 * f->dwords + h * ROWS * f->scale_bytes;
        for (int64_t b = 0; b < k / 32; b += parts, p += f->bytes, sp += f->bytes) {
            const act_pair *u = a + b / 8 * P;
            if (!h) prefetch(p, (size_t)f->bytes);
            vf min = f->has_min ? vf_f16(sp + 2 * GROUP) : vf_set1(0);
            for (int part = 0; part < parts; part++) {
                int64_t i = b % 8 + part;
                vi q[8];
                f->load(p, part, 0, q);
                zip_rows(q);
                for (int half = 0; half < halves; half++) {
                    vi dot[PANEL / 2][2];
                    vf d = f->scale(f->each16 ? sp + (2 * part + half) * GROUP : sp);
                    pair_products(f, q, u, P, i, 4 / halves * half, 4 / halves * (half + 1), halves * i + half, dot);
#pragma GCC unroll 8
                    for (int c = 0; c < 2 * P; c++) {
                        vf da = vf_set1(u[c / 2].d[c % 2][i]), *z = &sum[c / 2][c % 2];
                        *z = vf_fma(vf_from_vi(column(dot[c / 2], c % 2)), vf_mul(d, da), *z);
                        if (f->has_min) *z = vf_fma(vf_set1((float)u[c / 2].sum32[c % 2][i]), vf_mul(min, da), *z);
                    }
                }
            }
        }
        store_columns(sum, P, m, y, ldy);
    }
}

/* isum of all pairs += products of sub-block s times its sub-scale or its two. */
INLINE void add_products(const format *f, vi *q, const act_pair *u, int P, int64_t s, vi (*sc)[2], vi (*isum)[2]) {
    int halves = f->sub == 16 ? 2 : 1;
    zip_rows(q);
    for (int half = 0; half < halves; half++) {
        vi dot[PANEL / 2][2];
        int64_t n = halves * s + half;
        pair_products(f, q, u, P, s, 4 / halves * half, 4 / halves * (half + 1), n, dot);
#pragma GCC unroll 8
        for (int c = 0; c < 2 * P; c++) {
            vi *z = &isum[c / 2][c % 2], x = dot[c / 2][c % 2];
            *z = vi_add(*z, sc ? vi_mul(x, sc[n][c % 2]) : x);
        }
    }
}

/* Sub-scales of 4 rows as pair_products has the rows. */
INLINE void zip_scales(const vi *sc, int n, vi (*zipped)[2]) {
    for (int i = 0; i < n; i++) zipped[i][0] = vi_zip_low32(sc[i], sc[i]), zipped[i][1] = vi_zip_high32(sc[i], sc[i]);
}

INLINE void add_pair_blocks(const format *f, const act_pair *u, int P, vf d, vf min, const vi *mn, vi (*isum)[2], vf (*sum)[2]) {
#pragma GCC unroll 8
    for (int c = 0; c < 2 * P; c++) {
        vf da = vf_set1(u[c / 2].d[c % 2][0]), *z = &sum[c / 2][c % 2];
        *z = vf_fma(vf_from_vi(column(isum[c / 2], c % 2)), vf_mul(d, da), *z);
        if (!f->has_min) continue;
        vi msum = dots_pairs(vi_set1(0), mn, f->sub == 32 ? u[c / 2].sum32[c % 2] : u[c / 2].sum16[c % 2], 128 / f->sub);
        *z = vf_fnma(vf_from_vi(msum), vf_mul(min, da), *z);
    }
}

INLINE void pair_tile256(const format *f, const uint8_t *w, int64_t k, const act_pair *a, int P, int m, int more, float *y, int64_t ldy) {
    int subs = f->sub == 32 && f->scales ? 2 : 4;
    for (int h = 0; h < NV; h++, y += ROWS) {
        vf sum[PANEL / 2][2];
        load_columns(sum, P, m, more, y, ldy);
        const uint8_t *p = w + h * ROWS * 4, *sp = w + 64 * f->dwords + h * ROWS * 2;
        const act_pair *u = a;
        for (int64_t b = 0; b < k / 256; b++, p += f->bytes, sp += f->bytes, u += P) {
            vi sc[16], zipped[16][2], mn[8], isum[PANEL / 2][2];
            if (!h) prefetch(p, (size_t)f->bytes);
            if (f->scales) f->scales(p, sp, sc, mn), zip_scales(sc, 256 / f->sub, zipped);
            for (int c = 0; c < 2 * P; c++) isum[c / 2][c % 2] = vi_set1(0);
            for (int64_t part = 0; part < 8 / subs; part++) {
                __asm__("" : "+r"(part));       /* a rolled loop, as in tile256 */
                for (int i = 0; i < subs; i++) {
                    vi q[8];
                    f->load(p, part, i, q);
                    add_products(f, q, u, P, part * subs + i, f->scales ? zipped : NULL, isum);
                }
            }
            add_pair_blocks(f, u, P, vf_f16(sp), f->has_min ? vf_f16(sp + 2 * GROUP) : vf_set1(0), mn, isum, sum);
        }
        store_columns(sum, P, m, y, ldy);
    }
}

/* One function per type and number of pairs. */
typedef void pair_fn(const uint8_t *w, int64_t k, const act_pair *a, int m, int more, float *y, int64_t ldy);
#define PAIR_TILE(type, P, call) \
    static __attribute__((noinline)) void type##_pairs_##P(const uint8_t *w, int64_t k, const act_pair *a, int m, int more, float *y, int64_t ldy) { \
        call(type, P); \
    }
#define PAIR_TILES(type, call) \
    PAIR_TILE(type, 1, call) PAIR_TILE(type, 2, call) PAIR_TILE(type, 3, call) PAIR_TILE(type, 4, call) \
    static pair_fn *const type##_pairs[PANEL / 2] = {type##_pairs_1, type##_pairs_2, type##_pairs_3, type##_pairs_4};
#define PAIR_CALL_32(type, P) pair_tile32(&type##_format, w, k, a, P, m, more, y, ldy)
#define PAIR_CALL_256(type, P) pair_tile256(&type##_format, w, k, a, P, m, more, y, ldy)

/* Elements of a packed block. */
INLINE int block_of(const format *f) { return f->sub ? 256 : f->parts ? 32 * f->parts : 32; }

INLINE void pair_columns(const format *f, pair_fn *const *tiles, const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const act_unit *a,
                         int m, float *y, int64_t ldy) {
    act_pair pairs[PAIR_K / 256 * PANEL / 2];
    for (int64_t at = 0; at < k; at += PAIR_K) {
        int64_t n = k - at < PAIR_K ? k - at : PAIR_K;
        interleave(f, a + at / 256 * m, (n + 255) / 256, m, pairs);
        for (int64_t g = 0; g < n_groups; g++)
            tiles[(m - 1) / 2](w + (size_t)g * group_bytes + (size_t)(at / block_of(f)) * (size_t)f->bytes, n, pairs, m, at > 0, y + g * GROUP, ldy);
    }
}

/* In place of MATMUL_: one row as elsewhere, more in pairs. */
#define MATMUL_PAIRS(type, tile) \
    TILE(type, 1, CALL_##tile) \
    static tile_fn *const type##_tiles[1] = {type##_1}; \
    PAIR_TILES(type, PAIR_CALL_##tile) \
    static void NAME(matmul_##type)(const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const void *a, int64_t lda, int m, float *y, \
                                    int64_t ldy) { \
        if (m == 1) columns(type##_tiles, w, group_bytes, n_groups, k, a, sizeof(act_unit), lda, 1, y, ldy); \
        else pair_columns(&type##_format, type##_pairs, w, group_bytes, n_groups, k, a, m, y, ldy); \
    }
