#include "simd_avx512vnni.h"

#include "../scan_tmpl.h"
