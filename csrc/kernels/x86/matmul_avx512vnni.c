#include "simd_avx512vnni.h"

#include "../matmul_tmpl.h"
