#include "simd_avx512vnni.h"

#include "../vec_tmpl.h"
