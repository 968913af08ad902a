/* CPU features by run-time detection. One name per level: "ref", "avx2", "avxvnni", "avx512vnni", "neon". */
#ifndef PYLLM_BASE_CPU_H
#define PYLLM_BASE_CPU_H

/* 1 if the CPU (and the operating system) can run a level's instructions. Unknown names: 0. */
int cpu_has(const char *level);
#endif
