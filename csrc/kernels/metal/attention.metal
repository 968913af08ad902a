// Attention over the paged KV cache. A page holds K and V of 16 tokens of one layer for each kv head (csrc/kernels/kernels.h): K has the token as
// the fast index, V the dimension. Row r of the batch is position pos[r] of sequence seq[r] and sees positions up to its own, `window` of
// them at most. Positions that no row sees are never read, those that one row does not see count nothing for it.
//
// A state is (m, l, o): maximum of the scores, sum of e^(s - m), values weighted by these. States of the parts of a row merge in the order of the parts.

// Types of the cache: element d of token t of a page of K, of V.
struct kv_f32 {
    static float k(device const uchar *p, int dim, int d, int t) { return ((device const float *)p)[d * PAGE + t]; }
    static float v(device const uchar *p, int dim, int d, int t) { return ((device const float *)p)[t * dim + d]; }
    static void put_k(device uchar *p, int dim, int t, device const float *x, ushort lane) {
        for (int d = int(lane); d < dim; d += LANES) ((device float *)p)[d * PAGE + t] = x[d];
    }
    static void put_v(device uchar *p, int dim, int t, device const float *x, ushort lane) {
        for (int d = int(lane); d < dim; d += LANES) ((device float *)p)[t * dim + d] = x[d];
    }
};

struct kv_f16 {
    static float k(device const uchar *p, int dim, int d, int t) { return float(((device const half *)p)[d * PAGE + t]); }
    static float v(device const uchar *p, int dim, int d, int t) { return float(((device const half *)p)[t * dim + d]); }
    static void put_k(device uchar *p, int dim, int t, device const float *x, ushort lane) {
        for (int d = int(lane); d < dim; d += LANES) ((device half *)p)[d * PAGE + t] = half(x[d]);
    }
    static void put_v(device uchar *p, int dim, int t, device const float *x, ushort lane) {
        for (int d = int(lane); d < dim; d += LANES) ((device half *)p)[t * dim + d] = half(x[d]);
    }
};

// 32 values, one a lane, to codes in [-127, 127] and a scale; a value that is not finite makes the scale NaN.
inline char kv_code(float x, thread float *d) {
    float amax = simd_max(fabs(x)), bad = simd_max(isfinite(x) ? 0.0f : 1.0f);
    *d = bad > 0.0f ? NAN : amax < 1e-30f ? 0.0f : amax / 127.0f;
    return bad > 0.0f || amax < 1e-30f ? char(0) : char(int(rint(x * (127.0f / amax))));
}

enum { K_BLOCK = 2 * PAGE + 32 * PAGE };        // bytes of 32 dims of a K page: scales, then codes in fours

struct kv_q8_0 {
    static float k(device const uchar *p, int dim, int d, int t) {
        device const uchar *b = p + d / 32 * K_BLOCK;
        return half_at(b + 2 * t) * float(*((device const char *)b + 2 * PAGE + (d % 32 / 4 * PAGE + t) * 4 + d % 4));
    }
    static float v(device const uchar *p, int dim, int d, int t) {
        int blocks = dim / 32;
        return half_at(p + 2 * (t * blocks + d / 32)) * float(*((device const char *)p + 2 * PAGE * blocks + t * dim + d));
    }
    static void put_k(device uchar *p, int dim, int t, device const float *x, ushort lane) {
        for (int b = 0; b < dim / 32; b++) {
            float d;
            char q = kv_code(x[32 * b + int(lane)], &d);
            device uchar *at = p + b * K_BLOCK;
            if (lane == 0) *(device half *)(at + 2 * t) = half(d);
            *((device char *)at + 2 * PAGE + (int(lane) / 4 * PAGE + t) * 4 + int(lane) % 4) = q;
        }
    }
    static void put_v(device uchar *p, int dim, int t, device const float *x, ushort lane) {
        int blocks = dim / 32;
        for (int b = 0; b < blocks; b++) {
            float d;
            char q = kv_code(x[32 * b + int(lane)], &d);
            if (lane == 0) *(device half *)(p + 2 * (t * blocks + b)) = half(d);
            *((device char *)p + 2 * PAGE * blocks + t * dim + 32 * b + int(lane)) = q;
        }
    }
};

