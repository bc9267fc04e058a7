/* Softmax attention in float32 within each window of a packed row, for CPUs with AVX-512, or with AVX2 and FMA.
 *
 * Scores are stored as (key, query) with queries in the lanes of a register, so the softmax needs no reduction
 * across lanes. For the sums over values the lanes hold dimensions, and weights are broadcast. Keys and values are
 * read in place; those of long windows are copied first. Invariants: a window's output depends on that window alone;
 * nothing is read or written beyond it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "registers.h"
#include "steps.h"

enum { ROWS = LANES / 2 };

static const float LANE_INDICES[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* Transposes a square of LANES registers. */
INLINE void transpose(vec x[LANES]) {
    UNROLL for (int stage = 1; stage < LANES; stage *= 2) {
        vec previous[LANES];
        UNROLL for (int i = 0; i < LANES; i++) previous[i] = x[i];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            x[2 * i] = interleave(previous[i], previous[i + LANES / 2], 0);
            x[2 * i + 1] = interleave(previous[i], previous[i + LANES / 2], 1);
        }
    }
}

/* sums[i] = sum over k < depth of a[i * row_step + k * step] * b[k * b_step ...], for `rows` rows of `vecs`
 * registers. */
INLINE void multiply(int rows, int vecs, int64_t depth, const float *a, int64_t row_step, int64_t step, const float *b,
                     int64_t b_step, vec sums[ROWS][2]) {
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vecs; j++) sums[i][j] = zero();
    for (int64_t k = 0; k < depth; k++) {
        vec right[2];
        UNROLL for (int j = 0; j < vecs; j++) right[j] = load(b + k * b_step + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            vec left = broadcast(a[i * row_step + k * step]);
            UNROLL for (int j = 0; j < vecs; j++) sums[i][j] = multiply_add(left, right[j], sums[i][j]);
        }
    }
}

/* One attention head of one window. */
typedef struct {
    const float *q, *k, *v;
    float *out;
    const float *bias; /* indexed by query position - key position; or NULL */
    int64_t q_step, k_step, v_step, out_step; /* from a token to the next */
    int64_t tokens, dim, reach;
    float scale;
} head;

#define LOG2_E 1.44269504088896341f /* weights are computed as powers of 2 */

/* Gives a weight of 0. Not -infinity, because infinity - infinity is NaN. */
#define OUT_OF_REACH -1e30f

/* Stores the scores of `rows` keys, starting at `key`, with the queries from `first` on. */
INLINE void store_scores(int rows, int vecs, int biased, int64_t key, int64_t first, const head *h, vec sums[ROWS][2],
                         float *scores, vec *largest) {
    int all_in_reach = key + rows - 1 <= first + h->reach && key >= first + vecs * LANES - 1 - h->reach;
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vecs; j++) {
        vec score = sums[i][j];
        int64_t difference = first + j * LANES - key - i;
        if (biased) score = multiply_add(load(h->bias + difference), broadcast(LOG2_E), score);
        if (!all_in_reach) {
            vec distance = load(LANE_INDICES) + broadcast(difference);
            score = select_less(maximum(distance, -distance), broadcast(h->reach + 1), score, broadcast(OUT_OF_REACH));
        }
        store(scores + (i * vecs + j) * LANES, score);
        largest[j] = maximum(largest[j], score);
    }
}

/* queries (dim, vecs * LANES) = scale * q, transposed, for the queries from `first` on. */
INLINE void gather_queries(const head *h, int64_t first, int vecs, float *queries) {
    vec square[LANES];
    UNROLL for (int j = 0; j < vecs; j++) for (int64_t d = 0; d < h->dim; d += LANES) {
        int64_t token = first + j * LANES;
        UNROLL for (int i = 0; i < LANES; i++)
            square[i] = token + i < h->tokens ? load(h->q + (token + i) * h->q_step + d) : zero();
        transpose(square);
        UNROLL for (int i = 0; i < LANES; i++)
            store(queries + ((d + i) * vecs + j) * LANES, square[i] * broadcast(h->scale));
    }
}

