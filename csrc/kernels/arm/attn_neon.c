#include "simd_neon.h"

#include "../attn_tmpl.h"
