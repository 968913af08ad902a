// Products with matrices, and rows out of them.

enum { MATVEC_SIMDS = 4, MATVEC_ROWS = 4 };       // simdgroups of a threadgroup, and output rows of each
enum { TILE_ROWS = 32, TILE_OUTS = 64, TILE_K = 32 };      // of a matmul's threadgroup of 4 simdgroups

inline void store_product(constant metal_linear_args &a, device const float *bias, device const float *add, device float *y, int row, int out,
                          float v) {
    long at = long(row) * a.n + out;
    if (a.has_bias) v += bias[out];
    if (a.act >= 0) v = activate(a.act, v);
    y[at] = a.has_add ? v + add[at] : v;
}

// A few input rows: grid (outputs / 16, rows). The lanes of a simdgroup take turns at the sixteens of a row.
template <typename W>
void matvec(constant metal_linear_args &a, device const uchar *w, device const float *x, device const float *bias, device const float *add,
            device float *y, uint3 group, ushort lane, ushort sg) {
    int first = (int(group.x) * MATVEC_SIMDS + int(sg)) * MATVEC_ROWS, row = int(group.y);
    int rows = min(int(MATVEC_ROWS), a.n - first);
    device const float *in = x + long(row) * a.k;
    float sum[MATVEC_ROWS] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int c = int(lane); 16 * c < a.k; c += LANES) {
        int left = a.k - 16 * c;
        float v[16], u[16];
        for (int i = 0; i < 16; i++) v[i] = i < left ? in[16 * c + i] : 0.0f;
        for (int r = 0; r < MATVEC_ROWS; r++) {         // a number of turns that is known: sum stays in registers
            if (r >= rows) break;
            W::decode(w + long(first + r) * a.row_bytes, c, left, u);
            for (int i = 0; i < 16; i++) sum[r] = fma(u[i], v[i], sum[r]);
        }
    }
    for (int r = 0; r < MATVEC_ROWS; r++) {
        if (r >= rows) break;
        float s = simd_sum(sum[r]);
        if (lane == 0) store_product(a, bias, add, y, row, first + r, s);
    }
}

// Many input rows: grid (outputs / 64, rows / 32). Each threadgroup lays 32 columns of its rows and of its outputs out as floats, then each
// simdgroup multiplies 16 rows with 32 outputs, 8x8 at a time.
template <typename W>
void matmul(constant metal_linear_args &a, device const uchar *w, device const float *x, device const float *bias, device const float *add,
            device float *y, uint3 group, ushort lane, ushort sg, threadgroup float *tile) {
    threadgroup float *wt = tile;                           // [64 outputs][32]
    threadgroup float *xt = tile + TILE_OUTS * TILE_K;      // [32 rows][32]
    int t = int(sg) * LANES + int(lane), out0 = int(group.x) * TILE_OUTS, row0 = int(group.y) * TILE_ROWS;
    int m0 = int(sg) / 2 * 16, n0 = int(sg) % 2 * 32;
    simdgroup_float8x8 acc[2][4];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) acc[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (int k0 = 0; k0 < a.k; k0 += TILE_K) {
        int out = out0 + t / 2, left = a.k - k0 - t % 2 * 16;
        float u[16];
        if (out < a.n && left > 0) {
            W::decode(w + long(out) * a.row_bytes, k0 / 16 + t % 2, left, u);
        } else {
            for (int i = 0; i < 16; i++) u[i] = 0.0f;
        }
        for (int i = 0; i < 16; i++) wt[t / 2 * TILE_K + t % 2 * 16 + i] = u[i];
        int row = row0 + t / 4, col = k0 + t % 4 * 8;
        for (int i = 0; i < 8; i++) xt[t / 4 * TILE_K + t % 4 * 8 + i] = row < a.rows && col + i < a.k ? x[long(row) * a.k + col + i] : 0.0f;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int k = 0; k < TILE_K; k += 8) {
            simdgroup_float8x8 left8[2], right8[4];
            for (int i = 0; i < 2; i++) simdgroup_load(left8[i], xt + (m0 + 8 * i) * TILE_K + k, TILE_K);
            for (int j = 0; j < 4; j++) simdgroup_load(right8[j], wt + (n0 + 8 * j) * TILE_K + k, TILE_K, ulong2(0, 0), true);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) simdgroup_multiply_accumulate(acc[i][j], left8[i], right8[j], acc[i][j]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) simdgroup_store(acc[i][j], tile + (m0 + 8 * i) * TILE_OUTS + n0 + 8 * j, TILE_OUTS);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = t; i < TILE_ROWS * TILE_OUTS; i += 4 * LANES) {
        int row = row0 + i / TILE_OUTS, out = out0 + i % TILE_OUTS;
        if (row < a.rows && out < a.n) store_product(a, bias, add, y, row, out, tile[i]);
    }
}

// Rows of a matrix by number: grid (width / 512, rows), one simdgroup.
template <typename W>
void embed(constant metal_embed_args &a, device const uchar *w, device const int *ids, device float *y, uint3 group, ushort lane) {
    int c = int(group.x) * LANES + int(lane), row = int(group.y), left = a.width - 16 * c;
    if (left <= 0) return;
    float u[16];
    W::decode(w + long(ids[row]) * a.row_bytes, c, left, u);
    for (int i = 0; i < min(left, 16); i++) y[long(row) * a.width + 16 * c + i] = a.scale * u[i];
}

#define MATRIX_KERNELS(T) \
    kernel void matvec_##T(constant metal_linear_args &a [[buffer(0)]], device const uchar *w [[buffer(1)]], device const float *x [[buffer(2)]], \
                           device const float *bias [[buffer(3)]], device const float *add [[buffer(4)]], device float *y [[buffer(5)]], \
                           uint3 group [[threadgroup_position_in_grid]], ushort lane [[thread_index_in_simdgroup]], \
                           ushort sg [[simdgroup_index_in_threadgroup]]) { \
        matvec<T##_rows>(a, w, x, bias, add, y, group, lane, sg); \
    } \
    kernel void matmul_##T(constant metal_linear_args &a [[buffer(0)]], device const uchar *w [[buffer(1)]], device const float *x [[buffer(2)]], \
                           device const float *bias [[buffer(3)]], device const float *add [[buffer(4)]], device float *y [[buffer(5)]], \
                           uint3 group [[threadgroup_position_in_grid]], ushort lane [[thread_index_in_simdgroup]], \
                           ushort sg [[simdgroup_index_in_threadgroup]]) { \
        threadgroup float tile[TILE_OUTS * TILE_K + TILE_ROWS * TILE_K]; \
        matmul<T##_rows>(a, w, x, bias, add, y, group, lane, sg, tile); \
    } \
    kernel void embed_##T(constant metal_embed_args &a [[buffer(0)]], device const uchar *w [[buffer(1)]], device const int *ids [[buffer(2)]], \
                          device float *y [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]], \
                          ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) { \
        embed<T##_rows>(a, w, ids, y, group, lane); \
    }
EVERY_TYPE(MATRIX_KERNELS)
