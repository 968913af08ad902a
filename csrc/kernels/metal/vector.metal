// Norms, angles, rope and element-wise ops.

enum { NORM_SIMDS = 4, MAP_THREADS = 256 };

// Sum over the threads of a threadgroup of NORM_SIMDS simdgroups; `parts` is threadgroup memory for one value of each.
inline float group_sum(float v, ushort lane, ushort sg, threadgroup float *parts) {
    v = simd_sum(v);
    threadgroup_barrier(mem_flags::mem_threadgroup);            // the last sum was read by all
    if (lane == 0) parts[sg] = v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float s = 0.0f;
    for (int i = 0; i < NORM_SIMDS; i++) s += parts[i];
    return s;
}

// Grid (parts of a row, rows).
kernel void norm(constant metal_norm_args &a [[buffer(0)]], device const float *x [[buffer(1)]], device const float *w [[buffer(2)]],
                 device const float *add [[buffer(3)]], device float *y [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                 ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) {
    threadgroup float parts[NORM_SIMDS];
    long at = (long(group.y) * a.parts + long(group.x)) * a.n;
    int w0 = a.shared ? 0 : int(group.x) * a.n, t = int(sg) * LANES + int(lane);
    float s = 0.0f;
    for (int i = t; i < a.n; i += NORM_SIMDS * LANES) s = fma(x[at + i], x[at + i], s);
    float r = 1.0f / sqrt(group_sum(s, lane, sg, parts) / float(a.n) + a.eps);
    for (int i = t; i < a.n; i += NORM_SIMDS * LANES) {
        float v = (x[at + i] * r) * w[w0 + i];
        y[at + i] = a.has_add ? v + add[at + i] : v;
    }
}

kernel void layernorm(constant metal_norm_args &a [[buffer(0)]], device const float *x [[buffer(1)]], device const float *w [[buffer(2)]],
                      device const float *bias [[buffer(3)]], device float *y [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                      ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) {
    threadgroup float parts[NORM_SIMDS];
    long at = (long(group.y) * a.parts + long(group.x)) * a.n;
    int w0 = a.shared ? 0 : int(group.x) * a.n, t = int(sg) * LANES + int(lane);
    float s = 0.0f, d = 0.0f;
    for (int i = t; i < a.n; i += NORM_SIMDS * LANES) s += x[at + i];
    float mean = group_sum(s, lane, sg, parts) / float(a.n);
    for (int i = t; i < a.n; i += NORM_SIMDS * LANES) d = fma(x[at + i] - mean, x[at + i] - mean, d);
    float r = 1.0f / sqrt(group_sum(d, lane, sg, parts) / float(a.n) + a.eps);
    for (int i = t; i < a.n; i += NORM_SIMDS * LANES) {
        float v = ((x[at + i] - mean) * r) * w[w0 + i];
        y[at + i] = a.has_bias ? v + bias[w0 + i] : v;
    }
}

// out[r] = mscale * [cos | sin] of pos[r] * freq[i]. Metal has no double: the product is kept as p + e, and whole turns are taken off p in three
// pieces of 2 pi, each by one fma. Grid (n / 32, rows).
kernel void angles(constant metal_angles_args &a [[buffer(0)]], device const float *freq [[buffer(1)]], device const int *pos [[buffer(2)]],
                   device float *out [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                   ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) {
    int i = int(group.x) * LANES + int(lane), row = int(group.y);
    if (i >= a.n) return;
    float x = float(pos[row]), p = x * freq[i], e = fma(x, freq[i], -p);
    float turns = rint(p * 0x1.45f306p-3f);
    float r = fma(-turns, 0x1.921fb6p+2f, p);
    r = fma(-turns, -0x1.777a5cp-23f, r);
    r = fma(-turns, -0x1.ee59dap-48f, r) + e;
    out[long(row) * 2 * a.n + i] = precise::cos(r) * a.mscale;
    out[long(row) * 2 * a.n + a.n + i] = precise::sin(r) * a.mscale;
}

// One head of one row: normalised if has_norm, then the first `rot` values turn in pairs. Grid (heads, rows), one simdgroup.
kernel void rope(constant metal_rope_args &a [[buffer(0)]], device const float *x [[buffer(1)]], device const float *angles [[buffer(2)]],
                 device const float *w [[buffer(3)]], device float *y [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                 ushort lane [[thread_index_in_simdgroup]], ushort sg [[simdgroup_index_in_threadgroup]]) {
    long at = (long(group.y) * a.heads + long(group.x)) * a.dim;
    float r = 1.0f;
    if (a.has_norm) {
        float s = 0.0f;
        for (int i = int(lane); i < a.dim; i += LANES) s = fma(x[at + i], x[at + i], s);
        r = 1.0f / sqrt(simd_sum(s) / float(a.dim) + a.eps);
    }
    int pairs = a.rot / 2;
    for (int i = int(lane); i < pairs; i += LANES) {
        int j = a.neox ? i : 2 * i, k = a.neox ? i + pairs : 2 * i + 1;
        float u = x[at + j], v = x[at + k], c = angles[long(group.y) * a.rot + i], s = angles[long(group.y) * a.rot + pairs + i];
        if (a.has_norm) {
            u = (u * r) * w[j];
            v = (v * r) * w[k];
        }
        y[at + j] = fma(u, c, -(v * s));
        y[at + k] = fma(u, s, v * c);
    }
    for (int i = a.rot + int(lane); i < a.dim; i += LANES) y[at + i] = a.has_norm ? (x[at + i] * r) * w[i] : x[at + i];
}

#define MAP_KERNEL(NAME, INPUTS, Y, VALUE) \
    kernel void NAME(constant metal_map_args &a [[buffer(0)]], INPUTS, device float *y [[buffer(Y)]], \
                     uint3 group [[threadgroup_position_in_grid]], ushort lane [[thread_index_in_simdgroup]], \
                     ushort sg [[simdgroup_index_in_threadgroup]]) { \
        int i = int(group.x) * MAP_THREADS + int(sg) * LANES + int(lane); \
        if (i < a.n) y[i] = VALUE; \
    }
#define ONE_INPUT device const float *x [[buffer(1)]]
#define TWO_INPUTS device const float *x [[buffer(1)]], device const float *z [[buffer(2)]]
#define ROW_INPUT device const float *x [[buffer(1)]], device const int *ids [[buffer(2)]]

MAP_KERNEL(add, TWO_INPUTS, 3, x[i] + z[i])
MAP_KERNEL(scale, ONE_INPUT, 2, x[i] * a.by)
MAP_KERNEL(softcap, ONE_INPUT, 2, a.by * tanh32(x[i] / a.by))
MAP_KERNEL(act, ONE_INPUT, 2, activate(a.act, x[i]))
MAP_KERNEL(glu, TWO_INPUTS, 3, activate_gated(a.act, x[a.gate_width == a.width ? i : i / a.width], z[i]))
MAP_KERNEL(rows, ROW_INPUT, 3, x[long(ids[i / a.width]) * a.width + i % a.width])
