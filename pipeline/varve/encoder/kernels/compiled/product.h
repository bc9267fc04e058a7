/* Products by registers of floats: a tile of ROWS x COLUMNS sums stands in them over the whole depth.
 *
 * Invariant: every sum runs over the inputs in their order, so a row's bits depend neither on the rows beside it nor on
 * how many floats a register has.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#include "after.h"
#include "registers.h"

typedef float number; /* what a product reads */

/* Rows, `step` numbers apart. */
typedef struct {
    const number *rows;
    int64_t step;
} operand;

enum {
    ROWS = LANES * 3 / 4,
    WIDE = 2,
    COLUMNS = WIDE * LANES,
    MOST_ROWS = 96, /* of a block: it and the least are multiples of ROWS */
    LEAST_ROWS = 24,
    CACHE_BYTES = 512 * 1024, /* of the second cache, for a block's numbers */
};

INLINE void begin_products(void) {}
INLINE void end_products(void) {}

/* Numbers of a row of so many inputs. */
INLINE int64_t row_numbers(int64_t width) { return width + PAD; }

/* What finish and add need for themselves. */
INLINE int64_t scratch_numbers(int64_t depth) { return 0 * depth; }

/* Rows as products read them: where they are if they fill whole tiles, else in `room`, with zeros behind the last; so
 * too where rows are a power of two apart, and would fall into the same places of the first cache. */
static operand arrange(const float *from, int64_t rows, int64_t width, number *room) {
    if (rows % ROWS == 0 && width % 512) return (operand){from, width};
    int64_t step = row_numbers(width);
    for (int64_t i = 0; i < rows; i++) memcpy(room + i * step, from + i * width, sizeof(float) * width);
    memset(room + rows * step, 0, sizeof(float) * ((rows + ROWS - 1) / ROWS * ROWS - rows) * step);
    return (operand){room, step};
}

/* What is fetched into the second cache while a tile is computed: a quarter of the next panel for each of the first four
 * tiles of a panel. */
INLINE const float *next_of(const float *panel, int64_t depth, int64_t row) {
    return panel + depth * COLUMNS + least(row / ROWS, 3) * depth * COLUMNS / 4;
}

/* to[i][column] = sum over k of from[i][k] * panel[k][column], from 0 on or added to what is there.
 *
 * A function of its own, for the compiler keeps all sums in registers only where nothing else wants some. */
static __attribute__((noinline)) void multiply(int64_t depth, const float *from, int64_t from_step, const float *panel,
                                               const float *next, float *to, int64_t to_step, int from_zero) {
    vec sums[ROWS][WIDE];
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < WIDE; j++)
        sums[i][j] = from_zero ? zero() : load(to + i * to_step + j * LANES);
    for (int64_t k4 = 0; k4 < depth; k4 += 4) {
        UNROLL for (int at = 0; at < COLUMNS; at += 16) __builtin_prefetch(next + k4 * COLUMNS / 4 + at, 0, 2);
        UNROLL for (int64_t k = k4; k < k4 + 4; k++) {
            vec right[WIDE];
            UNROLL for (int j = 0; j < WIDE; j++) right[j] = load(panel + k * COLUMNS + j * LANES);
            UNROLL for (int i = 0; i < ROWS; i++) {
                vec left = splat(from[i * from_step + k]);
                UNROLL for (int j = 0; j < WIDE; j++) sums[i][j] = product_plus(left, right[j], sums[i][j]);
            }
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) UNROLL for (int j = 0; j < WIDE; j++)
        store(to + i * to_step + j * LANES, sums[i][j]);
}

/* The lines of the outputs are fetched for writing before they are computed. */
INLINE void finish_as(int kind, int64_t rows, operand from, int64_t depth, const float *panels, int64_t columns,
                      ending e) {
    _Alignas(64) float sums[ROWS * COLUMNS];
    int64_t step = e.onward ? row_numbers(e.out_step) : e.out_step;
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const float *panel = panels + column * depth;
        float *to = (float *)e.out + row * step + column;
        int64_t there = least(ROWS, rows - row);
        for (int64_t i = 0; i < there; i++) UNROLL for (int j = 0; j < WIDE; j++)
            __builtin_prefetch(to + i * step + j * LANES, 1);
        multiply(depth, from.rows + row * from.step, from.step, panel, next_of(panel, depth, row), sums, COLUMNS, 1);
        for (int64_t i = 0; i < there; i++) UNROLL for (int j = 0; j < WIDE; j++)
            store(to + i * step + j * LANES,
                  become(load(sums + i * COLUMNS + j * LANES), kind, &e, row + i, column + j * LANES));
    }
}

/* Products whose sums become what `e` says, for rows that are there. One loop for each kind, for a choice inside of it
 * costs a percent of a pass. */
static void finish(int64_t rows, operand from, int64_t depth, const float *panels, int64_t columns, const ending *e,
                   number *scratch) {
    (void)scratch;
    if (e->become == GELU) finish_as(GELU, rows, from, depth, panels, columns, *e);
    else if (e->become == SILU) finish_as(SILU, rows, from, depth, panels, columns, *e);
    else finish_as(PLAIN, rows, from, depth, panels, columns, *e);
}

/* Add the products of one depth to `to`, in whole tiles. */
static void add(int64_t rows, operand from, int64_t depth, const float *panels, int64_t columns, float *to,
                int64_t to_step, int from_zero, number *scratch) {
    (void)scratch;
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const float *panel = panels + column * depth;
        multiply(depth, from.rows + row * from.step, from.step, panel, next_of(panel, depth, row),
                 to + row * to_step + column, to_step, from_zero);
    }
}
