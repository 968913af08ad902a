/* How fast this machine reads memory: the bound that decoding runs against. */
#ifndef PYLLM_BASE_BANDWIDTH_H
#define PYLLM_BASE_BANDWIDTH_H
#include "err.h"

#include <stdint.h>

/* Reads a buffer of `bytes` several times with n_threads workers and stores the median rate in *bytes_per_s. */
int read_bandwidth(int n_threads, int64_t bytes, double *bytes_per_s, pyllm_error *err);
#endif
