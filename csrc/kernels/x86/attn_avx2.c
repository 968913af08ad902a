#include "simd_avx2.h"

#include "../attn_tmpl.h"
