/* Linear layers in float32 with what follows them in a transformer: GELU or SiLU, a second layer's outputs as factors, the
 * residual sum, layer normalisation.
 *
 * Rows of tokens are taken in blocks that stay in a core's second cache from the first product to the last sum; a
 * block's products run over panels of the weights, each as wide as two registers, which panels.py lays out. A tile of
 * ROWS x COLUMNS sums stands in registers over the whole depth. Invariants: every sum runs over the inputs in their
 * order, so a row's bits depend neither on the rows beside it nor on the kind of CPU; nothing is written beyond a row.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "registers.h"
#include "steps.h"

enum {
    ROWS = LANES * 3 / 4,
    WIDE = 2,
    COLUMNS = WIDE * LANES,
    PARTS = 16 / LANES, /* registers for 16 partial sums, on both kinds of CPU */
    PAD = 16,           /* floats behind each row in scratch memory */
    MOST_ROWS = 96,     /* of a block: it and the least are multiples of ROWS */
    LEAST_ROWS = 24,
    CACHE_FLOATS = 512 * 1024 / sizeof(float), /* of the second cache, for a block's numbers */
};

/* How many columns a panel has: panels.py lays weights out by it. */
int64_t panel_columns(void) { return COLUMNS; }

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t block_rows(int64_t floats_a_row) {
    int64_t rows = CACHE_FLOATS / floats_a_row / ROWS * ROWS;
    return rows > MOST_ROWS ? MOST_ROWS : rows < LEAST_ROWS ? LEAST_ROWS : rows;
}

INLINE const float *some(const float *bias, int64_t at) { return bias ? bias + at : NULL; }

INLINE int64_t whole_tiles(int64_t rows) { return (rows + ROWS - 1) / ROWS * ROWS; }

/* x (0.5 + 0.5 erf(x / sqrt 2)); half the error function as x P(x^2) / Q(x^2), a minimax fit for |x| <= 5.55 that is off
 * by 8e-9 at most; where x is held it is 0.5 in float32. */
INLINE vec gelu(vec x) {
    vec near = smaller(larger(x, splat(-5.51f)), splat(5.51f)), square = near * near;
    vec p = splat(2.2442216973672657e-8f), q = splat(1.188572014143574e-6f);
    p = product_plus(p, square, splat(6.3523489188810345e-6f));
    q = product_plus(q, square, splat(7.434197323163971e-5f));
    p = product_plus(p, square, splat(1.7125732847489417e-4f));
    q = product_plus(q, square, splat(1.8982422770932317e-3f));
    p = product_plus(p, square, splat(4.691715352237225e-3f));
    q = product_plus(q, square, splat(2.8788864612579346e-2f));
    p = product_plus(p, square, splat(3.410781919956207e-2f));
    q = product_plus(q, square, splat(2.5216144323349e-1f));
    p = product_plus(p, square, splat(3.98942232131958e-1f));
    q = product_plus(q, square, splat(1.0f));
    return x * (splat(0.5f) + near * p / q);
}

/* x / (1 + e^-x), by way of a power that is 1 at most. */
INLINE vec silu(vec x) {
    vec power = exp2_of(smaller(x, -x) * splat(1.44269504088896341f /* log2(e) */));
    return x * where_less(x, zero(), power, splat(1.0f)) / (splat(1.0f) + power);
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

/* Columns of `out`: products, bias and what `become` says, for rows that are there. Their lines are fetched for writing
 * before they are computed. */
INLINE void finish_as(int become, int64_t rows, const float *from, int64_t from_step, int64_t depth,
                      const float *panels, int64_t columns, const float *bias, float *out, int64_t out_step) {
    _Alignas(64) float sums[ROWS * COLUMNS];
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const float *panel = panels + column * depth;
        float *to = out + row * out_step + column;
        int64_t there = least(ROWS, rows - row);
        for (int64_t i = 0; i < there; i++) UNROLL for (int j = 0; j < WIDE; j++)
            __builtin_prefetch(to + i * out_step + j * LANES, 1);
        multiply(depth, from + row * from_step, from_step, panel, next_of(panel, depth, row), sums, COLUMNS, 1);
        for (int64_t i = 0; i < there; i++) UNROLL for (int j = 0; j < WIDE; j++) {
            vec x = load(sums + i * COLUMNS + j * LANES);
            if (bias) x = x + load(bias + column + j * LANES);
            if (become == GELU) x = gelu(x);
            if (become == SILU) x = silu(x);
            if (become == TIMES) x = x * load(to + i * out_step + j * LANES);
            store(to + i * out_step + j * LANES, x);
        }
    }
}

/* One loop for each, for a choice inside of it costs a percent of a pass. */
static void finish(int64_t rows, const float *from, int64_t from_step, int64_t depth, const float *panels,
                   int64_t columns, const float *bias, int become, float *out, int64_t out_step) {
    if (become == GELU) finish_as(GELU, rows, from, from_step, depth, panels, columns, bias, out, out_step);
    else if (become == SILU) finish_as(SILU, rows, from, from_step, depth, panels, columns, bias, out, out_step);
    else if (become == TIMES) finish_as(TIMES, rows, from, from_step, depth, panels, columns, bias, out, out_step);
    else finish_as(PLAIN, rows, from, from_step, depth, panels, columns, bias, out, out_step);
}

