/* Products by the tiles of AMX, which multiply numbers of 8 bits' precision and add in float32.
 *
 * A float32 is the sum of three such numbers, so the six largest of the nine products of their parts give the product of
 * two to float32's own precision (Henry, Tang and Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype For
 * Higher-Precision Computations, 2019). Rows are split into pieces once for a block, panels once for each block; that and
 * what becomes of sums is done by a core's registers while its tiles multiply. Invariant: every sum runs over the inputs
 * in their order, so a row's bits do not depend on the rows beside it.
 */
#pragma once
#include <stdint.h>

#include "after.h"
#include "registers.h"

typedef uint16_t number; /* bfloat16: what a product reads */

/* Rows in pieces, `step` numbers for each. */
typedef struct {
    const number *rows;
    int64_t step;
} operand;

enum {
    ROWS = 32,
    COLUMNS = 32,
    STEP = 32, /* inputs that one instruction takes, 16 rows or columns at once */
    TILE = 16 * STEP,
    PIECES = 3,
    PIECED = PIECES * TILE, /* numbers of 16 rows or columns with STEP inputs, piece by piece */
    MOST_ROWS = 224, /* of a block: it and the least are multiples of ROWS */
    LEAST_ROWS = 64,
    CACHE_BYTES = 1536 * 1024, /* of the second cache, for a block's numbers */
};

/* The compiler does not know what instructions on tiles read and write. */
#define BARRIER __asm__ volatile("" ::: "memory")

/* Tiles 0 to 3 are sums, 4 and 5 pieces of rows, 6 and 7 pieces of the panel. */
#define SUMS(do) do(0, to) do(1, to + 16) do(2, to + 16 * to_step) do(3, to + 16 * to_step + 16)
#define CLEAR(tile, at) _tile_zero(tile);
#define FETCH(tile, at) _tile_loadd(tile, at, to_step * sizeof(float));
#define KEEP(tile, at) _tile_stored(tile, at, to_step * sizeof(float));
#define LEFT(piece) _tile_loadd(4, from + (piece) * TILE, 64); _tile_loadd(5, below + (piece) * TILE, 64);
#define RIGHT(piece) _tile_loadd(6, panel + (piece) * TILE, 64); _tile_loadd(7, panel + PIECED + (piece) * TILE, 64);
#define ADD _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);

/* The tiles' shapes, which a thread sets before it multiplies. */
INLINE void begin_products(void) {
    _Alignas(64) uint8_t shapes[64] = {1 /* palette */};
    for (int tile = 0; tile < 8; tile++) shapes[16 + 2 * tile] = 64 /* bytes in a row */, shapes[48 + tile] = 16;
    BARRIER;
    _tile_loadconfig(shapes);
}

INLINE void end_products(void) { _tile_release(); }

/* The nearest numbers to 32 floats; what is left of them stays. */
INLINE __m512i take_piece(vec *lower, vec *upper) {
    __m512i piece = (__m512i)_mm512_cvtne2ps_pbh(*upper, *lower);
    __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(piece));
    __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(piece, 1));
    *lower = *lower - (vec)_mm512_slli_epi32(first, 16);
    *upper = *upper - (vec)_mm512_slli_epi32(second, 16);
    return piece;
}

/* 32 floats as a row of each of three tiles. */
INLINE void split(vec lower, vec upper, number *to) {
    UNROLL for (int piece = 0; piece < PIECES; piece++)
        _mm512_storeu_si512(to + piece * TILE, take_piece(&lower, &upper));
}

/* Where the pieces of a row's (or column's) inputs from k on begin, of rows of `depth` inputs. */
INLINE int64_t pieces_at(int64_t row, int64_t depth, int64_t k) {
    return (row / 16 * depth + k) / STEP * PIECED + row % 16 * STEP;
}

/* Numbers of a row of so many inputs. */
INLINE int64_t row_numbers(int64_t width) { return width * PIECES; }

/* What finish and add need for themselves: two panels in pieces. */
INLINE int64_t scratch_numbers(int64_t depth) { return 2 * COLUMNS * depth * PIECES; }

/* Rows as products read them: in `room`, with zeros for rows behind the last of a tile. */
static operand arrange(const float *from, int64_t rows, int64_t width, number *room) {
    for (int64_t row = 0; row < (rows + ROWS - 1) / ROWS * ROWS; row++) for (int64_t k = 0; k < width; k += STEP) {
        const float *at = from + row * width + k;
        split(row < rows ? load(at) : zero(), row < rows ? load(at + LANES) : zero(), room + pieces_at(row, width, k));
    }
    return (operand){room, row_numbers(width)};
}

