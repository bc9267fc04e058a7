/* AVX-512, AVX512-BF16 and AMX instructions on a CPU with AVX2 and FMA, for tests of pipeline/varve/encoder/kernels.
 *
 * Replaces the compiler's header of the same name, with the instructions that the kernels use. Compile with -mavx2
 * -mfma, and with -DEMULATE_AMX for a CPU with AMX. Source of what each instruction computes: Intel 64 and IA-32
 * Architectures Software Developer's Manual, volume 2. Invariants: a tile instruction outside of loadconfig and release
 * aborts, as it faults on a CPU; so does one on tiles whose shapes do not fit.
 */
#pragma once
#include_next <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __AVX512F__ 1
#if defined(EMULATE_AMX)
#define __AMX_BF16__ 1
#endif

#define EMULATED static __attribute__((unused))

typedef int32_t lanes __attribute__((vector_size(64)));
typedef uint32_t unsigned_lanes __attribute__((vector_size(64)));
typedef uint16_t half_lanes __attribute__((vector_size(32)));
typedef union {
    __m512 all;
    __m256 halves[2];
} halved;

EMULATED __m512 set1_ps(float x) { return (__m512){} + x; }
EMULATED __m512i set1_epi32(int32_t x) { return (__m512i)((lanes){} + x); }
EMULATED __m512 loadu_ps(const void *from) {
    __m512 x;
    memcpy(&x, from, sizeof x);
    return x;
}
EMULATED __m512i loadu_si512(const void *from) { return (__m512i)loadu_ps(from); }
EMULATED void storeu(void *to, __m512i x) { memcpy(to, &x, sizeof x); }
EMULATED __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
    halved x = {a}, y = {b}, z = {c};
    for (int i = 0; i < 2; i++) z.halves[i] = _mm256_fmadd_ps(x.halves[i], y.halves[i], z.halves[i]);
    return z.all;
}
EMULATED __m512 max_ps(__m512 a, __m512 b) { return (__m512)((lanes)a & (a > b) | (lanes)b & ~(a > b)); }
EMULATED __m512 min_ps(__m512 a, __m512 b) { return (__m512)((lanes)a & (a < b) | (lanes)b & ~(a < b)); }
EMULATED lanes less(__m512 a, __m512 b) { return a < b; }
EMULATED lanes unordered(__m512 a, __m512 b) { return ~((a == a) & (b == b)); }
EMULATED __m512 mask_mov(__m512 otherwise, lanes mask, __m512 x) {
    return (__m512)((lanes)x & mask | (lanes)otherwise & ~mask);
}
EMULATED __m512 nearest_integer(__m512 x) {
    halved each = {x};
    for (int i = 0; i < 2; i++)
        each.halves[i] = _mm256_round_ps(each.halves[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return each.all;
}
/* For exponents that are integers, and results above 2^-252. */
EMULATED __m512 scalef_ps(__m512 x, __m512 exponent) {
    lanes n = __builtin_convertvector(max_ps(exponent, set1_ps(-252)), lanes), half = n >> 1;
    return x * (__m512)((half + 127) << 23) * (__m512)((n - half + 127) << 23);
}
EMULATED __m512i slli_epi32(__m512i x, int bits) { return (__m512i)((lanes)x << bits); }
EMULATED __m512i cvtepu16_epi32(__m256i x) { return (__m512i)__builtin_convertvector((half_lanes)x, lanes); }
EMULATED __m256i half_of(__m512i x, int upper) {
    __m256i half;
    memcpy(&half, (const char *)&x + 32 * upper, sizeof half);
    return half;
}

#define _mm512_setzero_ps() set1_ps(0)
#define _mm512_set1_ps set1_ps
#define _mm512_set1_epi32 set1_epi32
#define _mm512_loadu_ps loadu_ps
#define _mm512_loadu_si512 loadu_si512
#define _mm512_storeu_ps(to, x) storeu(to, (__m512i)(x))
#define _mm512_storeu_si512 storeu
#define _mm512_fmadd_ps fmadd_ps
#define _mm512_max_ps max_ps
#define _mm512_min_ps min_ps
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, kind) ((kind) == _CMP_LT_OQ ? less(a, b) : unordered(a, b))
#define _mm512_mask_mov_ps mask_mov
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(x, kind) nearest_integer(x)
#define _mm512_scalef_ps scalef_ps
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 slli_epi32
#define _mm512_cvtepu16_epi32 cvtepu16_epi32
#define _mm512_castsi512_si256(x) half_of(x, 0)
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64(x, upper) half_of(x, upper)

/* AVX512-BF16. Denormal numbers count as 0, in inputs and in results. */

EMULATED __m512 flush(__m512 x) {
    lanes bits = (lanes)x;
    return (__m512)(bits & (((bits & 0x7f800000) != 0) | INT32_MIN));
}

/* Rounds to the nearest bfloat16, to even in the middle; NaN stays NaN. The result is in the upper half of each lane. */
EMULATED unsigned_lanes rounded(__m512 x) {
    unsigned_lanes bits = (unsigned_lanes)flush(x), nearest = bits + 0x7fff + (bits >> 16 & 1);
    unsigned_lanes is_nan = (unsigned_lanes)unordered(x, x);
    return (nearest & ~is_nan | (bits | 0x400000) & is_nan) & 0xffff0000;
}

EMULATED __m512bh cvtne2ps_pbh(__m512 upper, __m512 lower) {
    unsigned_lanes halves[2] = {rounded(lower) >> 16, rounded(upper) >> 16};
    half_lanes narrow[2];
    for (int i = 0; i < 2; i++) narrow[i] = __builtin_convertvector(halves[i], half_lanes);
    return (__m512bh)loadu_si512(narrow);
}

/* The number with index 0 or 1 of each pair, as a float. */
EMULATED __m512 of_pairs(__m512bh x, int index) {
    unsigned_lanes bits = (unsigned_lanes)x;
    return flush((__m512)(index ? bits & 0xffff0000 : bits << 16));
}

EMULATED __m512 dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
    for (int i = 1; i >= 0; i--) sums = flush(fmadd_ps(of_pairs(a, i), of_pairs(b, i), flush(sums)));
    return sums;
}

