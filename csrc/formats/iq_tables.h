/* Codebooks of the IQ types (iq_tables.c). iq1_s_grid holds 8 times the value, so that the offset of 1/8 is an integer too. */
#ifndef PYLLM_FORMATS_IQ_TABLES_H
#define PYLLM_FORMATS_IQ_TABLES_H
#include <stdint.h>

extern const uint64_t iq2_xxs_grid[256], iq2_xs_grid[512], iq2_s_grid[1024], iq1_s_grid[2048];
extern const uint32_t iq3_xxs_grid[256], iq3_s_grid[512];
#endif
