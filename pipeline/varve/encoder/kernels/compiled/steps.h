/* The exported steps of a forward pass. cpu_library.py declares the same signatures for Python.
 *
 * Functions with a return value return 0, or 1 if memory cannot be allocated.
 */
#pragma once
#include <stdint.h>

#if defined(BFLOAT16)
typedef uint16_t weight; /* bfloat16: products read bfloat16 numbers and add in float32 */
#else
typedef float weight;
#endif

/* Weights of one linear layer. */
typedef struct {
    const weight *panels; /* (inputs / depth, outputs / panel columns, depth, panel columns), in the order of
                           * cpu_weights.py */
    const float *bias;    /* (outputs), or NULL */
    int64_t inputs, outputs, depth;
} weights;

/* Layer normalisation. */
typedef struct {
    const float *scale, *shift;
    float epsilon;
} norm;

/* Activations, in the order of `Activation` in cpu_library.py. */
enum { NO_ACTIVATION, GELU, SILU };

/* Attention within each window. q, k, v and out are (tokens, heads, dim); dim is a multiple of 16 and contiguous.
 * out may be q.
 *
 * steps: strides in elements of q, k, v and out: for each, from a token to the next and from a head to the next.
 * offsets: (windows + 1) first token of each window; the longest has `longest` tokens.
 * reach: the largest distance at which tokens attend to each other.
 * bias: (heads, bias_step) added to the scores, indexed by query position - key position, from -(longest - 1) to
 *       longest + 14; or NULL. */
int attend(const float *q, const float *k, const float *v, float *out, const int64_t steps[8], const int32_t *offsets,
           int64_t windows, int64_t longest, int64_t heads, int64_t dim, int64_t reach, const float *bias,
           int64_t bias_step, float scaling);

/* out (rows, outputs) = activation(x (rows, inputs) through one layer of a single depth). */
int linear(const float *x, int64_t rows, const weights *w, int activation, float *out);

/* Several layers with the same input x, of equal width and depth. */
int linears(const float *x, int64_t rows, int count, const weights *const *w, int activation, float *const *out);

/* out (windows, outputs) = the maximum of itself and of x (rows, inputs) through one layer of a single depth without its
 * bias, over the rows of each window. NaN is kept. windows: (rows) the window of each row. */
int linear_maximum(const float *x, const int32_t *windows, int64_t rows, const weights *w, float *out);

/* out (rows, outputs) = norm(x through one layer of a single depth + residual (rows, outputs)). */
int linear_norm(const float *x, const float *residual, int64_t rows, const weights *w, const norm *n, float *out);

/* out (rows, width) = second(activation(first(x)) * factors(x)); with a norm, norm(that + residual (rows, width)).
 *
 * factors may be NULL. first and factors have a single depth; the depth of second is the number of their outputs that
 * are in memory at once. */
int feed_forward(const float *x, const float *residual, int64_t rows, const weights *first, int activation,
                 const weights *factors, const weights *second, const norm *n, float *out);

/* out (windows, width) = mean of each window's rows of x (tokens, width). offsets: (windows + 1) first row of each. */
void means(const float *x, const int64_t *offsets, int64_t windows, int64_t width, float *out);
