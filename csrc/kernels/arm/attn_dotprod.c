#include "simd_dotprod.h"

#define ONLY_QUANTIZED
#include "../attn_tmpl.h"
