#include "simd_neon.h"

#include "../matmul_tmpl.h"
