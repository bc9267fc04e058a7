/* Linear layers with the operations after them in a transformer: GELU or SiLU, gate factors from a second layer, the
 * residual sum, layer normalisation.
 *
 * Inputs, outputs and sums are float32; weights too, or bfloat16 with inputs that are rounded to it. Rows of tokens are
 * processed in blocks that stay in a core's L2 cache from the first product to the last sum. The products of a block
 * read the weights panel by panel, in the order of cpu_weights.py. Invariants: the bits of a row do not depend on the
 * other rows; nothing is written beyond a row.
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

/* The panel format for cpu_weights.py: columns of a panel, and whether pairs of inputs are adjacent. */
int64_t panel_columns(void) { return COLUMNS; }
int64_t panel_in_pairs(void) { return sizeof(element) < sizeof(float); }

INLINE const float *bias_from(const float *bias, int64_t first) { return bias ? bias + first : NULL; }

/* Rows per block: at most as many as the L2 cache holds, in blocks of about equal size. */
INLINE int64_t block_rows(int64_t rows, int64_t bytes_per_row) {
    int64_t most = CACHE_BYTES / bytes_per_row / ROWS * ROWS;
    most = most > MAX_BLOCK_ROWS ? MAX_BLOCK_ROWS : most < MIN_BLOCK_ROWS ? MIN_BLOCK_ROWS : most;
    int64_t blocks = (rows + most - 1) / most, tiles = (rows + ROWS - 1) / ROWS;
    return rows ? (tiles + blocks - 1) / blocks * ROWS : ROWS;
}

/* Several layers of equal width and depth with the same input. With `windows`, the window of each row, only the maxima
 * of the windows are kept. */
static int multiply_rows(const float *x, int64_t rows, int count, const weights *const *w, int activation,
                         const int32_t *windows, float *const *out) {
    int64_t width = w[0]->inputs, row_size = row_elements(width), block = block_rows(rows, sizeof(element) * row_size);
    element *buffer = aligned_alloc(64, sizeof(element) * (block * row_size + scratch_elements(width)));
    if (!buffer) return 1;
    begin_products();
    for (int64_t row = 0; row < rows; row += block) {
        int64_t taken = least(block, rows - row);
        operand in = prepare_rows(x + row * width, taken, width, buffer);
        for (int i = 0; i < count; i++) {
            int64_t outputs = w[i]->outputs;
            epilogue e = {w[i]->bias, activation, NULL, 0, out[i] + row * outputs, outputs, 0, NULL};
            if (windows) e.windows = windows + row, e.out = out[i];
            multiply_with_epilogue(taken, in, width, w[i]->panels, outputs, &e, buffer + block * row_size);
        }
    }
    end_products();
    free(buffer);
    return 0;
}

int linears(const float *x, int64_t rows, int count, const weights *const *w, int activation, float *const *out) {
    return multiply_rows(x, rows, count, w, activation, NULL, out);
}

int linear(const float *x, int64_t rows, const weights *w, int activation, float *out) {
    return linears(x, rows, 1, &w, activation, &out);
}

int linear_maximum(const float *x, const int32_t *windows, int64_t rows, const weights *w, float *out) {
    return multiply_rows(x, rows, 1, &w, NO_ACTIVATION, windows, &out);
}

int linear_norm(const float *x, const float *residual, int64_t rows, const weights *w, const norm *n, float *out) {
    int64_t width = w->inputs, row_size = row_elements(width), step = w->outputs + PAD;
    int64_t bytes = sizeof(element) * row_size + sizeof(float) * step, block = block_rows(rows, bytes);
    float *sums = aligned_alloc(64, block * bytes + sizeof(element) * scratch_elements(width));
    element *buffer = (element *)(sums + block * step);
    if (!sums) return 1;
    begin_products();
    for (int64_t row = 0; row < rows; row += block) {
        int64_t taken = least(block, rows - row);
        operand in = prepare_rows(x + row * width, taken, width, buffer);
        multiply_accumulate(taken, in, width, w->panels, w->outputs, sums, step, 1, buffer + block * row_size);
        for (int64_t i = 0, at = row * w->outputs; i < taken; i++, at += w->outputs)
            add_bias_and_norm(sums + i * step, w->bias, residual + at, n, w->outputs, out + at);
    }
    end_products();
    free(sums);
    return 0;
}

int feed_forward(const float *x, const float *residual, int64_t rows, const weights *first, int activation,
                 const weights *factors, const weights *second, const norm *n, float *out) {
    int64_t width = first->inputs, depth = second->depth, step = width + PAD, gates_step = factors ? depth + PAD : 0;
    int64_t row_size = row_elements(width), inner_size = row_elements(depth), longest = width > depth ? width : depth;
    int64_t bytes = sizeof(float) * (step + gates_step) + sizeof(element) * (row_size + inner_size);
    int64_t block = block_rows(rows, bytes);
    float *sums = aligned_alloc(64, block * bytes + sizeof(element) * scratch_elements(longest));
    float *gates = sums + block * step;
    element *buffer = (element *)(gates + block * gates_step), *inner = buffer + block * row_size;
    element *scratch = inner + block * inner_size;
    if (!sums) return 1;
    begin_products();
    for (int64_t row = 0; row < rows; row += block) {
        int64_t taken = least(block, rows - row), whole_tiles = (taken + ROWS - 1) / ROWS * ROWS;
        operand in = prepare_rows(x + row * width, taken, width, buffer);
        for (int64_t at = 0; at < second->inputs; at += depth) {
            epilogue e = {bias_from(first->bias, at), activation, NULL, 0, inner, depth, 1, NULL};
            if (factors) {
                epilogue gate = {bias_from(factors->bias, at), NO_ACTIVATION, NULL, 0, gates, gates_step, 0, NULL};
                multiply_with_epilogue(whole_tiles, in, width, factors->panels + at * width, depth, &gate, scratch);
                e.factors = gates, e.factors_step = gates_step;
            }
            multiply_with_epilogue(whole_tiles, in, width, first->panels + at * width, depth, &e, scratch);
            multiply_accumulate(taken, (operand){inner, inner_size}, depth, second->panels + at * width, width, sums,
                                step, at == 0, scratch);
        }
        for (int64_t i = 0, at = row * width; i < taken; i++, at += width)
            add_bias_and_norm(sums + i * step, second->bias, residual + at, n, width, out + at);
    }
    end_products();
    free(sums);
    return 0;
}
