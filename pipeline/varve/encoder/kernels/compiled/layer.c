/* A whole BERT layer over one packed row in one call, which saves Python's overhead between the steps.
 *
 * Invariant: the result has the same bits as the steps called one by one.
 */
#include <stdlib.h>

#include "steps.h"

/* Weights and sizes of a layer. Every width is heads x dim, except the inner width of the feed-forward block. */
typedef struct {
    const weights *query, *key, *value, *output, *first, *second;
    const norm *after_attention, *after_feed_forward;
    int64_t activation, heads, dim;
    float scaling;
} layer_weights;

/* out (tokens, heads x dim) = layer(x), with windows and bias as in `attend`. */
int layer(const float *x, int64_t tokens, const layer_weights *l, const int32_t *offsets, int64_t windows,
          int64_t longest, const float *bias, int64_t bias_step, float *out) {
    int64_t width = l->heads * l->dim, size = tokens * width;
    const int64_t steps[8] = {width, l->dim, width, l->dim, width, l->dim, width, l->dim};
    float *q = aligned_alloc(64, sizeof(float) * 3 * size), *k = q + size, *v = k + size;
    if (!q) return 1;
    /* The attention output overwrites the queries; its norm overwrites the keys. */
    int failed = linears(x, tokens, 3, (const weights *const[]){l->query, l->key, l->value}, NO_ACTIVATION,
                         (float *const[]){q, k, v}) ||
                 attend(q, k, v, q, steps, offsets, windows, longest, l->heads, l->dim, longest, bias, bias_step,
                        l->scaling) ||
                 linear_norm(q, x, tokens, l->output, l->after_attention, k) ||
                 feed_forward(k, k, tokens, l->first, l->activation, NULL, l->second, l->after_feed_forward, out);
    free(q);
    return failed;
}
