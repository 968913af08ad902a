/* The rotation of q4_0 KV: an orthonormal Hadamard transform along the dims of a head, which is its own inverse. Products of rotated keys and queries are
 * those of the plain ones, and no dim of a rotated vector sticks out, so that 4 bits do. QuaRot, arXiv 2404.00456. */
#ifndef PYLLM_KERNELS_ROTATE_H
#define PYLLM_KERNELS_ROTATE_H

/* Dims that turn together: the largest power of 2 in dim, at most 64, so that keys whose first values are the values (512 of 576) turn as these do. */
static inline int rotate_span(int dim) { return (dim & -dim) < 64 ? dim & -dim : 64; }

/* x[dim] in place; dim a multiple of 32. Pairs 1, 2, 4, ... apart become their sum and difference, at last all are scaled. Every number of a stage is
   one operation on two of the stage before: the same in whatever order. */
static inline void rotate(float *x, int dim) {
    int n = rotate_span(dim);
    float root = n == 64 ? 0.125f : 0x1.6a09e6p-3f;     /* 1/sqrt(n) */
    for (int h = 1; h < n; h *= 2)
        for (int i = 0; i < dim; i += 2 * h)
            for (int j = i; j < i + h; j++) {
                float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
    for (int i = 0; i < dim; i++) x[i] *= root;
}
#endif
