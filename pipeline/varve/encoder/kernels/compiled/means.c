/* Mean of the token vectors of each window.
 *
 * Invariant: the bits of a window's mean depend on its own tokens alone.
 */
#include "registers.h"
#include "steps.h"

enum { MAX_VECS = 8 }; /* registers of sums at once */

/* `vecs` registers of columns of one window. */
INLINE void mean_of(const float *x, int64_t tokens, int64_t width, int vecs, float *out) {
    vec sums[MAX_VECS];
    UNROLL for (int i = 0; i < vecs; i++) sums[i] = zero();
    for (int64_t t = 0; t < tokens; t++, x += width)
        UNROLL for (int i = 0; i < vecs; i++) sums[i] = sums[i] + load(x + i * LANES);
    UNROLL for (int i = 0; i < vecs; i++) store(out + i * LANES, sums[i] / broadcast((float)tokens));
}

void means(const float *x, const int64_t *offsets, int64_t windows, int64_t width, float *out) {
    for (int64_t w = 0; w < windows; w++, out += width) {
        const float *window = x + offsets[w] * width;
        int64_t tokens = offsets[w + 1] - offsets[w], at = 0;
        for (; at + MAX_VECS * LANES <= width; at += MAX_VECS * LANES)
            mean_of(window + at, tokens, width, MAX_VECS, out + at);
        for (; at + LANES <= width; at += LANES) mean_of(window + at, tokens, width, 1, out + at);
        for (; at < width; at++) {
            float sum = 0;
            for (int64_t t = 0; t < tokens; t++) sum += window[t * width + at];
            out[at] = sum / (float)tokens;
        }
    }
}
