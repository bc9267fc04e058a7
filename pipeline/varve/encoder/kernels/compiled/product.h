/* Matrix products with vector registers: the sums of a tile of ROWS x COLUMNS stay in registers over the whole
 * depth. With float32 weights a lane multiplies one input at a time, with bfloat16 weights a pair of rounded inputs.
 *
 * Invariant: every sum runs over the inputs in their order, so the bits of a row do not depend on the other rows, and
 * those of float32 products not on the size of a register.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#include "after.h"
#if defined(BFLOAT16)
#include "bfloat16.h"
#endif
#include "registers.h"

#if defined(BFLOAT16)

typedef __m512bh inputs; /* a pair in each lane */

INLINE inputs load_inputs(const element *from) { return (inputs)_mm512_loadu_si512(from); }
INLINE inputs broadcast_inputs(const element *from) {
    int32_t pair;
    memcpy(&pair, from, sizeof pair);
    return (inputs)_mm512_set1_epi32(pair);
}
INLINE vec multiply_add_inputs(inputs a, inputs b, vec sums) { return _mm512_dpbf16_ps(sums, a, b); }

/* Elements from the start of a panel to its register j at input k; inputs up to the next multiple of 32 follow at
 * INPUT_STEP. A panel consists of tiles, as AMX reads them: 32 inputs x 16 columns. */
enum { INPUT_STEP = 16 };
INLINE int64_t panel_at(int64_t k, int j) { return k / 32 * 1024 + j * 512 + k % 32 * INPUT_STEP; }

#else

typedef float element; /* the type that a product reads */
typedef vec inputs;    /* one in each lane */

INLINE inputs load_inputs(const element *from) { return load(from); }
INLINE inputs broadcast_inputs(const element *from) { return broadcast(*from); }
INLINE vec multiply_add_inputs(inputs a, inputs b, vec sums) { return multiply_add(a, b, sums); }

enum { INPUT_STEP = 2 * LANES };
INLINE int64_t panel_at(int64_t k, int j) { return k * INPUT_STEP + j * LANES; }

#endif

/* Rows, `step` elements apart. */
typedef struct {
    const element *rows;
    int64_t step;
} operand;

enum {
    ROWS = LANES * 3 / 4,
    VECS = 2, /* registers per row of a tile */
    COLUMNS = VECS * LANES,
    STEP = sizeof(float) / sizeof(element), /* inputs that a lane multiplies at once */
    MAX_BLOCK_ROWS = 96, /* multiples of ROWS */
    MIN_BLOCK_ROWS = 24,
    CACHE_BYTES = 512 * 1024, /* of the L2 cache, for the rows and sums of a block */
};

INLINE void begin_products(void) {}
INLINE void end_products(void) {}

/* Elements of a prepared row of `width` inputs. */
INLINE int64_t row_elements(int64_t width) { return width + PAD * STEP; }

/* Scratch memory of the products, in elements. */
INLINE int64_t scratch_elements(int64_t depth) { return 0 * depth; }

#if defined(BFLOAT16)
INLINE void store_elements(element *to, const vec x[VECS]) { _mm512_storeu_si512(to, round_to_bfloat16(x[0], x[1])); }

INLINE void copy_row(element *to, const float *x, int64_t width) {
    for (int64_t k = 0; k < width; k += COLUMNS) store_elements(to + k, (vec[VECS]){load(x + k), load(x + k + LANES)});
}
#else
INLINE void store_elements(element *to, const vec x[VECS]) {
    UNROLL for (int j = 0; j < VECS; j++) store(to + j * LANES, x[j]);
}

INLINE void copy_row(element *to, const float *x, int64_t width) { memcpy(to, x, sizeof(float) * width); }
#endif

/* Rows in the format that products read. Rows of floats that fill whole tiles are used in place. Others are copied to
 * `buffer`, with zeros after the last; so are rows at a distance of a power of two, which would share a few sets of
 * the L1 cache. */
static operand prepare_rows(const float *x, int64_t rows, int64_t width, element *buffer) {
    if (STEP == 1 && rows % ROWS == 0 && width % 512) return (operand){(const element *)x, width};
    int64_t step = row_elements(width);
    for (int64_t i = 0; i < rows; i++) copy_row(buffer + i * step, x + i * width, width);
    memset(buffer + rows * step, 0, sizeof(element) * ((rows + ROWS - 1) / ROWS * ROWS - rows) * step);
    return (operand){buffer, step};
}

/* What a tile prefetches into the L2 cache: each of the first four tiles of a panel takes a quarter of the next
 * panel. */
INLINE const weight *prefetch_from(const weight *panel, int64_t depth, int64_t row) {
    return panel + depth * COLUMNS + least(row / ROWS, 3) * depth * COLUMNS / 4;
}

/* out[i][column] = sum over k of x[i][k] * panel[k][column]; added to `out` unless `overwrite`.
 *
 * noinline: the compiler keeps all sums in registers only if nothing else competes for them. */