/* Add the products of one depth to `to`, in whole tiles. */
static void add(int64_t rows, const float *from, int64_t from_step, int64_t depth, const float *panels, int64_t columns,
                float *to, int64_t to_step, int from_zero) {
    for (int64_t column = 0; column < columns; column += COLUMNS) for (int64_t row = 0; row < rows; row += ROWS) {
        const float *panel = panels + column * depth;
        multiply(depth, from + row * from_step, from_step, panel, next_of(panel, depth, row),
                 to + row * to_step + column, to_step, from_zero);
    }
}

/* Rows as products read them, `*step` apart: where they are if they fill whole tiles, else in `room`, with zeros behind
 * the last; so too where rows are a power of two apart, and would fall into the same places of the first cache. */
static const float *whole(const float *from, int64_t rows, int64_t width, float *room, int64_t *step) {
    *step = width;
    if (rows % ROWS == 0 && width % 512) return from;
    *step = width + PAD;
    for (int64_t i = 0; i < rows; i++) memcpy(room + i * *step, from + i * width, sizeof(float) * width);
    memset(room + rows * *step, 0, sizeof(float) * (whole_tiles(rows) - rows) * *step);
    return room;
}

INLINE float total(const vec parts[PARTS]) {
    float all[16];
    UNROLL for (int j = 0; j < PARTS; j++) store(all + j * LANES, parts[j]);
    for (int half = 8; half; half /= 2) for (int i = 0; i < half; i++) all[i] += all[i + half];
    return all[0];
}

/* out = sums + bias, and with a norm: normalised(sums + bias + residual). Overwrites the sums. */
static void settle(float *sums, const float *bias, const float *residual, const norm *n, int64_t width, float *out) {
    vec parts[PARTS], squares[PARTS];
    UNROLL for (int j = 0; j < PARTS; j++) parts[j] = squares[j] = zero();
    for (int64_t at = 0; at < width; at += 16) UNROLL for (int j = 0; j < PARTS; j++) {
        int64_t here = at + j * LANES;
        vec x = load(sums + here);
        if (bias) x = x + load(bias + here);
        if (n) x = x + load(residual + here);
        store((n ? sums : out) + here, x);
        parts[j] = parts[j] + x;
    }
    if (!n) return;
    vec mean = splat(total(parts) / width);
    for (int64_t at = 0; at < width; at += 16) UNROLL for (int j = 0; j < PARTS; j++) {
        vec away = load(sums + at + j * LANES) - mean;
        squares[j] = product_plus(away, away, squares[j]);
    }
    vec scale = splat(1 / sqrtf(total(squares) / width + n->epsilon));
    for (int64_t at = 0; at < width; at += LANES)
        store(out + at, product_plus((load(sums + at) - mean) * scale, load(n->scale + at), load(n->shift + at)));
}

int linear(const float *x, int64_t rows, const weights *w, int become, float *out) {
    int64_t width = w->inputs, block = block_rows(width), step;
    float *room = aligned_alloc(64, sizeof(float) * block * (width + PAD));
    if (!room) return 1;
    for (int64_t row = 0; row < rows; row += block) {
        int64_t there = least(block, rows - row);
        const float *from = whole(x + row * width, there, width, room, &step);
        finish(there, from, step, width, w->panels, w->outputs, w->bias, become, out + row * w->outputs, w->outputs);
    }
    free(room);
    return 0;
}

int linear_norm(const float *x, const float *residual, int64_t rows, const weights *w, const norm *n, float *out) {
    int64_t width = w->inputs, sums_step = w->outputs + PAD, block = block_rows(width + sums_step), step;
    float *sums = aligned_alloc(64, sizeof(float) * block * (width + PAD + sums_step)), *room = sums + block * sums_step;
    if (!sums) return 1;
    for (int64_t row = 0; row < rows; row += block) {
        int64_t there = least(block, rows - row);
        const float *from = whole(x + row * width, there, width, room, &step);
        add(there, from, step, width, w->panels, w->outputs, sums, sums_step, 1);
        for (int64_t i = 0, at = row * w->outputs; i < there; i++, at += w->outputs)
            settle(sums + i * sums_step, w->bias, residual + at, n, w->outputs, out + at);
    }
    free(sums);
    return 0;
}

int feed_forward(const float *x, const float *residual, int64_t rows, const weights *first, int become,
                 const weights *factors, const weights *second, const norm *n, float *out) {
    int64_t width = first->inputs, depth = second->depth, sums_step = width + PAD, inner_step = depth + PAD, step;
    int64_t block = block_rows(2 * width + depth);
    float *sums = aligned_alloc(64, sizeof(float) * block * (2 * sums_step + inner_step));
    float *inner = sums + block * sums_step, *room = inner + block * inner_step;
    if (!sums) return 1;
    for (int64_t row = 0; row < rows; row += block) {
        int64_t there = least(block, rows - row), tiles = whole_tiles(there);
        const float *from = whole(x + row * width, there, width, room, &step);
        for (int64_t at = 0; at < second->inputs; at += depth) {
            finish(tiles, from, step, width, first->panels + at * width, depth, some(first->bias, at), become, inner,
                   inner_step);
            if (factors)
                finish(tiles, from, step, width, factors->panels + at * width, depth, some(factors->bias, at), TIMES,
                       inner, inner_step);
            add(there, inner, inner_step, depth, second->panels + at * width, width, sums, sums_step, at == 0);
        }
        for (int64_t i = 0, at = row * width; i < there; i++, at += width)
            settle(sums + i * sums_step, second->bias, residual + at, n, width, out + at);
    }
    free(sums);
    return 0;
}
