/* A whole layer as BERT's family writes it, over one packed row: what calls it has nothing to do between its steps.
 *
 * Invariant: the numbers are those of the steps one by one, to the bit.
 */
#include <stdlib.h>

#include "steps.h"

/* What a layer is made of; every width but the inner one of the feed-forward block is heads x dim. */
typedef struct {
    const weights *query, *key, *value, *output, *first, *second;
    const norm *after_attention, *after_feed_forward;
    int64_t become, heads, dim;
    float scaling;
} parts;

/* out (tokens, heads x dim) = x of the same shape through the layer; windows and bias as `attend` takes them. */
int layer(const float *x, int64_t tokens, const parts *p, const int32_t *offsets, int64_t windows, int64_t longest,
          const float *bias, int64_t bias_step, float *out) {
    int64_t width = p->heads * p->dim, numbers = tokens * width;
    const int64_t steps[8] = {width, p->dim, width, p->dim, width, p->dim, width, p->dim};
    float *q = aligned_alloc(64, sizeof(float) * 3 * numbers), *k = q + numbers, *v = k + numbers;
    if (!q) return 1;
    /* Where queries were stands what was attended to; where keys were, its norm. */
    int failed = linears(x, tokens, 3, (const weights *const[]){p->query, p->key, p->value}, PLAIN,
                         (float *const[]){q, k, v}) ||
                 attend(q, k, v, q, steps, offsets, windows, longest, p->heads, p->dim, longest, bias, bias_step,
                        p->scaling) ||
                 linear_norm(q, x, tokens, p->output, p->after_attention, k) ||
                 feed_forward(k, k, tokens, p->first, p->become, NULL, p->second, p->after_feed_forward, out);
    free(q);
    return failed;
}
