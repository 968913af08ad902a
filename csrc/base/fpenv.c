/* The float environment of the contract: round to nearest even, subnormals kept (no FTZ, no DAZ), exceptions masked. */
#include "threads.h"

#if defined(__x86_64__)
uint64_t fpenv_enter(void) {
    uint32_t old = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80);
    return old;
}
void fpenv_restore(uint64_t saved) { __builtin_ia32_ldmxcsr((uint32_t)saved & 0xffff); }   /* reserved bits would fault */
#elif defined(__aarch64__)
uint64_t fpenv_enter(void) {
    uint64_t old, zero = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(zero));
    return old;
}
void fpenv_restore(uint64_t saved) { __asm__ volatile("msr fpcr, %0" : : "r"(saved)); }
#else
uint64_t fpenv_enter(void) { return 0; }
void fpenv_restore(uint64_t saved) { (void)saved; }
#endif
