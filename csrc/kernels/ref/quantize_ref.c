#include "simd_ref.h"

#include "../quantize_tmpl.h"
