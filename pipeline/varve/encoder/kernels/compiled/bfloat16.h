/* bfloat16 numbers and their products, for CPUs with AVX512-BF16. */
#pragma once
#include <stdint.h>
#include <string.h>

#include "registers.h"

typedef uint16_t element; /* bfloat16, the type that a product reads */

/* Rounds 32 floats to bfloat16. */
INLINE __m512i round_to_bfloat16(vec lower, vec upper) { return (__m512i)_mm512_cvtne2ps_pbh(upper, lower); }

/* Rounds 32 floats to bfloat16, and subtracts the rounded values from the floats. */
INLINE __m512i take_piece(vec *lower, vec *upper) {
    __m512i piece = round_to_bfloat16(*lower, *upper);
    __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(piece));
    __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(piece, 1));
    *lower = *lower - (vec)_mm512_slli_epi32(first, 16);
    *upper = *upper - (vec)_mm512_slli_epi32(second, 16);
    return piece;
}
