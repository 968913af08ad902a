/* Errors: every fallible function returns 0 or a negative pyllm_status and fills a caller-owned pyllm_error. */
#ifndef PYLLM_BASE_ERR_H
#define PYLLM_BASE_ERR_H
#include "../pyllm.h"

/* Formats the message (truncated to fit, always terminated; err may be NULL) and returns code, so callers write
   `return err_set(err, PYLLM_ERR_FORMAT, "...")`. A hint with the next step goes on its own line: "...\nhint: ...". */
int err_set(pyllm_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#define TRY(call) do { int rc_ = (call); if (rc_ < 0) return rc_; } while (0)
#endif
