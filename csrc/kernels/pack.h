/* The packed weight layout: groups of 16 rows; within a group, block column after block column; within a block column the fields of
 * the 16 blocks transposed, so that one SIMD lane is one output row. Same bytes for every ISA.
 *
 * A type's fields (pack.c, one table row per type) are runs of `count` elements of `width` bytes at `offset` of the file's block;
 * in the packed block column each element becomes 16 neighbours, row 0..15. Widths are 1, 2 and 4; types without a fast kernel have
 * one field as wide as the block (the 16 file blocks one after the other). Columns of super-blocks are padded to whole cache lines: loads that straddle
 * lines cost Q6_K a third of its speed at one row. Rows past the last are zero bytes. */
#ifndef PYLLM_KERNELS_PACK_H
#define PYLLM_KERNELS_PACK_H
#include "kernels.h"

/* Bytes of one packed block column, and of a packed group of 16 rows of k elements. */
size_t pack_column_bytes(uint32_t type);
size_t pack_group_bytes(uint32_t type, int64_t k);
/* rows: 1..16 file rows (row_bytes apart) -> one packed group. */
void pack_group(uint32_t type, const uint8_t *rows, size_t row_bytes, int n_rows, int64_t k, uint8_t *dst);
/* File bytes of row r (0..15) of a packed group: the inverse, for tied embeddings. */
void unpack_row(uint32_t type, const uint8_t *group, int r, int64_t k, uint8_t *dst);

/* pack_codebook.c: whether a type is one of IQ1 to IQ3; one block column of such a type, and the block of row r back. */
int is_codebook(uint32_t type);
void pack_codebook(uint32_t type, const uint8_t *const *rows, uint8_t *dst);
void unpack_codebook(uint32_t type, const uint8_t *column, int r, uint8_t *block);
#endif
