#include "simd_avx512vnni.h"

#include "act_x86.h"
#include "../matmul_tmpl.h"
