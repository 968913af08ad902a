#include "simd_avx2.h"

#include "../scan_tmpl.h"
