/* The mean of the token vectors of each window, for as many layers as a job pools.
 *
 * Invariant: a window's bits depend on its own tokens alone.
 */
#include "registers.h"
#include "steps.h"

enum { WIDE = 8 }; /* registers of sums at once */

/* `wide` registers of columns of one window. */
INLINE void mean_of(const float *x, int64_t tokens, int64_t width, int wide, float *out) {
    vec sums[WIDE];
    UNROLL for (int i = 0; i < wide; i++) sums[i] = zero();
    for (int64_t t = 0; t < tokens; t++, x += width)
        UNROLL for (int i = 0; i < wide; i++) sums[i] = sums[i] + load(x + i * LANES);
    UNROLL for (int i = 0; i < wide; i++) store(out + i * LANES, sums[i] / splat((float)tokens));
}

void means(const float *x, const int64_t *offsets, int64_t windows, int64_t width, float *out) {
    for (int64_t w = 0; w < windows; w++, out += width) {
        const float *from = x + offsets[w] * width;
        int64_t tokens = offsets[w + 1] - offsets[w], at = 0;
        for (; at + WIDE * LANES <= width; at += WIDE * LANES) mean_of(from + at, tokens, width, WIDE, out + at);
        for (; at + LANES <= width; at += LANES) mean_of(from + at, tokens, width, 1, out + at);
        for (; at < width; at++) {
            float sum = 0;
            for (int64_t t = 0; t < tokens; t++) sum += from[t * width + at];
            out[at] = sum / (float)tokens;
        }
    }
}