#define _mm512_cvtne2ps_pbh cvtne2ps_pbh
#define _mm512_dpbf16_ps dpbf16_ps

#if defined(EMULATE_AMX)

typedef struct {
    int rows, row_bytes;
    _Alignas(64) uint8_t bytes[16][64];
} tile;

static __thread tile tiles[8];
static __thread int is_configured;

static inline tile *tile_of(int number) {
    if (!is_configured || number < 0 || number > 7) abort();
    return &tiles[number];
}

static inline void load_tile_config(const uint8_t *config) {
    if (config[0] != 1 || config[1] != 0) abort();
    for (int i = 0; i < 8; i++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, config + 16 + 2 * i, sizeof row_bytes);
        if (row_bytes > 64 || config[48 + i] > 16) abort();
        tiles[i] = (tile){.rows = config[48 + i], .row_bytes = row_bytes};
    }
    is_configured = 1;
}

static inline void load_tile(tile *to, const void *from, int64_t step_bytes) {
    memset(to->bytes, 0, sizeof to->bytes);
    for (int row = 0; row < to->rows; row++) memcpy(to->bytes[row], (const char *)from + row * step_bytes, to->row_bytes);
}

static inline void store_tile(const tile *from, void *to, int64_t step_bytes) {
    for (int row = 0; row < from->rows; row++) memcpy((char *)to + row * step_bytes, from->bytes[row], from->row_bytes);
}

/* Sums of the first and of the second numbers of the pairs, then both, then the sum so far. */
static inline void multiply_tiles(tile *sums, const tile *a, const tile *b) {
    if (a->row_bytes != 4 * b->rows || a->rows != sums->rows || b->row_bytes != 64 || sums->row_bytes != 64) abort();
    for (int row = 0; row < sums->rows; row++) {
        __m512 parts[2] = {{}, {}}, so_far = loadu_ps(sums->bytes[row]);
        for (int k = 0; k < b->rows; k++) {
            int32_t pair;
            memcpy(&pair, a->bytes[row] + 4 * k, sizeof pair);
            __m512bh left = (__m512bh)set1_epi32(pair), right = (__m512bh)loadu_si512(b->bytes[k]);
            for (int i = 0; i < 2; i++) parts[i] = flush(fmadd_ps(of_pairs(left, i), of_pairs(right, i), parts[i]));
        }
        storeu(sums->bytes[row], (__m512i)flush(flush(so_far) + flush(parts[0] + parts[1])));
    }
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig load_tile_config
#define _tile_release() (is_configured = 0)
#define _tile_loadd(number, from, step) load_tile(tile_of(number), from, step)
#define _tile_stored(number, to, step) store_tile(tile_of(number), to, step)
#define _tile_zero(number) memset(tile_of(number)->bytes, 0, sizeof tiles[0].bytes)
#define _tile_dpbf16ps(sums, a, b) multiply_tiles(tile_of(sums), tile_of(a), tile_of(b))

#endif
