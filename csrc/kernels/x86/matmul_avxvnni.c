#include "simd_avxvnni.h"

#include "act_x86.h"
#include "../matmul_tmpl.h"
