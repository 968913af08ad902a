#include "simd_avx2.h"

#include "act_x86.h"
#include "../matmul_tmpl.h"
