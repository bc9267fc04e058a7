/* What follows a product in a transformer: an activation, factors, the residual sum, layer normalisation. */
#pragma once
#include <math.h>
#include <stddef.h>

#include "registers.h"
#include "steps.h"

enum {
    PARTS = 16 / LANES, /* registers for 16 partial sums, on every kind of CPU */
    PAD = 16,           /* floats behind each row in scratch memory */
};

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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

/* What becomes of a product's sums. */
typedef struct {
    const float *bias;     /* (columns), or NULL */
    int become;            /* PLAIN, GELU or SILU */
    const float *factors;  /* (rows, columns) that the activated numbers are multiplied with, or NULL */
    int64_t factors_step;  /* from a row to the next */
    void *out;             /* (rows, columns): floats; or `onward`, numbers as the next product reads its rows */
    int64_t out_step;      /* of floats from a row to the next, or how many columns the next product reads */
    int onward;
} ending;

/* One register of it, at a row and column of the output. */
INLINE vec become(vec x, int kind, const ending *e, int64_t row, int64_t column) {
    if (e->bias) x = x + load(e->bias + column);
    if (kind == GELU) x = gelu(x);
    if (kind == SILU) x = silu(x);
    if (e->factors) x = x * load(e->factors + row * e->factors_step + column);
    return x;
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
