/* Double-precision exp, log, pow, sin and cos from + - * / alone, so that tape numbers and angles are the same everywhere. */
#include "math.h"

#define LN2_HI 0x1.62e42fee00000p-1     /* 32 bits: k * this is exact for |k| < 2^21 */
#define LN2_LO 0x1.a39ef35793c76p-33
#define PIO2_1 0x1.921fb54400000p+0     /* pi/2 in parts of 33 bits: n * part is exact for |n| < 2^20 */
#define PIO2_2 0x1.0b4611a600000p-34
#define PIO2_3 0x1.3198a2e037073p-69
#define ROUND 6755399441055744.0        /* 1.5 * 2^52: adding it rounds to the nearest integer */

static double inf(void) { return bits_f64(0x7ff0000000000000u); }
static double nan64(void) { return bits_f64(0x7ff8000000000000u); }

double math_exp(double x) {
    if (x != x) return x;
    if (x > 709.7) return inf();
    if (x < -708.0) return 0;
    double n = (x * 1.4426950408889634 + ROUND) - ROUND, r = (x - n * LN2_HI) - n * LN2_LO, p = 1;
    for (int i = 14; i > 0; i--) p = p * r / i + 1;             /* Taylor; |r| <= 0.347, the first term left out is below 2^-60 */
    int64_t k = (int64_t)n, half = k / 2;
    return p * bits_f64((uint64_t)(half + 1023) << 52) * bits_f64((uint64_t)(k - half + 1023) << 52);
}

double math_log(double x) {
    if (x != x || x < 0) return nan64();
    if (x == 0) return -inf();
    if (x == inf()) return x;
    int64_t k = 0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        k = -54;
    }
    uint64_t u = f64_to_bits(x);
    k += (int64_t)(u >> 52) - 1023;
    double m = bits_f64((u & 0xfffffffffffffu) | 0x3ff0000000000000u);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        k++;
    }
    double f = m - 1, s = f / (2 + f), z = s * s, p = 0;        /* log m = 2 (s + s^3/3 + ...), |s| <= 0.172 */
    for (int i = 25; i > 1; i -= 2) p = (p + 1.0 / i) * z;
    return (double)k * LN2_HI + (2 * s + (2 * s * p + (double)k * LN2_LO));
}

double math_pow(double x, double y) { return math_exp(y * math_log(x)); }

/* x - n pi/2 in [-pi/4, pi/4], about that for large x; returns n mod 4. NaN from 2^51 on, near where ROUND ends. */
static int reduce(double x, double *r) {
    if (!(x > -0x1p51 && x < 0x1p51)) {
        *r = nan64();
        return 0;
    }
    double n = (x * 0.6366197723675814 + ROUND) - ROUND;
    *r = ((x - n * PIO2_1) - n * PIO2_2) - n * PIO2_3;
    return (int)((int64_t)n & 3);
}

static double sin_poly(double r) {
    double z = r * r, p = 0;
    for (int i = 19; i > 1; i -= 2) p = -(1 + p) * z / (double)(i * (i - 1));
    return r + r * p;
}

static double cos_poly(double r) {
    double z = r * r, p = 0;
    for (int i = 20; i > 0; i -= 2) p = -(1 + p) * z / (double)(i * (i - 1));
    return 1 + p;
}

double math_sin(double x) {
    double r;
    int n = reduce(x, &r);
    double y = n & 1 ? cos_poly(r) : sin_poly(r);
    return n & 2 ? -y : y;
}

double math_cos(double x) {
    double r;
    int n = reduce(x, &r) + 1;
    double y = n & 1 ? cos_poly(r) : sin_poly(r);
    return n & 2 ? -y : y;
}