static __attribute__((noinline)) void multiply(int64_t depth, const element *x, int64_t x_step, const weight *panel,
                                               const weight *prefetch, float *out, int64_t out_step, int overwrite) {
    vec sums[ROWS][VECS];
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VECS; j++)
        sums[i][j] = overwrite ? zero() : load(out + i * out_step + j * LANES);
    for (int64_t k4 = 0; k4 < depth; k4 += 4 * STEP) {
        UNROLL for (int at = 0; at < COLUMNS; at += 16)
            __builtin_prefetch(prefetch + k4 * COLUMNS / 4 + at * STEP, 0, 2);
        UNROLL for (int64_t k = k4; k < k4 + 4 * STEP; k += STEP) {
            inputs right[VECS];
            UNROLL for (int j = 0; j < VECS; j++)
                right[j] = load_inputs(panel + panel_at(k4, j) + (k - k4) * INPUT_STEP);
            UNROLL for (int i = 0; i < ROWS; i++) {
                inputs left = broadcast_inputs(x + i * x_step + k);
                UNROLL for (int j = 0; j < VECS; j++) sums[i][j] = multiply_add_inputs(left, right[j], sums[i][j]);
            }
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VECS; j++)
        store(out + i * out_step + j * LANES, sums[i][j]);
}

/* One row of a tile of sums becomes outputs: floats, or with for_next elements. */
INLINE void finish_row(const float *sums, int activation, const epilogue *e, int64_t row, int64_t column, char *out) {
    vec x[VECS];
    UNROLL for (int j = 0; j < VECS; j++)
        x[j] = apply(load(sums + j * LANES), activation, e, row, column + j * LANES);
    if (e->for_next) store_elements((element *)out, x);
    else UNROLL for (int j = 0; j < VECS; j++) store((float *)out + j * LANES, x[j]);
}

/* Prefetches the cache lines of the outputs for writing before the sums are computed. */
INLINE void multiply_activated(int activation, int64_t rows, operand x, int64_t depth, const weight *panels,
                               int64_t columns, epilogue e) {
    _Alignas(64) float sums[ROWS * COLUMNS];
    int64_t size = e.for_next ? sizeof(element) : sizeof(float);
    int64_t step = size * (e.for_next ? row_elements(e.out_step) : e.out_step);
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const weight *panel = panels + column * depth;
        char *out = (char *)e.out + row * step + column * size;
        int64_t taken = least(ROWS, rows - row);
        for (int64_t i = 0; i < taken; i++) UNROLL for (int j = 0; j < VECS; j++)
            __builtin_prefetch(out + i * step + j * LANES * size, 1);
        multiply(depth, x.rows + row * x.step, x.step, panel, prefetch_from(panel, depth, row), sums, COLUMNS, 1);
        for (int64_t i = 0; i < taken; i++)
            finish_row(sums + i * COLUMNS, activation, &e, row + i, column, out + i * step);
    }
}

/* Products of `rows` rows, of which only the maximum of each window is kept. */
static void multiply_maximum(int64_t rows, operand x, int64_t depth, const weight *panels, int64_t columns,
                             const epilogue *e) {
    _Alignas(64) float sums[ROWS * COLUMNS];
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const weight *panel = panels + column * depth;
        multiply(depth, x.rows + row * x.step, x.step, panel, prefetch_from(panel, depth, row), sums, COLUMNS, 1);
        for (int64_t i = 0; i < least(ROWS, rows - row); i++) UNROLL for (int j = 0; j < VECS; j++)
            keep_maximum(load(sums + i * COLUMNS + j * LANES), e, row + i, column + j * LANES);
    }
}

/* Products of `rows` rows, with the epilogue applied to their sums. One loop per activation: a branch inside the
 * loop costs a percent of a forward pass. */
static void multiply_with_epilogue(int64_t rows, operand x, int64_t depth, const weight *panels, int64_t columns,
                                   const epilogue *e, element *scratch) {
    (void)scratch;
    if (e->windows) multiply_maximum(rows, x, depth, panels, columns, e);
    else if (e->activation == GELU) multiply_activated(GELU, rows, x, depth, panels, columns, *e);
    else if (e->activation == SILU) multiply_activated(SILU, rows, x, depth, panels, columns, *e);
    else multiply_activated(NO_ACTIVATION, rows, x, depth, panels, columns, *e);
}

/* Products of one depth, in whole tiles; added to `out` unless `overwrite`. */
static void multiply_accumulate(int64_t rows, operand x, int64_t depth, const weight *panels, int64_t columns,
                                float *out, int64_t out_step, int overwrite, element *scratch) {
    (void)scratch;
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const weight *panel = panels + column * depth;
        multiply(depth, x.rows + row * x.step, x.step, panel, prefetch_from(panel, depth, row),
                 out + row * out_step + column, out_step, overwrite);
    }
}
