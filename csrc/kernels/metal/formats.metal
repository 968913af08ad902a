// Tensor types as they lie in a GGUF file (csrc/formats): each turns 16 consecutive values of a row, numbers 16*c to 16*c+15, into floats. `left` is
// how many the row still has from there on; only types without blocks can have fewer than 16, the rest is then 0. Rows begin at even
// addresses (F32: multiples of 4).

inline float half_at(device const uchar *p) { return float(*(device const half *)p); }

struct f32_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const float *p = (device const float *)row + 16 * c;
        for (int i = 0; i < 16; i++) w[i] = i < left ? p[i] : 0.0f;
    }
};

struct f16_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const half *p = (device const half *)row + 16 * c;
        for (int i = 0; i < 16; i++) w[i] = i < left ? float(p[i]) : 0.0f;
    }
};

struct bf16_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const ushort *p = (device const ushort *)row + 16 * c;
        for (int i = 0; i < 16; i++) w[i] = i < left ? as_type<float>(uint(p[i]) << 16) : 0.0f;
    }
};

// Nibble i of 16 bytes at q: the low or the high ones (shift 0 or 4), two bytes at a time.
inline void nibbles(device const uchar *q, int shift, thread int *v) {
    device const ushort *p = (device const ushort *)q;
    for (int i = 0; i < 8; i++) {
        int two = int(p[i]) >> shift;
        v[2 * i] = two & 15;
        v[2 * i + 1] = two >> 8 & 15;
    }
}

// The fifth bits of elements 16*half on: 32 bits at p.
inline void fifth_bits(device const uchar *p, int part, thread int *v) {
    int bits = int(*(device const ushort *)(p + 2 * part));
    for (int i = 0; i < 16; i++) v[i] |= (bits >> i & 1) << 4;
}

struct q4_0_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 2 * 18;
        int v[16];
        float d = half_at(b);
        nibbles(b + 2, c % 2 * 4, v);
        for (int i = 0; i < 16; i++) w[i] = d * float(v[i] - 8);
    }
};

struct q4_1_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 2 * 20;
        int v[16];
        float d = half_at(b), m = half_at(b + 2);
        nibbles(b + 4, c % 2 * 4, v);
        for (int i = 0; i < 16; i++) w[i] = d * float(v[i]) + m;
    }
};

struct q5_0_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 2 * 22;
        int v[16];
        float d = half_at(b);
        nibbles(b + 6, c % 2 * 4, v);
        fifth_bits(b + 2, c % 2, v);
        for (int i = 0; i < 16; i++) w[i] = d * float(v[i] - 16);
    }
};

struct q5_1_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 2 * 24;
        int v[16];
        float d = half_at(b), m = half_at(b + 2);
        nibbles(b + 8, c % 2 * 4, v);
        fifth_bits(b + 4, c % 2, v);
        for (int i = 0; i < 16; i++) w[i] = d * float(v[i]) + m;
    }
};

struct q8_0_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 2 * 34;
        device const char *q = (device const char *)b + 2 + c % 2 * 16;
        float d = half_at(b);
        for (int i = 0; i < 16; i++) w[i] = d * float(q[i]);
    }
};

constant float iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct iq4_nl_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 2 * 18;
        int v[16];
        float d = half_at(b);
        nibbles(b + 2, c % 2 * 4, v);
        for (int i = 0; i < 16; i++) w[i] = d * iq4_values[v[i]];
    }
};

// Scale and minimum, 6 bits each, of 32 elements: number j of 8 in 12 bytes.
inline void k_scales(device const uchar *s, int j, thread float *sc, thread float *mn) {
    *sc = float(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4);
    *mn = float(j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4);
}

struct q4_k_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 16 * 144;
        int v[16], at = c % 16;
        float sc, mn;
        k_scales(b + 4, at / 2, &sc, &mn);
        float d = half_at(b) * sc, m = half_at(b + 2) * mn;
        nibbles(b + 16 + at / 4 * 32 + at % 2 * 16, at / 2 % 2 * 4, v);
        for (int i = 0; i < 16; i++) w[i] = d * float(v[i]) - m;
    }
};

struct q5_k_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 16 * 176;
        int v[16], at = c % 16;
        float sc, mn;
        k_scales(b + 4, at / 2, &sc, &mn);
        float d = half_at(b) * sc, m = half_at(b + 2) * mn;
        nibbles(b + 48 + at / 4 * 32 + at % 2 * 16, at / 2 % 2 * 4, v);
        for (int i = 0; i < 16; i++) w[i] = d * float(v[i] | (b[16 + at % 2 * 16 + i] >> at / 2 & 1) << 4) - m;
    }
};

struct q6_k_rows {
    static void decode(device const uchar *row, int c, int left, thread float *w) {
        device const uchar *b = row + c / 16 * 210;
        int v[16], at = c % 16, part = at / 8, r = at % 8;     // r: of the 8 sixteenths of 128 elements
        float d = half_at(b + 208) * float(*((device const char *)b + 192 + at));
        nibbles(b + part * 64 + r % 4 * 16, r / 4 * 4, v);
        device const uchar *high = b + 128 + part * 32 + r % 2 * 16;
        for (int i = 0; i < 16; i++) w[i] = d * float((v[i] | (high[i] >> r / 2 * 2 & 3) << 4) - 32);
    }
};

// Every type that a matrix may have on this backend.
#define EVERY_TYPE(X) X(f32) X(f16) X(bf16) X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(q4_k) X(q5_k) X(q6_k) X(iq4_nl)