/* scores (keys, vecs * LANES) of the keys from `begin` on, and the largest score of each query. */
INLINE void score_keys(const head *h, int64_t first, int vecs, int biased, int64_t begin, int64_t keys,
                       const float *queries, float *scores, vec largest[2]) {
    const float *k = h->k + begin * h->k_step;
    vec sums[ROWS][2];
    UNROLL for (int j = 0; j < vecs; j++) largest[j] = broadcast(-__builtin_inff());
    if (keys < ROWS) {
        for (int64_t at = 0; at < keys; at++) {
            multiply(1, vecs, h->dim, k + at * h->k_step, h->k_step, 1, queries, vecs * LANES, sums);
            store_scores(1, vecs, biased, begin + at, first, h, sums, scores + at * vecs * LANES, largest);
        }
        return;
    }
    /* The last group overlaps the one before it, to have ROWS keys; recomputed scores have the same bits. */
    for (int64_t t = 0; t < keys; t += ROWS) {
        int64_t at = t + ROWS <= keys ? t : keys - ROWS;
        multiply(ROWS, vecs, h->dim, k + at * h->k_step, h->k_step, 1, queries, vecs * LANES, sums);
        store_scores(ROWS, vecs, biased, begin + at, first, h, sums, scores + at * vecs * LANES, largest);
    }
}

/* Replaces scores by weights 2^(score - largest), and sums the weights of each query. */
INLINE void exponentiate(int vecs, int64_t keys, float *scores, const vec largest[2], vec total[2]) {
    UNROLL for (int j = 0; j < vecs; j++) total[j] = zero();
    for (int64_t t = 0; t < keys; t++) UNROLL for (int j = 0; j < vecs; j++) {
        float *score = scores + (t * vecs + j) * LANES;
        vec weight = exp2_of(load(score) - largest[j]);
        store(score, weight);
        total[j] = total[j] + weight;
    }
}

/* Running softmax over keys that are processed in parts: for each query the weighted sums of values (dim), the largest
 * score so far, and the sum of weights relative to it. */
typedef struct {
    float *sums, *largest, *total;
} running;

/* How the sums of a part are combined with the running sums. */
typedef struct {
    const float *rescale; /* factors of the sums over earlier keys; NULL for the first part */
    const float *inverse; /* 1 / sum of weights, for the output; NULL before the last part */
    float *sums;
} combination;

/* Sums over keys of weights[key][query] * v[key][d ...], for the queries of `vecs` registers and `dim_vecs`
 * registers of dimensions from d on. */
INLINE void sum_values(const head *h, int64_t first, int vecs, int dim_vecs, int64_t d, int64_t begin, int64_t keys,
                       const float *weights, const combination *c) {
    int64_t queries = h->tokens - first < vecs * LANES ? h->tokens - first : vecs * LANES;
    for (int64_t at = 0; at < queries; at += ROWS) {
        vec sums[ROWS][2];
        multiply(ROWS, dim_vecs, keys, weights + at, 1, vecs * LANES, h->v + begin * h->v_step + d, h->v_step, sums);
        UNROLL for (int i = 0; i < ROWS; i++) {
            int64_t query = first + at + i;
            if (at + i >= queries) return;
            UNROLL for (int j = 0; j < dim_vecs; j++) {
                int64_t place = query * h->dim + d + j * LANES;
                vec sum = sums[i][j];
                if (c->rescale) sum = multiply_add(load(c->sums + place), broadcast(c->rescale[at + i]), sum);
                if (!c->inverse) store(c->sums + place, sum);
                else store(h->out + query * h->out_step + d + j * LANES, sum * broadcast(c->inverse[at + i]));
            }
        }
    }
}

/* Attention of `vecs` registers of queries, from `first` on, over the keys from `begin` to `end`. `s` is NULL if
 * these are all keys. scratch: dim + keys times `vecs` registers. */
INLINE void attend_queries(const head *h, int64_t first, int vecs, int biased, int64_t begin, int64_t end,
                           const running *s, float *scratch) {
    int has_earlier = s && begin > 0, has_later = s && end < h->tokens;
    float *queries = scratch, *scores = queries + h->dim * vecs * LANES;
    float rescale[2 * LANES], inverse[2 * LANES];
    /* Skip keys that no query reaches. */
    int64_t nearest = first - h->reach, farthest = first + vecs * LANES + h->reach;
    if (begin < nearest) begin = nearest;
    if (end > farthest) end = farthest;
    vec largest[2], total[2];
    gather_queries(h, first, vecs, queries);
    score_keys(h, first, vecs, biased, begin, end - begin, queries, scores, largest);
    if (has_earlier) UNROLL for (int j = 0; j < vecs; j++) {
        vec previous = load(s->largest + first + j * LANES);
        largest[j] = maximum(largest[j], previous);
        store(rescale + j * LANES, exp2_of(previous - largest[j]));
    }
    exponentiate(vecs, end - begin, scores, largest, total);
    UNROLL for (int j = 0; j < vecs; j++) {
        int64_t at = first + j * LANES;
        if (has_earlier) total[j] = multiply_add(load(s->total + at), load(rescale + j * LANES), total[j]);
        if (has_later) store(s->largest + at, largest[j]), store(s->total + at, total[j]);
        store(inverse + j * LANES, broadcast(1) / total[j]);
    }
    combination c = {has_earlier ? rescale : NULL, has_later ? NULL : inverse, s ? s->sums : NULL};
    int64_t d = 0;
    for (; d + LANES < h->dim; d += 2 * LANES) sum_values(h, first, vecs, 2, d, begin, end - begin, scores, &c);
    if (d < h->dim) sum_values(h, first, vecs, 1, d, begin, end - begin, scores, &c);
}

