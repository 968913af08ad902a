#include "simd_avxvnni.h"

#include "../attn_tmpl.h"
