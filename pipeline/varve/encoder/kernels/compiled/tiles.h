/* Matrix products with the tiles of AMX, which multiply bfloat16 and add in float32.
 *
 * With bfloat16 weights, rows are rounded to bfloat16, one piece per number. With float32 weights, a number is the sum
 * of three bfloat16 pieces, and the six largest of the nine products of pieces give the product of two floats to
 * float32 precision (Henry, Tang and Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype For
 * Higher-Precision Computations, 2019). Rows are split into pieces once per block, panels of floats once per block;
 * vector registers do that and the epilogue while the tiles multiply. Invariant: every sum runs over the inputs in
 * their order, so the bits of a row do not depend on the other rows.
 */
#pragma once
#include <stdint.h>

#include "after.h"
#include "bfloat16.h"
#include "registers.h"

/* Rows in pieces, `step` elements for each. */
typedef struct {
    const element *rows;
    int64_t step;
} operand;

enum {
    ROWS = 32,
    COLUMNS = 32,
    STEP = 32, /* inputs per instruction, for 16 rows or columns at once */
    TILE = 16 * STEP,
    PIECES = sizeof(weight) == sizeof(element) ? 1 : 3,
    PRODUCTS = PIECES == 1 ? 1 : 6, /* of pieces */
    PIECED = PIECES * TILE, /* elements of 16 rows or columns with STEP inputs, piece by piece */
    MAX_BLOCK_ROWS = 224, /* multiples of ROWS */
    MIN_BLOCK_ROWS = 64,
    CACHE_BYTES = 1536 * 1024, /* of the L2 cache, for the rows and sums of a block */
};

/* The compiler does not know which memory the tile instructions read and write. */
#define BARRIER __asm__ volatile("" ::: "memory")

/* Tiles 0 to 3 are sums, 4 and 5 pieces of rows, 6 and 7 pieces of the panel. */
#define FOR_SUMS(do) do(0, out) do(1, out + 16) do(2, out + 16 * out_step) do(3, out + 16 * out_step + 16)
#define CLEAR(tile, at) _tile_zero(tile);
#define LOAD(tile, at) _tile_loadd(tile, at, out_step * sizeof(float));
#define STORE(tile, at) _tile_stored(tile, at, out_step * sizeof(float));
#define ROW_PIECE(i) _tile_loadd(4, x + (i) * TILE, 64); _tile_loadd(5, lower_x + (i) * TILE, 64);
#define PANEL_PIECE(i) _tile_loadd(6, panel + (i) * TILE, 64); _tile_loadd(7, panel + PIECED + (i) * TILE, 64);
#define ADD _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);

/* Sets the shapes of the tiles, as each thread must before it multiplies. */
INLINE void begin_products(void) {
    _Alignas(64) uint8_t shapes[64] = {1 /* palette */};
    for (int tile = 0; tile < 8; tile++) shapes[16 + 2 * tile] = 64 /* bytes in a row */, shapes[48 + tile] = 16;
    BARRIER;
    _tile_loadconfig(shapes);
}

INLINE void end_products(void) { _tile_release(); }

/* Splits 32 floats into pieces, each a row of one of PIECES tiles. */
INLINE void split(vec lower, vec upper, element *to) {
    UNROLL for (int piece = 0; piece < PIECES; piece++)
        _mm512_storeu_si512(to + piece * TILE, take_piece(&lower, &upper));
}

/* Index of the pieces of a row (or column), from its input k on, in rows of `depth` inputs. */
INLINE int64_t pieces_at(int64_t row, int64_t depth, int64_t k) {
    return (row / 16 * depth + k) / STEP * PIECED + row % 16 * STEP;
}

/* Elements of a prepared row of `width` inputs. */
INLINE int64_t row_elements(int64_t width) { return width * PIECES; }

/* Scratch memory of the products, in elements: two panels in pieces. Panels of bfloat16 are read in place. */
INLINE int64_t scratch_elements(int64_t depth) { return PIECES == 1 ? 0 : 2 * COLUMNS * depth * PIECES; }

/* Rows in the format that products read: copied to `buffer` in pieces, with zero rows that fill the last tile. */
static operand prepare_rows(const float *x, int64_t rows, int64_t width, element *buffer) {
    for (int64_t row = 0; row < (rows + ROWS - 1) / ROWS * ROWS; row++) for (int64_t k = 0; k < width; k += STEP) {
        const float *at = x + row * width + k;
        vec lower = row < rows ? load(at) : zero(), upper = row < rows ? load(at + LANES) : zero();
        split(lower, upper, buffer + pieces_at(row, width, k));
    }
    return (operand){buffer, row_elements(width)};
}

/* Work of the vector registers while the tiles multiply: preparing a share of the next panel, and the epilogue of the
 * previous tile. */
typedef struct {
    const weight *panel; /* in the order of its pieces */
    element *pieces;
    int64_t prepare_from, prepared, to_prepare; /* in steps of 32 weights */
    const float *sums;
    const epilogue *e;
    int64_t row, column, finished, to_finish; /* position of the sums; rows of them */
} background;

