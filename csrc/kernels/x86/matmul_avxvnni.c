#include "simd_avxvnni.h"

#include "../matmul_tmpl.h"
