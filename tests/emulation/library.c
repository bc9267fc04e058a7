/* In place of kernels/compiled/library.c: an emulated library runs on every CPU with AVX2 and FMA. */
#include "registers.h"

const char *source_sha256(void) { return SOURCE_SHA256; }
const char *vector_instructions(void) { return "avx2"; }
int runs_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