// Where K of a kv head begins in the page of position p of sequence s.
inline long page_at(constant metal_attn_args &a, device const int *table, int s, int p, int kv_head) {
    long page = table[(long(s) * a.n_groups + a.group) * a.max_pages + p / PAGE];
    return page * a.page_bytes + a.layer_offset + long(kv_head) * 2 * a.k_bytes;
}

// Grid (kv heads, rows), one simdgroup.
template <typename T>
void kv_store(constant metal_attn_args &a, device const float *k, device const float *v, device const int *pos, device const int *seq,
              device const int *table, device uchar *pool, uint3 group, ushort lane) {
    int row = int(group.y), head = int(group.x);
    device uchar *p = pool + page_at(a, table, seq[row], pos[row], head);
    long at = (long(row) * a.kv_heads + head) * a.dim;
    T::put_k(p, a.dim, pos[row] % PAGE, k + at, lane);
    T::put_v(p + a.k_bytes, a.dim, pos[row] % PAGE, v + at, lane);
}

inline int first_seen(constant metal_attn_args &a, int pos) { return a.window > 0 ? max(pos - a.window + 1, 0) : 0; }

inline float scored(constant metal_attn_args &a, float dot) {
    float s = dot * a.scale;
    return a.softcap != 0.0f ? a.softcap * tanh32(s / a.softcap) : s;
}

enum { DECODE_SIMDS = 4 };

