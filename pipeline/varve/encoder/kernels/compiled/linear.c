/* Linear layers in float32 with what follows them in a transformer: GELU or SiLU, a second layer's outputs as factors, the
 * residual sum, layer normalisation.
 *
 * Rows of tokens are taken in blocks that stay in a core's second cache from the first product to the last sum; a
 * block's products run over panels of the weights, which panels.py lays out. Invariants: a row's bits do not depend on
 * the rows beside it; nothing is written beyond a row.
 */
#include <stdint.h>
#include <stdlib.h>

#include "after.h"
#include "steps.h"
#if defined(__AMX_BF16__)
#include "tiles.h"
#else
#include "product.h"
#endif

/* How panels.py lays weights out: columns of a panel, and whether each two inputs lie side by side. */
int64_t panel_columns(void) { return COLUMNS; }
int64_t panel_in_pairs(void) { return sizeof(number) < sizeof(float); }

INLINE const float *some(const float *bias, int64_t at) { return bias ? bias + at : NULL; }

/* As many rows as the second cache holds the numbers of, in blocks of about the same size. */
INLINE int64_t block_rows(int64_t rows, int64_t bytes_a_row) {
    int64_t most = CACHE_BYTES / bytes_a_row / ROWS * ROWS;
    most = most > MOST_ROWS ? MOST_ROWS : most < LEAST_ROWS ? LEAST_ROWS : most;
    int64_t blocks = (rows + most - 1) / most, tiles = (rows + ROWS - 1) / ROWS;
    return rows ? (tiles + blocks - 1) / blocks * ROWS : ROWS;
}

int linears(const float *x, int64_t rows, int count, const weights *const *w, int become, float *const *out) {
    int64_t width = w[0]->inputs, numbers = row_numbers(width), block = block_rows(rows, sizeof(number) * numbers);
    number *room = aligned_alloc(64, sizeof(number) * (block * numbers + scratch_numbers(width)));
    if (!room) return 1;
    begin_products();
    for (int64_t row = 0; row < rows; row += block) {
        int64_t there = least(block, rows - row);
        operand from = arrange(x + row * width, there, width, room);
        for (int i = 0; i < count; i++) {
            int64_t outputs = w[i]->outputs;
            ending e = {w[i]->bias, become, NULL, 0, out[i] + row * outputs, outputs, 0};
            finish(there, from, width, w[i]->panels, outputs, &e, room + block * numbers);
        }
    }
    end_products();
    free(room);
    return 0;
}

int linear(const float *x, int64_t rows, const weights *w, int become, float *out) {
    return linears(x, rows, 1, &w, become, &out);
}

int linear_norm(const float *x, const float *residual, int64_t rows, const weights *w, const norm *n, float *out) {
    int64_t width = w->inputs, numbers = row_numbers(width), step = w->outputs + PAD;
    int64_t bytes = sizeof(number) * numbers + sizeof(float) * step, block = block_rows(rows, bytes);
    float *sums = aligned_alloc(64, block * bytes + sizeof(number) * scratch_numbers(width));
    number *room = (number *)(sums + block * step);
    if (!sums) return 1;
    begin_products();
    for (int64_t row = 0; row < rows; row += block) {
        int64_t there = least(block, rows - row);
        operand from = arrange(x + row * width, there, width, room);
        add(there, from, width, w->panels, w->outputs, sums, step, 1, room + block * numbers);
        for (int64_t i = 0, at = row * w->outputs; i < there; i++, at += w->outputs)
            settle(sums + i * step, w->bias, residual + at, n, w->outputs, out + at);
    }
    end_products();
    free(sums);
    return 0;
}

int feed_forward(const float *x, const float *residual, int64_t rows, const weights *first, int become,
                 const weights *factors, const weights *second, const norm *n, float *out) {
    int64_t width = first->inputs, depth = second->depth, step = width + PAD, gates_step = factors ? depth + PAD : 0;
    int64_t numbers = row_numbers(width), inner_numbers = row_numbers(depth), longest = width > depth ? width : depth;
    int64_t bytes = sizeof(float) * (step + gates_step) + sizeof(number) * (numbers + inner_numbers);
    int64_t block = block_rows(rows, bytes);
    float *sums = aligned_alloc(64, block * bytes + sizeof(number) * scratch_numbers(longest));
    float *gates = sums + block * step;
    number *room = (number *)(gates + block * gates_step), *inner = room + block * numbers;
    number *scratch = inner + block * inner_numbers;
    if (!sums) return 1;
    begin_products();
    for (int64_t row = 0; row < rows; row += block) {
        int64_t there = least(block, rows - row), tiles = (there + ROWS - 1) / ROWS * ROWS;
        operand from = arrange(x + row * width, there, width, room);
        for (int64_t at = 0; at < second->inputs; at += depth) {
            ending e = {some(first->bias, at), become, NULL, 0, inner, depth, 1};
            if (factors) {
                ending gate = {some(factors->bias, at), PLAIN, NULL, 0, gates, gates_step, 0};
                finish(tiles, from, width, factors->panels + at * width, depth, &gate, scratch);
                e.factors = gates, e.factors_step = gates_step;
            }
            finish(tiles, from, width, first->panels + at * width, depth, &e, scratch);
            add(there, (operand){inner, inner_numbers}, depth, second->panels + at * width, width, sums,
                step, at == 0, scratch);
        }
        for (int64_t i = 0, at = row * width; i < there; i++, at += width)
            settle(sums + i * step, second->bias, residual + at, n, width, out + at);
    }
    end_products();
    free(sums);
    return 0;
}
