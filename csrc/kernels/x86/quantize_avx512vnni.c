#include "simd_avx512vnni.h"

#include "../quantize_tmpl.h"
