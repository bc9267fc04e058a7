/* Softmax attention in float32 within each window of a packed row, for CPUs with AVX-512 or AVX2 and FMA.
 *
 * Queries stand in the lanes of a register: scores are kept as (key, query), so the softmax runs down a column without
 * ever folding a register. Then the numbers of values stand in them, and weights are broadcast. Keys and values are read
 * where they lie, those of long windows from a copy. Built once for each instruction set; kernel.py chooses. Invariants: a
 * window's numbers depend on that window alone; nothing is read or written beyond it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "registers.h"
#include "steps.h"

enum { ROWS = LANES / 2 };

static const float COUNT[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* LANES registers as the columns of what they were as rows. */
INLINE void transpose(vec x[LANES]) {
    UNROLL for (int stage = 1; stage < LANES; stage *= 2) {
        vec was[LANES];
        UNROLL for (int i = 0; i < LANES; i++) was[i] = x[i];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            x[2 * i] = interleave(was[i], was[i + LANES / 2], 0);
            x[2 * i + 1] = interleave(was[i], was[i + LANES / 2], 1);
        }
    }
}

/* sums[row][wide] = sum over i of from[row * row_step + i * step] * by[i * by_step][wide], for `rows` rows, `wide`
 * registers. */
INLINE void multiply(int rows, int wide, int64_t depth, const float *from, int64_t row_step, int64_t step,
                     const float *by, int64_t by_step, vec sums[ROWS][2]) {
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < wide; j++) sums[i][j] = zero();
    for (int64_t at = 0; at < depth; at++) {
        vec right[2];
        UNROLL for (int j = 0; j < wide; j++) right[j] = load(by + at * by_step + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            vec left = splat(from[i * row_step + at * step]);
            UNROLL for (int j = 0; j < wide; j++) sums[i][j] = product_plus(left, right[j], sums[i][j]);
        }
    }
}

/* One head of one window. */
typedef struct {
    const float *q, *k, *v;
    float *out;
    const float *bias; /* of a query upon itself; before it those upon later keys, or NULL */
    int64_t q_step, k_step, v_step, out_step; /* from a token to the next */
    int64_t tokens, dim, reach;
    float scale;
} head;

#define LOG2_E 1.44269504088896341f /* weights are powers of 2 */

/* A score whose weight is 0; infinity less infinity would be no number. */
#define OUT_OF_REACH -1e30f

/* Store the scores of `rows` keys from `key` on against queries from `first` on; those out of reach count for nothing. */
INLINE void keep(int rows, int wide, int biased, int64_t key, int64_t first, const head *h, vec sums[ROWS][2],
                 float *scores, vec *largest) {
    int all_near = key + rows - 1 <= first + h->reach && key >= first + wide * LANES - 1 - h->reach;
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < wide; j++) {
        vec score = sums[i][j];
        int64_t away = first + j * LANES - key - i;
        if (biased) score = product_plus(load(h->bias + away), splat(LOG2_E), score);
        if (!all_near) {
            vec distance = load(COUNT) + splat(away);
            score = where_less(larger(distance, -distance), splat(h->reach + 1), score, splat(OUT_OF_REACH));
        }
        store(scores + (i * wide + j) * LANES, score);
        largest[j] = larger(largest[j], score);
    }
}

/* queries[d][wide] = scale * q[first + lane][d]: dim x wide registers. */
INLINE void gather_queries(const head *h, int64_t first, int wide, float *queries) {
    vec square[LANES];
    UNROLL for (int j = 0; j < wide; j++) for (int64_t d = 0; d < h->dim; d += LANES) {
        int64_t token = first + j * LANES;
        UNROLL for (int i = 0; i < LANES; i++)
            square[i] = token + i < h->tokens ? load(h->q + (token + i) * h->q_step + d) : zero();
        transpose(square);
        UNROLL for (int i = 0; i < LANES; i++)
            store(queries + ((d + i) * wide + j) * LANES, square[i] * splat(h->scale));
    }
}