/* Sizes of a window's keys in floats (tokens x dim). From COPY_FLOATS on, the keys and values of each head are
 * copied: in place, each token may be on another page and all of them in a few sets of the L1 cache. Shorter windows
 * lose more by the copy. Above PART_FLOATS, keys are processed in parts, so that the keys, values and sums of a part
 * fit the L2 cache. parity_check.py compares windows of more than both sizes. */
enum { COPY_FLOATS = 16384, PART_FLOATS = 65536 };

/* Attention of all queries of a head. */
INLINE void attend_head(const head *h, int biased, const running *s, float *scratch) {
    int64_t parts = h->reach < h->tokens ? 1 : (h->tokens * h->dim + PART_FLOATS - 1) / PART_FLOATS;
    for (int64_t part = 0; part < parts; part++) {
        int64_t begin = h->tokens * part / parts, end = h->tokens * (part + 1) / parts, at = 0;
        const running *state = parts > 1 ? s : NULL;
        for (; at + LANES < h->tokens; at += 2 * LANES) attend_queries(h, at, 2, biased, begin, end, state, scratch);
        if (at < h->tokens) attend_queries(h, at, 1, biased, begin, end, state, scratch);
    }
}

/* Two functions, because one does not have enough registers for both, and attention without a bias takes 10 %
 * longer. */
static __attribute__((noinline)) void attend_plain(const head *h, const running *s, float *scratch) {
    attend_head(h, 0, s, scratch);
}
static __attribute__((noinline)) void attend_biased(const head *h, const running *s, float *scratch) {
    attend_head(h, 1, s, scratch);
}

static const float *copy_head(const float *from, int64_t step, int64_t tokens, int64_t dim, float *to) {
    for (int64_t i = 0; i < tokens; i++) memcpy(to + i * dim, from + i * step, sizeof(float) * dim);
    return to;
}

int attend(const float *q, const float *k, const float *v, float *out, const int64_t steps[8], const int32_t *offsets,
           int64_t windows, int64_t longest, int64_t heads, int64_t dim, int64_t reach, const float *bias,
           int64_t bias_step, float scaling) {
    int64_t query_floats = 2 * LANES * (dim + longest), copy_floats = longest * dim < COPY_FLOATS ? 0 : longest * dim;
    int64_t padded = longest * dim < PART_FLOATS ? 0 : longest + 2 * LANES; /* queries, in whole registers */
    float *scratch = aligned_alloc(64, sizeof(float) * (query_floats + 2 * copy_floats + padded * (dim + 2)));
    float *keys = scratch + query_floats, *values = keys + copy_floats, *sums = values + copy_floats;
    running s = {sums, sums + padded * dim, sums + padded * (dim + 1)};
    if (!scratch) return 1;
    for (int64_t w = 0; w < windows; w++) {
        int64_t first = offsets[w], tokens = offsets[w + 1] - first;
        for (int64_t i = 0; i < heads; i++) {
            head h = {q + first * steps[0] + i * steps[1], k + first * steps[2] + i * steps[3],
                      v + first * steps[4] + i * steps[5], out + first * steps[6] + i * steps[7],
                      bias ? bias + i * bias_step + longest - 1 : NULL, steps[0], steps[2], steps[4], steps[6], tokens,
                      dim, reach < tokens ? reach : tokens + 2 * LANES, scaling * LOG2_E};
            if (tokens * dim >= COPY_FLOATS) {
                h.k = copy_head(h.k, h.k_step, tokens, dim, keys);
                h.v = copy_head(h.v, h.v_step, tokens, dim, values);
                h.k_step = h.v_step = dim;
            }
            if (bias) attend_biased(&h, &s, scratch);
            else attend_plain(&h, &s, scratch);
        }
    }
    free(scratch);
    return 0;
}
