/* What the compiled code tells of itself before anything of it is called (kernel.py). */
#include "registers.h"

/* What this was compiled from: infra/build.py defines it, kernel.py holds it against the file. */
const char *source_sha256(void) { return SOURCE_SHA256; }

/* Whether this CPU has what this file was built for. */
int runs_here(void) {
    __builtin_cpu_init();
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") != 0;
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}
