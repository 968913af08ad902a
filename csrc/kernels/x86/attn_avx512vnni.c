#include "simd_avx512vnni.h"

#include "../attn_tmpl.h"
