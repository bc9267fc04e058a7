/* Operations after a matrix product in a transformer: activation, gate factors, residual sum, layer normalisation. */
#pragma once
#include <math.h>
#include <stddef.h>

#include "registers.h"
#include "steps.h"

enum {
    PARTS = 16 / LANES, /* registers that hold 16 partial sums, on every CPU */
    PAD = 16,           /* floats after each row in scratch memory */
};

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* x (0.5 + 0.5 erf(x / sqrt 2)). Half the error function is x P(x^2) / Q(x^2), a minimax fit for |x| <= 5.55 with an
 * error of at most 8e-9; x is clamped where the result is 0.5 in float32. */
INLINE vec gelu(vec x) {
    vec clamped = minimum(maximum(x, broadcast(-5.51f)), broadcast(5.51f)), square = clamped * clamped;
    vec p = broadcast(2.2442216973672657e-8f), q = broadcast(1.188572014143574e-6f);
    p = multiply_add(p, square, broadcast(6.3523489188810345e-6f));
    q = multiply_add(q, square, broadcast(7.434197323163971e-5f));
    p = multiply_add(p, square, broadcast(1.7125732847489417e-4f));
    q = multiply_add(q, square, broadcast(1.8982422770932317e-3f));
    p = multiply_add(p, square, broadcast(4.691715352237225e-3f));
    q = multiply_add(q, square, broadcast(2.8788864612579346e-2f));
    p = multiply_add(p, square, broadcast(3.410781919956207e-2f));
    q = multiply_add(q, square, broadcast(2.5216144323349e-1f));
    p = multiply_add(p, square, broadcast(3.98942232131958e-1f));
    q = multiply_add(q, square, broadcast(1.0f));
    return x * (broadcast(0.5f) + clamped * p / q);
}

/* x / (1 + e^-x), computed from e^-|x| so that the power cannot overflow. */
INLINE vec silu(vec x) {
    vec power = exp2_of(minimum(x, -x) * broadcast(1.44269504088896341f /* log2(e) */));
    return x * select_less(x, zero(), power, broadcast(1.0f)) / (broadcast(1.0f) + power);
}

/* Epilogue of a matrix product: how its sums become outputs. */
typedef struct {
    const float *bias;     /* (columns), or NULL */
    int activation;        /* NO_ACTIVATION, GELU or SILU */
    const float *factors;  /* (rows, columns) multiplied with the activated values, or NULL */
    int64_t factors_step;  /* floats from a row to the next */
    void *out;             /* (rows, columns) floats; with for_next, rows in the format that products read */
    int64_t out_step;      /* floats from a row to the next; with for_next, columns that the next product reads */
    int for_next;          /* whether the output is the input of the next product */
    const int32_t *windows; /* (rows) the row of `out` that keeps the maximum of the sums, without bias and
                             * activation; or NULL */
} epilogue;

/* Applies the epilogue to one register at a row and column of the output. */
INLINE vec apply(vec x, int activation, const epilogue *e, int64_t row, int64_t column) {
    if (e->bias) x = x + load(e->bias + column);
    if (activation == GELU) x = gelu(x);
    if (activation == SILU) x = silu(x);
    if (e->factors) x = x * load(e->factors + row * e->factors_step + column);
    return x;
}

/* Keeps the maximum of one register of sums at a row and column. */
INLINE void keep_maximum(vec sums, const epilogue *e, int64_t row, int64_t column) {
    float *kept = (float *)e->out + e->windows[row] * e->out_step + column;
    store(kept, maximum_or_nan(load(kept), sums));
}

INLINE float sum_of(const vec parts[PARTS]) {
    float all[16];
    UNROLL for (int j = 0; j < PARTS; j++) store(all + j * LANES, parts[j]);
    for (int half = 8; half; half /= 2) for (int i = 0; i < half; i++) all[i] += all[i + half];
    return all[0];
}

/* out = sums + bias; with a norm, out = norm(sums + bias + residual). Overwrites the sums. */
static void add_bias_and_norm(float *sums, const float *bias, const float *residual, const norm *n, int64_t width,
                              float *out) {
    vec parts[PARTS], squares[PARTS];
    UNROLL for (int j = 0; j < PARTS; j++) parts[j] = squares[j] = zero();
    for (int64_t first = 0; first < width; first += 16) UNROLL for (int j = 0; j < PARTS; j++) {
        int64_t at = first + j * LANES;
        vec x = load(sums + at);
        if (bias) x = x + load(bias + at);
        if (n) x = x + load(residual + at);
        store((n ? sums : out) + at, x);
        parts[j] = parts[j] + x;
    }
    if (!n) return;
    vec mean = broadcast(sum_of(parts) / width);
    for (int64_t first = 0; first < width; first += 16) UNROLL for (int j = 0; j < PARTS; j++) {
        vec deviation = load(sums + first + j * LANES) - mean;
        squares[j] = multiply_add(deviation, deviation, squares[j]);
    }
    vec scale = broadcast(1 / sqrtf(sum_of(squares) / width + n->epsilon));
    for (int64_t at = 0; at < width; at += LANES)
        store(out + at, multiply_add((load(sums + at) - mean) * scale, load(n->scale + at), load(n->shift + at)));
}
