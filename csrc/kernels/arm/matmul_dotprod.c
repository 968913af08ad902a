#include "simd_dotprod.h"

#include "../matmul_tmpl.h"