/* What the registers do while the tiles multiply: they split a share of the next panel, and end the tile before. */
typedef struct {
    const float *panel; /* floats in the order of its pieces */
    number *pieces;
    int64_t split_from, split, splits; /* 32 floats each */
    const float *sums;
    const ending *e;
    int64_t row, column, ended, ends; /* of the sums; rows of them */
} meanwhile;

INLINE void split_row(const meanwhile *m, int64_t at) {
    const float *from = m->panel + at * STEP;
    __builtin_prefetch(from + 64 * STEP, 0, 2), __builtin_prefetch(from + 64 * STEP + LANES, 0, 2);
    split(load(from), load(from + LANES), m->pieces + pieces_at(at, STEP, 0));
}

INLINE void end_row(const meanwhile *m, int64_t at) {
    const ending *e = m->e;
    int64_t row = m->row + at, column = m->column;
    vec lower = become(load(m->sums + at * COLUMNS), e->become, e, row, column);
    vec upper = become(load(m->sums + at * COLUMNS + LANES), e->become, e, row, column + LANES);
    if (e->onward) {
        split(lower, upper, (number *)e->out + pieces_at(row, e->out_step, column));
        return;
    }
    float *to = (float *)e->out + row * e->out_step + column;
    store(to, lower), store(to + LANES, upper);
}

/* Go on to `done` of `all`. */
INLINE void work(meanwhile *m, int64_t done, int64_t all) {
    for (; m->ended * all < m->ends * done; m->ended++) end_row(m, m->ended);
    for (; (m->split - m->split_from) * all < (m->splits - m->split_from) * done; m->split++) split_row(m, m->split);
}

/* to[i][column] = sum over k of from[i][k] * panel[k][column], from 0 on or added to what is there. The products of smaller
 * pieces come first, in an order in which but one side is loaded anew, and in which what is multiplied with 1 stays what
 * it is. */
static __attribute__((noinline)) void multiply(int64_t depth, const number *from, const number *panel, meanwhile *m,
                                               float *to, int64_t to_step, int from_zero) {
    const number *below = from + 16 * row_numbers(depth);
    int64_t done = 0, all = 6 * depth / STEP;
    BARRIER;
    if (from_zero) { SUMS(CLEAR) }
    else { SUMS(FETCH) }
    for (int64_t k = 0; k < depth; k += STEP, from += PIECED, below += PIECED, panel += 2 * PIECED) {
        LEFT(2) RIGHT(0) ADD work(m, ++done, all);
        LEFT(1) ADD work(m, ++done, all);
        RIGHT(1) ADD work(m, ++done, all);
        LEFT(0) ADD work(m, ++done, all);
        RIGHT(2) ADD work(m, ++done, all);
        RIGHT(0) ADD work(m, ++done, all);
    }
    SUMS(KEEP)
    BARRIER;
}

/* All tiles of some rows and panels: their sums become what `e` says, or are added to `to`, in whole tiles. */
static void products(int64_t rows, operand from, int64_t depth, const float *panels, int64_t columns, const ending *e,
                     float *to, int64_t to_step, int from_zero, number *scratch) {
    _Alignas(64) float sums[2][ROWS * COLUMNS];
    number *panel = scratch, *next = scratch + COLUMNS * row_numbers(depth);
    int64_t tiles = (rows + ROWS - 1) / ROWS, which = 0;
    meanwhile m = {.panel = panels, .pieces = panel, .splits = depth, .e = e};
    work(&m, 1, 1);
    for (int64_t column = 0; column < columns; column += COLUMNS) {
        int64_t left = column + COLUMNS < columns ? depth : 0;
        m.panel = panels + (column + COLUMNS) * depth, m.pieces = next, m.split = 0;
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = tile * ROWS;
            float *at = e ? sums[which] : to + row * to_step + column;
            m.split_from = m.split, m.splits = left * (tile + 1) / tiles;
            multiply(depth, from.rows + row * from.step, panel, &m, at, e ? COLUMNS : to_step, from_zero);
            if (!e) continue;
            m.sums = at, m.row = row, m.column = column, m.ended = 0, which ^= 1;
            m.ends = e->onward ? ROWS : least(ROWS, rows - row);
        }
        number *was = panel;
        panel = next, next = was;
    }
    work(&m, 1, 1);
}

INLINE void finish(int64_t rows, operand from, int64_t depth, const float *panels, int64_t columns, const ending *e,
                   number *scratch) {
    products(rows, from, depth, panels, columns, e, NULL, 0, 1, scratch);
}

INLINE void add(int64_t rows, operand from, int64_t depth, const float *panels, int64_t columns, float *to,
                int64_t to_step, int from_zero, number *scratch) {
    products(rows, from, depth, panels, columns, NULL, to, to_step, from_zero, scratch);
}
