#include "simd_avxvnni.h"

#include "../quantize_tmpl.h"