/* scores[key][wide] of `keys` keys from `begin` on, and the largest of each query. */
INLINE void score_keys(const head *h, int64_t first, int wide, int biased, int64_t begin, int64_t keys,
                       const float *queries, float *scores, vec largest[2]) {
    const float *k = h->k + begin * h->k_step;
    vec sums[ROWS][2];
    UNROLL for (int j = 0; j < wide; j++) largest[j] = splat(-__builtin_inff());
    if (keys < ROWS) {
        for (int64_t at = 0; at < keys; at++) {
            multiply(1, wide, h->dim, k + at * h->k_step, h->k_step, 1, queries, wide * LANES, sums);
            keep(1, wide, biased, begin + at, first, h, sums, scores + at * wide * LANES, largest);
        }
        return;
    }
    /* The last rows begin early enough to be ROWS: some scores are computed twice, and are the same. */
    for (int64_t t = 0; t < keys; t += ROWS) {
        int64_t at = t + ROWS <= keys ? t : keys - ROWS;
        multiply(ROWS, wide, h->dim, k + at * h->k_step, h->k_step, 1, queries, wide * LANES, sums);
        keep(ROWS, wide, biased, begin + at, first, h, sums, scores + at * wide * LANES, largest);
    }
}

/* Scores to weights, in place, and the sum of each query's. */
INLINE void soften(int wide, int64_t keys, float *scores, const vec largest[2], vec total[2]) {
    UNROLL for (int j = 0; j < wide; j++) total[j] = zero();
    for (int64_t t = 0; t < keys; t++) UNROLL for (int j = 0; j < wide; j++) {
        float *score = scores + (t * wide + j) * LANES;
        vec weight = exp2_of(load(score) - largest[j]);
        store(score, weight);
        total[j] = total[j] + weight;
    }
}

/* What a head's queries have seen of its keys, where these come in parts: sums of values (dim for each query), the largest
 * score, and the sum of weights against it. */
typedef struct {
    float *sums, *largest, *total;
} seen;

/* What becomes of sums over values: they come on top of those over the keys before, each `faded`, and where no keys follow
 * go into the output times `inverse`, one through the sum of weights. NULL where no keys were before, or some follow. */
typedef struct {
    const float *faded, *inverse;
    float *sums;
} turn;

/* The sums over keys of scores[key][i] * v[key][d] for the queries of `wide` registers, and `dims` registers of numbers
 * from d on. */
INLINE void weigh_values(const head *h, int64_t first, int wide, int dims, int64_t d, int64_t begin, int64_t keys,
                         const float *scores, const turn *t) {
    int64_t there = h->tokens - first < wide * LANES ? h->tokens - first : wide * LANES;
    for (int64_t at = 0; at < there; at += ROWS) {
        vec sums[ROWS][2];
        multiply(ROWS, dims, keys, scores + at, 1, wide * LANES, h->v + begin * h->v_step + d, h->v_step, sums);
        UNROLL for (int i = 0; i < ROWS; i++) {
            int64_t query = first + at + i;
            if (at + i >= there) return;
            UNROLL for (int j = 0; j < dims; j++) {
                int64_t kept = query * h->dim + d + j * LANES;
                vec sum = sums[i][j];
                if (t->faded) sum = product_plus(load(t->sums + kept), splat(t->faded[at + i]), sum);
                if (!t->inverse) store(t->sums + kept, sum);
                else store(h->out + query * h->out_step + d + j * LANES, sum * splat(t->inverse[at + i]));
            }
        }
    }
}

/* `wide` registers of queries from `first` on against the keys from `begin` to `end`; `s` is NULL where these are all.
 * scratch: dim + keys times `wide` registers. */
INLINE void attend_queries(const head *h, int64_t first, int wide, int biased, int64_t begin, int64_t end, const seen *s,
                           float *scratch) {
    int before = s && begin > 0, after = s && end < h->tokens;
    float *queries = scratch, *scores = queries + h->dim * wide * LANES;
    float faded[2 * LANES], inverse[2 * LANES];
    /* Of these, the keys that any of the queries reaches. */
    int64_t nearest = first - h->reach, farthest = first + wide * LANES + h->reach;
    if (begin < nearest) begin = nearest;
    if (end > farthest) end = farthest;
    vec largest[2], total[2];
    gather_queries(h, first, wide, queries);
    score_keys(h, first, wide, biased, begin, end - begin, queries, scores, largest);
    if (before) UNROLL for (int j = 0; j < wide; j++) {
        vec was = load(s->largest + first + j * LANES);
        largest[j] = larger(largest[j], was);
        store(faded + j * LANES, exp2_of(was - largest[j]));
    }
    soften(wide, end - begin, scores, largest, total);
    UNROLL for (int j = 0; j < wide; j++) {
        int64_t at = first + j * LANES;
        if (before) total[j] = product_plus(load(s->total + at), load(faded + j * LANES), total[j]);
        if (after) store(s->largest + at, largest[j]), store(s->total + at, total[j]);
        store(inverse + j * LANES, splat(1) / total[j]);
    }
    turn t = {before ? faded : NULL, after ? NULL : inverse, s ? s->sums : NULL};
    int64_t d = 0;
    for (; d + LANES < h->dim; d += 2 * LANES) weigh_values(h, first, wide, 2, d, begin, end - begin, scores, &t);
    if (d < h->dim) weigh_values(h, first, wide, 1, d, begin, end - begin, scores, &t);
}

