#include "simd_neon.h"

#include "../scan_tmpl.h"