// One row: grid (heads, rows, splits). The row's pages are cut into `splits` parts of a threadgroup each, and a part's pages are dealt to the
// simdgroups. Lane l scores token l % 16 with half of the dims and gathers values of dims l, l + 32, ... Writes the output, or with splits the
// part's state: dim values, then m and l. D: the largest head.
template <typename T, int D>
void attn_decode(constant metal_attn_args &a, device const float *q, device const int *pos, device const int *seq, device const int *table,
                 device const uchar *pool, device float *y, uint3 group, ushort lane, ushort sg, threadgroup float *qs, threadgroup float *states) {
    int head = int(group.x), row = int(group.y), at = pos[row], first = first_seen(a, at), kv_head = head / (a.heads / a.kv_heads);
    long state = (long(row) * a.heads + head) * a.splits + int(group.z);
    for (int d = int(sg) * LANES + int(lane); d < a.dim; d += DECODE_SIMDS * LANES) qs[d] = q[(long(row) * a.heads + head) * a.dim + d];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    int page0 = first / PAGE, pages = at / PAGE + 1 - page0, share = (pages + a.splits - 1) / a.splits;
    int begin = page0 + int(group.z) * share, end = min(begin + share, page0 + pages);
    float m = LOWEST, l = 0.0f, o[D / 32];
    for (int j = 0; j < D / 32; j++) o[j] = 0.0f;
    int token = int(lane) % PAGE, d0 = int(lane) / PAGE * (a.dim / 2);
    for (int p = begin + int(sg); p < end; p += DECODE_SIMDS) {
        int lo = max(first - p * PAGE, 0), hi = min(at + 1 - p * PAGE, int(PAGE));
        device const uchar *kp = pool + page_at(a, table, seq[row], p * PAGE, kv_head);
        device const uchar *vp = kp + a.k_bytes;
        bool seen = token >= lo && token < hi;
        float s = 0.0f;
        if (seen)
            for (int d = d0; d < d0 + a.dim / 2; d++) s = fma(qs[d], T::k(kp, a.dim, d, token), s);
        s = s + simd_shuffle_xor(s, ushort(16));
        s = seen ? scored(a, s) : LOWEST;
        float peak = max(m, simd_max(s)), keep = exp32(m - peak), weight = seen ? exp32(s - peak) : 0.0f;
        l = l * keep + simd_sum(int(lane) < PAGE ? weight : 0.0f);
        m = peak;
        for (int j = 0; j < D / 32; j++) o[j] *= keep;
        for (int t = lo; t < hi; t++) {
            float w = simd_shuffle(weight, ushort(t));
            for (int j = 0; j < D / 32; j++) {
                int d = 32 * j + int(lane);
                if (d < a.dim) o[j] = fma(w, T::v(vp, a.dim, d, t), o[j]);
            }
        }
    }
    threadgroup float *mine = states + int(sg) * (D + 2);
    for (int j = 0; j < D / 32; j++) mine[32 * j + int(lane)] = o[j];
    if (lane == 0) {
        mine[D] = m;
        mine[D + 1] = l;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float peak = LOWEST, sum = 0.0f, keep[DECODE_SIMDS];
    for (int i = 0; i < DECODE_SIMDS; i++) peak = max(peak, states[i * (D + 2) + D]);
    for (int i = 0; i < DECODE_SIMDS; i++) {
        keep[i] = exp32(states[i * (D + 2) + D] - peak);
        sum = fma(states[i * (D + 2) + D + 1], keep[i], sum);
    }
    long out = a.splits > 1 ? state * (a.dim + 2) : (long(row) * a.heads + head) * a.dim;
    for (int d = int(sg) * LANES + int(lane); d < a.dim; d += DECODE_SIMDS * LANES) {
        float v = 0.0f;
        for (int i = 0; i < DECODE_SIMDS; i++) v = fma(states[i * (D + 2) + d], keep[i], v);
        y[out + d] = a.splits > 1 ? v : v / sum;
    }
    if (a.splits > 1 && sg == 0 && lane == 0) {
        y[out + a.dim] = peak;
        y[out + a.dim + 1] = sum;
    }
}

// The states of a row's parts to its output: grid (heads, rows), one simdgroup.
kernel void attn_merge(constant metal_attn_args &a [[buffer(0)]], device const float *states [[buffer(1)]], device float *y [[buffer(2)]],
                       uint3 group [[threadgroup_position_in_grid]], ushort lane [[thread_index_in_simdgroup]],
                       ushort sg [[simdgroup_index_in_threadgroup]]) {
    long head = long(group.y) * a.heads + long(group.x);
    device const float *s = states + head * a.splits * (a.dim + 2);
    float peak = LOWEST, sum = 0.0f;
    for (int i = 0; i < a.splits; i++) peak = max(peak, s[i * (a.dim + 2) + a.dim]);
    for (int i = 0; i < a.splits; i++) sum = fma(s[i * (a.dim + 2) + a.dim + 1], exp32(s[i * (a.dim + 2) + a.dim] - peak), sum);
    for (int d = int(lane); d < a.dim; d += LANES) {
        float v = 0.0f;
        for (int i = 0; i < a.splits; i++) v = fma(s[i * (a.dim + 2) + d], exp32(s[i * (a.dim + 2) + a.dim] - peak), v);
        y[head * a.dim + d] = v / sum;
    }
}

enum { TILE_QUERIES = 8, PREFILL_SIMDS = 4, STAGE_DIMS = 64 };
enum { STAGE = STAGE_DIMS * PAGE, SCORES = TILE_QUERIES * PAGE, PRIVATE = STAGE + SCORES + 64 };      // floats of one simdgroup

// Up to 8 consecutive rows of one sequence, tiles[2*i] the first and tiles[2*i + 1] how many: grid (heads, tiles). The pages that they see are dealt to
// the simdgroups; each lays 64 dims of K or V of a page out as floats and multiplies 8x8 at a time. D: the largest head.
template <typename T, int D>
void attn_prefill(constant metal_attn_args &a, device const float *q, device const int *pos, device const int *seq, device const int *tiles,
                  device const int *table, device const uchar *pool, device float *y, uint3 group, ushort lane, ushort sg,
                  threadgroup float *qs, threadgroup float *own, threadgroup float *states) {
    int head = int(group.x), row0 = tiles[2 * int(group.y)], n = tiles[2 * int(group.y) + 1], kv_head = head / (a.heads / a.kv_heads);
    int thread_id = int(sg) * LANES + int(lane);
    for (int i = thread_id; i < TILE_QUERIES * a.dim; i += PREFILL_SIMDS * LANES) {
        int r = i / a.dim;
        qs[i] = r < n ? q[(long(row0 + r) * a.heads + head) * a.dim + i % a.dim] : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float *stage = own + int(sg) * PRIVATE;
    threadgroup float *scores = stage + STAGE;
    threadgroup float *diagonal = scores + SCORES;
    int begin = first_seen(a, pos[row0]), end = pos[row0] + n;              // positions that any row sees
    int r = int(lane) / 4, t0 = int(lane) % 4 * 4;                          // this lane's row and 4 tokens of the scores
    int my_pos = pos[row0] + r, my_first = first_seen(a, my_pos);
    float m = LOWEST, l = 0.0f;
    simdgroup_float8x8 o[D / 8];
    for (int j = 0; j < D / 8; j++) o[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (int p = begin / PAGE + int(sg); p * PAGE < end; p += PREFILL_SIMDS) {
        int lo = max(begin - p * PAGE, 0), hi = min(end - p * PAGE, int(PAGE));
        device const uchar *kp = pool + page_at(a, table, seq[row0], p * PAGE, kv_head);
        device const uchar *vp = kp + a.k_bytes;
        simdgroup_float8x8 dots[2];
        for (int j = 0; j < 2; j++) dots[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        for (int d0 = 0; d0 < a.dim; d0 += STAGE_DIMS) {
            int dims = min(int(STAGE_DIMS), a.dim - d0);
            for (int i = int(lane); i < dims * PAGE; i += LANES) {
                int t = i % PAGE;
                stage[i] = t >= lo && t < hi ? T::k(kp, a.dim, d0 + i / PAGE, t) : 0.0f;
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            for (int d = 0; d < dims; d += 8) {
                simdgroup_float8x8 left, right;
                simdgroup_load(left, qs + d0 + d, a.dim);
                for (int j = 0; j < 2; j++) {
                    simdgroup_load(right, stage + d * PAGE + 8 * j, PAGE);
                    simdgroup_multiply_accumulate(dots[j], left, right, dots[j]);
                }
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
        for (int j = 0; j < 2; j++) simdgroup_store(dots[j], scores + 8 * j, PAGE);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        float s[4], peak = m, sum = 0.0f;
        for (int i = 0; i < 4; i++) {
            int at = p * PAGE + t0 + i;
            s[i] = at >= my_first && at <= my_pos && r < n ? scored(a, scores[r * PAGE + t0 + i]) : LOWEST;
            peak = max(peak, s[i]);
        }
        peak = max(peak, simd_shuffle_xor(peak, ushort(1)));
        peak = max(peak, simd_shuffle_xor(peak, ushort(2)));
        for (int i = 0; i < 4; i++) {
            float e = s[i] > LOWEST ? exp32(s[i] - peak) : 0.0f;
            scores[r * PAGE + t0 + i] = e;
            sum += e;
        }
        sum += simd_shuffle_xor(sum, ushort(1));
        sum += simd_shuffle_xor(sum, ushort(2));
        float keep = exp32(m - peak);
        l = l * keep + sum;
        m = peak;
        for (int i = 0; i < 2; i++) diagonal[r * 8 + int(lane) % 4 * 2 + i] = r == int(lane) % 4 * 2 + i ? keep : 0.0f;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_float8x8 kept, weights[2];
        simdgroup_load(kept, diagonal, 8);
        for (int j = 0; j < 2; j++) simdgroup_load(weights[j], scores + 8 * j, PAGE);
        for (int b = 0; b < D / STAGE_DIMS; b++) {          // a number of turns that is known: o stays in registers
            int d0 = STAGE_DIMS * b, dims = min(int(STAGE_DIMS), a.dim - d0);
            if (dims <= 0) break;
            for (int i = int(lane); i < dims * PAGE; i += LANES) {
                int t = i / dims;
                stage[i] = t >= lo && t < hi ? T::v(vp, a.dim, d0 + i % dims, t) : 0.0f;
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            for (int j = 0; j < STAGE_DIMS / 8; j++) {
                if (8 * j >= dims) break;
                simdgroup_float8x8 right, sum;
                simdgroup_multiply(sum, kept, o[STAGE_DIMS / 8 * b + j]);
                for (int i = 0; i < 2; i++) {
                    simdgroup_load(right, stage + 8 * i * dims + 8 * j, dims);
                    simdgroup_multiply_accumulate(sum, weights[i], right, sum);
                }
                o[STAGE_DIMS / 8 * b + j] = sum;
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
        }
    }
    if (lane % 4 == 0) {
        states[(int(sg) * TILE_QUERIES + r) * 2] = m;
        states[(int(sg) * TILE_QUERIES + r) * 2 + 1] = l;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float peak = LOWEST;
    for (int i = 0; i < PREFILL_SIMDS; i++) peak = max(peak, states[(i * TILE_QUERIES + r) * 2]);
    for (int i = 0; i < 2; i++) diagonal[r * 8 + int(lane) % 4 * 2 + i] = r == int(lane) % 4 * 2 + i ? exp32(m - peak) : 0.0f;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 kept;
    simdgroup_load(kept, diagonal, 8);
    for (int turn = 0; turn < PREFILL_SIMDS; turn++) {          // the simdgroups' values add up where the queries were
        if (int(sg) == turn)
            for (int j = 0; j < D / 8; j++) {
                if (8 * j >= a.dim) break;
                simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
                if (turn > 0) simdgroup_load(sum, qs + 8 * j, a.dim);
                simdgroup_multiply_accumulate(sum, kept, o[j], sum);
                simdgroup_store(sum, qs + 8 * j, a.dim);
            }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int i = thread_id; i < n * a.dim; i += PREFILL_SIMDS * LANES) {
        int row = i / a.dim;
        float top = LOWEST, sum = 0.0f;
        for (int k = 0; k < PREFILL_SIMDS; k++) top = max(top, states[(k * TILE_QUERIES + row) * 2]);
        for (int k = 0; k < PREFILL_SIMDS; k++)
            sum = fma(states[(k * TILE_QUERIES + row) * 2 + 1], exp32(states[(k * TILE_QUERIES + row) * 2] - top), sum);
        y[(long(row0 + row) * a.heads + head) * a.dim + i % a.dim] = qs[i] / sum;
    }
}

#define ATTN_KERNELS(T, D) \
    kernel void attn_decode_##T##_##D(constant metal_attn_args &a [[buffer(0)]], device const float *q [[buffer(1)]], \
                                      device const int *pos [[buffer(2)]], device const int *seq [[buffer(3)]], \
                                      device const int *table [[buffer(4)]], device const uchar *pool [[buffer(5)]], \
                                      device float *y [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]], \
                                      ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) { \
        threadgroup float qs[D]; \
        threadgroup float states[DECODE_SIMDS * (D + 2)]; \
        attn_decode<kv_##T, D>(a, q, pos, seq, table, pool, y, group, lane, sg, qs, states); \
    } \
    kernel void attn_prefill_##T##_##D(constant metal_attn_args &a [[buffer(0)]], device const float *q [[buffer(1)]], \
                                       device const int *pos [[buffer(2)]], device const int *seq [[buffer(3)]], \
                                       device const int *tiles [[buffer(4)]], device const int *table [[buffer(5)]], \
                                       device const uchar *pool [[buffer(6)]], device float *y [[buffer(7)]], \
                                       uint3 group [[threadgroup_position_in_grid]], ushort lane [[thread_index_in_simdgroup]], \
                                       ushort sg [[simdgroup_index_in_threadgroup]]) { \
        threadgroup float qs[TILE_QUERIES * D]; \
        threadgroup float own[PREFILL_SIMDS * PRIVATE]; \
        threadgroup float states[PREFILL_SIMDS * TILE_QUERIES * 2]; \
        attn_prefill<kv_##T, D>(a, q, pos, seq, tiles, table, pool, y, group, lane, sg, qs, own, states); \
    }
#define KV_KERNELS(T) \
    kernel void kv_store_##T(constant metal_attn_args &a [[buffer(0)]], device const float *k [[buffer(1)]], device const float *v [[buffer(2)]], \
                             device const int *pos [[buffer(3)]], device const int *seq [[buffer(4)]], device const int *table [[buffer(5)]], \
                             device uchar *pool [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]], \
                             ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) { \
        kv_store<kv_##T>(a, k, v, pos, seq, table, pool, group, lane); \
    } \
    ATTN_KERNELS(T, 64) ATTN_KERNELS(T, 128) ATTN_KERNELS(T, 256)
KV_KERNELS(f32) KV_KERNELS(f16) KV_KERNELS(q8_0)
