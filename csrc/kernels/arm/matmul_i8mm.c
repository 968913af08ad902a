#include "simd_i8mm.h"

#include "../matmul_tmpl.h"
