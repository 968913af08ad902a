#include "simd_neon.h"

#include "../vec_tmpl.h"
