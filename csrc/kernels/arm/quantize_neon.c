#include "simd_neon.h"

#include "../quantize_tmpl.h"
