/* Operations on registers of floats, for CPUs with AVX-512, or with AVX2 and FMA. Only
 * bfloat16.h, product.h and tiles.h use other intrinsics.
 *
 * Invariant: both instruction sets give the same bits for the same operations; only the floats per register differ.
 */
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)

typedef __m512 vec;
enum { LANES = 16 };

INLINE vec zero(void) { return _mm512_setzero_ps(); }
INLINE vec broadcast(float x) { return _mm512_set1_ps(x); }
INLINE vec load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store(float *to, vec x) { _mm512_storeu_ps(to, x); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec maximum(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec minimum(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec select_less(vec a, vec b, vec then, vec otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), then);
}
/* x where it is NaN, otherwise `otherwise`. */
INLINE vec select_nan(vec x, vec otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}
INLINE vec round_nearest(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec scale_by_2_to(vec x, vec exponent) { return _mm512_scalef_ps(x, exponent); }

/* a0 b0 a1 b1 ...: its lower or its upper half. */
INLINE vec interleave(vec a, vec b, int upper) {
    const __m512i lower_at = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, upper ? _mm512_add_epi32(lower_at, _mm512_set1_epi32(8)) : lower_at, b);
}

#elif defined(__AVX2__) && defined(__FMA__)

typedef __m256 vec;
enum { LANES = 8 };

INLINE vec zero(void) { return _mm256_setzero_ps(); }
INLINE vec broadcast(float x) { return _mm256_set1_ps(x); }
INLINE vec load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void store(float *to, vec x) { _mm256_storeu_ps(to, x); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec maximum(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec minimum(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec select_less(vec a, vec b, vec then, vec otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE vec select_nan(vec x, vec otherwise) {
    return _mm256_blendv_ps(otherwise, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
INLINE vec round_nearest(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* Multiplies by two powers of 2, since one float cannot hold a power below 2^-126 as a normal number. */
INLINE vec scale_by_2_to(vec x, vec exponent) {
    __m256i n = _mm256_cvtps_epi32(maximum(exponent, broadcast(-150)));
    __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half), one = _mm256_set1_epi32(127);
    x = x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23));
    return x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, one), 23));
}

INLINE vec interleave(vec a, vec b, int upper) {
    vec lower = _mm256_unpacklo_ps(a, b), higher = _mm256_unpackhi_ps(a, b);
    return upper ? _mm256_permute2f128_ps(lower, higher, 0x31) : _mm256_permute2f128_ps(lower, higher, 0x20);
}

#else
#error "neither AVX-512 nor AVX2 with FMA"
#endif

/* The larger of two numbers; NaN if one of them is NaN. */
INLINE vec maximum_or_nan(vec a, vec b) { return select_nan(b, maximum(b, a)); }

/* 2^x for x <= 0: 2 to the nearest integer, times the Taylor series of 2^(x - integer). */
INLINE vec exp2_of(vec x) {
    vec integer = round_nearest(x), rest = x - integer;
    vec sum = broadcast(1.535336188319500e-4f);
    sum = multiply_add(sum, rest, broadcast(1.339887440266574e-3f));
    sum = multiply_add(sum, rest, broadcast(9.618437357674640e-3f));
    sum = multiply_add(sum, rest, broadcast(5.550332471162809e-2f));
    sum = multiply_add(sum, rest, broadcast(2.402264791363012e-1f));
    sum = multiply_add(sum, rest, broadcast(6.931472028550421e-1f));
    sum = multiply_add(sum, rest, broadcast(1.0f));
    return scale_by_2_to(sum, integer);
}
