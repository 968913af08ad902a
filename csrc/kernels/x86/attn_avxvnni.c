#include "simd_avxvnni.h"

#define ONLY_Q8_0
#include "../attn_tmpl.h"
