/* Properties of this library, which cpu_library.py reads before it calls anything else. */
#if defined(__AMX_BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "registers.h"

/* Hash of the sources: infra/build.py defines it, and cpu_library.py compares it with the source files. */
const char *source_sha256(void) { return SOURCE_SHA256; }

#if defined(__AMX_BF16__)

/* Whether this CPU has AMX, and Linux grants this process the state of the tiles from now on. */
static int has_tiles(void) {
    enum { REQUEST_STATE = 0x1023 /* ARCH_REQ_XCOMP_PERM of Linux */, TILE_DATA = 18 };
    unsigned a, b, c, d, a1, unused;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !__get_cpuid_count(7, 1, &a1, &unused, &unused, &unused)) return 0;
    int amx_tile = d >> 24 & 1, amx_bf16 = d >> 22 & 1, avx512_bf16 = a1 >> 5 & 1;
    return amx_tile && amx_bf16 && avx512_bf16 && syscall(SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0;
}

#endif

/* The instruction set of everything except matrix products. */
const char *vector_instructions(void) { return LANES == 16 ? "avx512" : "avx2"; }

/* Whether this CPU has the instructions that this library was compiled for. */
int runs_here(void) {
    __builtin_cpu_init();
#if defined(__AMX_BF16__)
    return __builtin_cpu_supports("avx512f") && has_tiles();
#elif defined(BFLOAT16)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") != 0;
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}
