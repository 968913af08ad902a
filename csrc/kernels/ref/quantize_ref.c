/* Nothing is forced in line: that compiles in a tenth of the time, and speed is for the levels above. */
#define INLINE static inline __attribute__((unused))
#include "simd_ref.h"

#include "../quantize_tmpl.h"
