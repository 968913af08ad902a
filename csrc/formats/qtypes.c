#include "formats.h"

static const qtype_info types[QTYPE_COUNT] = {
#define QTYPE(NAME, name, id, elems, bytes, act) [id] = {#name, elems, bytes, act},
#include "qtypes.def"
#undef QTYPE
};

const qtype_info *qtype_get(uint32_t type) { return type < QTYPE_COUNT && types[type].name ? &types[type] : NULL; }

int format_units(uint32_t type) {
    return type == QTYPE_NVFP4 || type == QTYPE_Q1_0 ? 4 : type == QTYPE_Q2_0 ? 2 : 1;
}