/* Prefetches 32 bfloat16 weights, or splits 32 floats into pieces. */
INLINE void prepare_panel_row(const background *b, int64_t at) {
    if (PIECES == 1) {
        __builtin_prefetch(b->panel + at * STEP, 0, 2);
        return;
    }
    const float *from = (const float *)b->panel + at * STEP;
    __builtin_prefetch(from + 64 * STEP, 0, 2), __builtin_prefetch(from + 64 * STEP + LANES, 0, 2);
    split(load(from), load(from + LANES), b->pieces + pieces_at(at, STEP, 0));
}

INLINE void finish_row(const background *b, int64_t at) {
    const epilogue *e = b->e;
    int64_t row = b->row + at, column = b->column;
    if (e->windows) {
        keep_maximum(load(b->sums + at * COLUMNS), e, row, column);
        keep_maximum(load(b->sums + at * COLUMNS + LANES), e, row, column + LANES);
        return;
    }
    vec lower = apply(load(b->sums + at * COLUMNS), e->activation, e, row, column);
    vec upper = apply(load(b->sums + at * COLUMNS + LANES), e->activation, e, row, column + LANES);
    if (e->for_next) {
        split(lower, upper, (element *)e->out + pieces_at(row, e->out_step, column));
        return;
    }
    float *out = (float *)e->out + row * e->out_step + column;
    store(out, lower), store(out + LANES, upper);
}

/* Continues the work up to the share `done` / `all`. */
INLINE void work(background *b, int64_t done, int64_t all) {
    for (; b->finished * all < b->to_finish * done; b->finished++) finish_row(b, b->finished);
    for (; (b->prepared - b->prepare_from) * all < (b->to_prepare - b->prepare_from) * done; b->prepared++)
        prepare_panel_row(b, b->prepared);
}

/* out[i][column] = sum over k of x[i][k] * panel[k][column]; added to `out` unless `overwrite`. Products of smaller
 * pieces come first, in an order that loads only one operand anew each time and in which a factor of 1 is exact. */
static __attribute__((noinline)) void multiply(int64_t depth, const element *x, const element *panel, background *b,
                                               float *out, int64_t out_step, int overwrite) {
    const element *lower_x = x + 16 * row_elements(depth);
    int64_t done = 0, all = PRODUCTS * depth / STEP;
    BARRIER;
    if (overwrite) { FOR_SUMS(CLEAR) }
    else { FOR_SUMS(LOAD) }
    for (int64_t k = 0; k < depth; k += STEP, x += PIECED, lower_x += PIECED, panel += 2 * PIECED) {
        if (PIECES == 1) {
            ROW_PIECE(0) PANEL_PIECE(0) ADD work(b, ++done, all);
            continue;
        }
        ROW_PIECE(2) PANEL_PIECE(0) ADD work(b, ++done, all);
        ROW_PIECE(1) ADD work(b, ++done, all);
        PANEL_PIECE(1) ADD work(b, ++done, all);
        ROW_PIECE(0) ADD work(b, ++done, all);
        PANEL_PIECE(2) ADD work(b, ++done, all);
        PANEL_PIECE(0) ADD work(b, ++done, all);
    }
    FOR_SUMS(STORE)
    BARRIER;
}

/* Products of `rows` rows with all panels, in whole tiles: with an epilogue if `e` is given, otherwise into `out`. */
static void products(int64_t rows, operand x, int64_t depth, const weight *panels, int64_t columns, const epilogue *e,
                     float *out, int64_t out_step, int overwrite, element *scratch) {
    _Alignas(64) float sums[2][ROWS * COLUMNS];
    element *pieces = scratch, *next = scratch + (PIECES == 1 ? 0 : COLUMNS * row_elements(depth));
    int64_t tiles = (rows + ROWS - 1) / ROWS, which = 0;
    background b = {.panel = panels, .pieces = pieces, .to_prepare = depth, .e = e};
    work(&b, 1, 1);
    for (int64_t column = 0; column < columns; column += COLUMNS) {
        int64_t of_next = column + COLUMNS < columns ? depth : 0;
        const element *panel = PIECES == 1 ? (const element *)(panels + column * depth) : pieces;
        b.panel = panels + (column + COLUMNS) * depth, b.pieces = next, b.prepared = 0;
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = tile * ROWS;
            float *tile_out = e ? sums[which] : out + row * out_step + column;
            b.prepare_from = b.prepared, b.to_prepare = of_next * (tile + 1) / tiles;
            multiply(depth, x.rows + row * x.step, panel, &b, tile_out, e ? COLUMNS : out_step, overwrite);
            if (!e) continue;
            b.sums = tile_out, b.row = row, b.column = column, b.finished = 0, which ^= 1;
            b.to_finish = e->for_next ? ROWS : least(ROWS, rows - row);
        }
        element *previous = pieces;
        pieces = next, next = previous;
    }
    work(&b, 1, 1);
}

INLINE void multiply_with_epilogue(int64_t rows, operand x, int64_t depth, const weight *panels, int64_t columns,
                                   const epilogue *e, element *scratch) {
    products(rows, x, depth, panels, columns, e, NULL, 0, 1, scratch);
}

INLINE void multiply_accumulate(int64_t rows, operand x, int64_t depth, const weight *panels, int64_t columns,
                                float *out, int64_t out_step, int overwrite, element *scratch) {
    products(rows, x, depth, panels, columns, NULL, out, out_step, overwrite, scratch);
}
