#include "simd_avx2.h"

#include "../vec_tmpl.h"
