#include "simd_avxvnni.h"

#include "../vec_tmpl.h"
