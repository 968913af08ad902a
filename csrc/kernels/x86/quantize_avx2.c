#include "simd_avx2.h"

#include "../quantize_tmpl.h"