/* Numbers of a window's keys from which on they and the values are copied for each head (where they lie each token may be
 * on a page of its own, and all of them in a few sets of the first cache; shorter windows lose more by the copy), and those
 * that a second cache holds, with as many of values and what becomes of them. */
enum { MANY_NUMBERS = 16384, CACHED_NUMBERS = 65536 };

/* All queries of a head, some keys after the other where there are more than a cache holds. */
INLINE void attend_head(const head *h, int biased, const seen *s, float *scratch) {
    int64_t parts = h->reach < h->tokens ? 1 : (h->tokens * h->dim + CACHED_NUMBERS - 1) / CACHED_NUMBERS;
    for (int64_t part = 0; part < parts; part++) {
        int64_t begin = h->tokens * part / parts, end = h->tokens * (part + 1) / parts, at = 0;
        const seen *so_far = parts > 1 ? s : NULL;
        for (; at + LANES < h->tokens; at += 2 * LANES) attend_queries(h, at, 2, biased, begin, end, so_far, scratch);
        if (at < h->tokens) attend_queries(h, at, 1, biased, begin, end, so_far, scratch);
    }
}

/* Not in one function: its registers would not last for both, and attention without a bias takes a tenth longer. */
static __attribute__((noinline)) void attend_plain(const head *h, const seen *s, float *scratch) {
    attend_head(h, 0, s, scratch);
}
static __attribute__((noinline)) void attend_biased(const head *h, const seen *s, float *scratch) {
    attend_head(h, 1, s, scratch);
}

/* Vectors of a head side by side, from wherever they lie. */
static const float *lay_together(const float *from, int64_t step, int64_t tokens, int64_t dim, float *to) {
    for (int64_t i = 0; i < tokens; i++) memcpy(to + i * dim, from + i * step, sizeof(float) * dim);
    return to;
}

int attend(const float *q, const float *k, const float *v, float *out, const int64_t steps[8], const int32_t *offsets,
           int64_t windows, int64_t longest, int64_t heads, int64_t dim, int64_t reach, const float *bias,
           int64_t bias_step, float scaling) {
    int64_t for_queries = 2 * LANES * (dim + longest), copied = longest * dim < MANY_NUMBERS ? 0 : longest * dim;
    int64_t whole = longest * dim < CACHED_NUMBERS ? 0 : longest + 2 * LANES; /* queries in whole registers */
    float *scratch = aligned_alloc(64, sizeof(float) * (for_queries + 2 * copied + whole * (dim + 2)));
    float *keys = scratch + for_queries, *values = keys + copied, *sums = values + copied;
    seen s = {sums, sums + whole * dim, sums + whole * (dim + 1)};
    if (!scratch) return 1;
    for (int64_t w = 0; w < windows; w++) {
        int64_t first = offsets[w], tokens = offsets[w + 1] - first;
        for (int64_t i = 0; i < heads; i++) {
            head h = {q + first * steps[0] + i * steps[1], k + first * steps[2] + i * steps[3],
                      v + first * steps[4] + i * steps[5], out + first * steps[6] + i * steps[7],
                      bias ? bias + i * bias_step + longest - 1 : NULL, steps[0], steps[2], steps[4], steps[6], tokens,
                      dim, reach < tokens ? reach : tokens + 2 * LANES, scaling * LOG2_E};
            if (tokens * dim >= MANY_NUMBERS) {
                h.k = lay_together(h.k, h.k_step, tokens, dim, keys);
                h.v = lay_together(h.v, h.v_step, tokens, dim, values);
                h.k_step = h.v_step = dim;
            }
            if (bias) attend_biased(&h, &s, scratch);
            else attend_plain(&h, &s, scratch);
        }
    }
    free(scratch);
    return 0;
}
