/* How many 8-bit multiply-adds a second this machine can do: the bound that long prompts run against. */
#ifndef PYLLM_ENGINE_PEAK_H
#define PYLLM_ENGINE_PEAK_H
#include "../base/err.h"
#include "../kernels/kernels.h"

/* With n_threads workers, median of several passes. */
int dot_peak(const kernels *k, int n_threads, double *macs_per_s, pyllm_error *err);
#endif
