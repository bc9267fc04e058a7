/* The steps of a pass, each of which can be called by itself: kernel.py describes the same to Python.
 *
 * Those that return a number return 0, or 1 where memory is out.
 */
#pragma once
#include <stdint.h>

/* One linear layer's weights. */
typedef struct {
    const float *panels; /* (inputs / depth, outputs / columns of a panel, depth, columns of a panel), in the order of
                          * panels.py */
    const float *bias;   /* (outputs), or NULL */
    int64_t inputs, outputs, depth;
} weights;

/* Layer normalisation of the sum with a residual. */
typedef struct {
    const float *scale, *shift;
    float epsilon;
} norm;

/* What becomes of a layer's outputs; kernel.py numbers them alike. */
enum { PLAIN, GELU, SILU };

/* Attention of all windows: q, k, v and out are (tokens, heads, dim), dim a multiple of 16, its elements side by side.
 * out may be q.
 *
 * steps: of q, k, v and out in turns, from a token to the next and from a head to the next, in elements.
 * offsets: (windows + 1) where each window starts; the longest has `longest` tokens.
 * reach: tokens attend to those at most so far away.
 * bias: (heads, bias_step) what is added to a score, by how far the query stands behind the key, from -(longest - 1) to
 *       longest + 14; or NULL. */
int attend(const float *q, const float *k, const float *v, float *out, const int64_t steps[8], const int32_t *offsets,
           int64_t windows, int64_t longest, int64_t heads, int64_t dim, int64_t reach, const float *bias,
           int64_t bias_step, float scaling);

/* out (rows, outputs) = x (rows, inputs) through one layer of a single depth, and what `become` says of it. */
int linear(const float *x, int64_t rows, const weights *w, int become, float *out);

/* Some layers of the same x, whose widths and depths are the same. */
int linears(const float *x, int64_t rows, int count, const weights *const *w, int become, float *const *out);

/* out (rows, outputs) = the norm of x through one layer of a single depth plus a residual (rows, outputs). */
int linear_norm(const float *x, const float *residual, int64_t rows, const weights *w, const norm *n, float *out);

/* out (rows, width) = x (rows, width) through a layer, what `become` says, the outputs of `factors` as factors if there are
 * any, and a second layer; with a norm, that of the sum with a residual (rows, width).
 *
 * The first and the factors have a single depth; the second's depth is how many of their outputs are in memory at once. */
int feed_forward(const float *x, const float *residual, int64_t rows, const weights *first, int become,
                 const weights *factors, const weights *second, const norm *n, float *out);

/* out (windows, width) = the mean of each window's rows of x (tokens, width). offsets: (windows + 1) where each starts. */
void means(const float *x, const int64_t *offsets, int64_t windows, int64_t width, float *out);
