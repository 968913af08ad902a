#include "simd_avxvnni.h"

#define ONLY_QUANTIZED
#include "../attn_tmpl.h"
