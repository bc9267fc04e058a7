/* What the compiled code tells of itself before anything of it is called (kernel.py). */
#if defined(__AMX_BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "registers.h"

/* What this was compiled from: infra/build.py defines it, kernel.py holds it against the file. */
const char *source_sha256(void) { return SOURCE_SHA256; }

#if defined(__AMX_BF16__)

/* Whether this CPU has tiles, and the system saves them for this process from now on. */
static int has_tiles(void) {
    enum { ASK_FOR_STATE = 0x1023 /* ARCH_REQ_XCOMP_PERM of Linux */, TILE_DATA = 18 };
    unsigned a, b, c, d, a1, unused;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !__get_cpuid_count(7, 1, &a1, &unused, &unused, &unused)) return 0;
    int tiles = d >> 24 & 1, of_bf16 = d >> 22 & 1, converts = a1 >> 5 & 1;
    return tiles && of_bf16 && converts && syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
}

#endif

/* What attention and all but products are computed with. */
const char *registers(void) { return LANES == 16 ? "avx512" : "avx2"; }

/* Whether this CPU has what this file was built for. */
int runs_here(void) {
    __builtin_cpu_init();
#if defined(__AMX_BF16__)
    return __builtin_cpu_supports("avx512f") && has_tiles();
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") != 0;
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}
