/* Matrix products with vector registers: the sums of a tile of ROWS x COLUMNS stay in registers over the whole
 * depth.
 *
 * Invariant: every sum runs over the inputs in their order, so the bits of a row depend neither on the other rows
 * nor on the size of a register.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#include "after.h"
#include "registers.h"

typedef float element; /* the type that a product reads */

/* Rows, `step` elements apart. */
typedef struct {
    const element *rows;
    int64_t step;
} operand;

enum {
    ROWS = LANES * 3 / 4,
    VECS = 2, /* registers per row of a tile */
    COLUMNS = VECS * LANES,
    MAX_BLOCK_ROWS = 96, /* multiples of ROWS */
    MIN_BLOCK_ROWS = 24,
    CACHE_BYTES = 512 * 1024, /* of the L2 cache, for the rows and sums of a block */
};

INLINE void begin_products(void) {}
INLINE void end_products(void) {}

/* Elements of a prepared row of `width` inputs. */
INLINE int64_t row_elements(int64_t width) { return width + PAD; }

/* Scratch memory of the products, in elements. */
INLINE int64_t scratch_elements(int64_t depth) { return 0 * depth; }

/* Rows in the format that products read. Rows that fill whole tiles are used in place. Others are copied to
 * `buffer`, with zeros after the last; so are rows at a distance of a power of two, which would share a few sets of
 * the L1 cache. */
static operand prepare_rows(const float *x, int64_t rows, int64_t width, element *buffer) {
    if (rows % ROWS == 0 && width % 512) return (operand){x, width};
    int64_t step = row_elements(width);
    for (int64_t i = 0; i < rows; i++) memcpy(buffer + i * step, x + i * width, sizeof(float) * width);
    memset(buffer + rows * step, 0, sizeof(float) * ((rows + ROWS - 1) / ROWS * ROWS - rows) * step);
    return (operand){buffer, step};
}

/* What a tile prefetches into the L2 cache: each of the first four tiles of a panel takes a quarter of the next
 * panel. */
INLINE const float *prefetch_from(const float *panel, int64_t depth, int64_t row) {
    return panel + depth * COLUMNS + least(row / ROWS, 3) * depth * COLUMNS / 4;
}

/* out[i][column] = sum over k of x[i][k] * panel[k][column]; added to `out` unless `overwrite`.
 *
 * noinline: the compiler keeps all sums in registers only if nothing else competes for them. */
static __attribute__((noinline)) void multiply(int64_t depth, const float *x, int64_t x_step, const float *panel,
                                               const float *prefetch, float *out, int64_t out_step, int overwrite) {
    vec sums[ROWS][VECS];
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VECS; j++)
        sums[i][j] = overwrite ? zero() : load(out + i * out_step + j * LANES);
    for (int64_t k4 = 0; k4 < depth; k4 += 4) {
        UNROLL for (int at = 0; at < COLUMNS; at += 16) __builtin_prefetch(prefetch + k4 * COLUMNS / 4 + at, 0, 2);
        UNROLL for (int64_t k = k4; k < k4 + 4; k++) {
            vec right[VECS];
            UNROLL for (int j = 0; j < VECS; j++) right[j] = load(panel + k * COLUMNS + j * LANES);
            UNROLL for (int i = 0; i < ROWS; i++) {
                vec left = broadcast(x[i * x_step + k]);
                UNROLL for (int j = 0; j < VECS; j++) sums[i][j] = multiply_add(left, right[j], sums[i][j]);
            }
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < VECS; j++)
        store(out + i * out_step + j * LANES, sums[i][j]);
}

/* Prefetches the cache lines of the outputs for writing before the sums are computed. */
INLINE void multiply_activated(int activation, int64_t rows, operand x, int64_t depth, const float *panels,
                               int64_t columns, epilogue e) {
    _Alignas(64) float sums[ROWS * COLUMNS];
    int64_t step = e.for_next ? row_elements(e.out_step) : e.out_step;
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const float *panel = panels + column * depth;
        float *out = (float *)e.out + row * step + column;
        int64_t taken = least(ROWS, rows - row);
        for (int64_t i = 0; i < taken; i++) UNROLL for (int j = 0; j < VECS; j++)
            __builtin_prefetch(out + i * step + j * LANES, 1);
        multiply(depth, x.rows + row * x.step, x.step, panel, prefetch_from(panel, depth, row), sums, COLUMNS, 1);
        for (int64_t i = 0; i < taken; i++) UNROLL for (int j = 0; j < VECS; j++)
            store(out + i * step + j * LANES,
                  apply(load(sums + i * COLUMNS + j * LANES), activation, &e, row + i, column + j * LANES));
    }
}

/* Products of `rows` rows, of which only the maximum of each window is kept. */
static void multiply_maximum(int64_t rows, operand x, int64_t depth, const float *panels, int64_t columns,
                             const epilogue *e) {
    _Alignas(64) float sums[ROWS * COLUMNS];
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const float *panel = panels + column * depth;
        multiply(depth, x.rows + row * x.step, x.step, panel, prefetch_from(panel, depth, row), sums, COLUMNS, 1);
        for (int64_t i = 0; i < least(ROWS, rows - row); i++) UNROLL for (int j = 0; j < VECS; j++)
            keep_maximum(load(sums + i * COLUMNS + j * LANES), e, row + i, column + j * LANES);
    }
}

/* Products of `rows` rows, with the epilogue applied to their sums. One loop per activation: a branch inside the
 * loop costs a percent of a forward pass. */
static void multiply_with_epilogue(int64_t rows, operand x, int64_t depth, const float *panels, int64_t columns,
                                   const epilogue *e, element *scratch) {
    (void)scratch;
    if (e->windows) multiply_maximum(rows, x, depth, panels, columns, e);
    else if (e->activation == GELU) multiply_activated(GELU, rows, x, depth, panels, columns, *e);
    else if (e->activation == SILU) multiply_activated(SILU, rows, x, depth, panels, columns, *e);
    else multiply_activated(NO_ACTIVATION, rows, x, depth, panels, columns, *e);
}

/* Products of one depth, in whole tiles; added to `out` unless `overwrite`. */
static void multiply_accumulate(int64_t rows, operand x, int64_t depth, const float *panels, int64_t columns,
                                float *out, int64_t out_step, int overwrite, element *scratch) {
    (void)scratch;
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const float *panel = panels + column * depth;
        multiply(depth, x.rows + row * x.step, x.step, panel, prefetch_from(panel, depth, row),
                 out + row * out_step + column, out_step, overwrite);
    }
}
