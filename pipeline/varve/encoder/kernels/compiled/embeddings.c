/* Embeddings of BERT's family: norm(word + type + position) of each token.
 *
 * Invariants: the bits of a token depend on its own ids alone; an id outside of its table is never read.
 */
#include "after.h"

typedef struct {
    const float *vectors; /* (rows, width); NULL: the model has no such table */
    int64_t rows;
} table;

typedef struct {
    table words, types, positions;
    norm norm;
    int64_t width; /* a multiple of 16 */
} embedding_weights;

/* The vector of an id; NULL if the table has none. */
INLINE const float *vector_of(const table *t, int64_t id, int64_t width) {
    return id >= 0 && id < t->rows ? t->vectors + id * width : NULL;
}

/* norm(word + type + position), added in this order; `type` may be NULL. */
static void embed(const float *word, const float *type, const float *position, const norm *n, int64_t width,
                  float *out) {
    vec parts[PARTS], squares[PARTS];
    UNROLL for (int j = 0; j < PARTS; j++) parts[j] = squares[j] = zero();
    for (int64_t first = 0; first < width; first += 16) UNROLL for (int j = 0; j < PARTS; j++) {
        int64_t at = first + j * LANES;
        vec x = load(word + at);
        if (type) x = x + load(type + at);
        x = x + load(position + at);
        store(out + at, x);
        parts[j] = parts[j] + x;
    }
    vec mean = broadcast(sum_of(parts) / width);
    for (int64_t first = 0; first < width; first += 16) UNROLL for (int j = 0; j < PARTS; j++) {
        vec deviation = load(out + first + j * LANES) - mean;
        squares[j] = multiply_add(deviation, deviation, squares[j]);
    }
    vec scale = broadcast(1 / sqrtf(sum_of(squares) / width + n->epsilon));
    for (int64_t at = 0; at < width; at += LANES)
        store(out + at, multiply_add((load(out + at) - mean) * scale, load(n->scale + at), load(n->shift + at)));
}

/* Embeddings of `tokens` tokens, (tokens, width). Types may be NULL: all are 0. Returns -1, or the first token with an
 * id that its table does not have. */
int64_t embeddings(const int64_t *ids, const int64_t *types, const int64_t *positions, int64_t tokens,
                   const embedding_weights *w, float *out) {
    enum { AHEAD = 4 }; /* tokens whose words are fetched before they are read: their places in memory are random */
    for (int64_t t = 0; t < tokens; t++) {
        if (t + AHEAD < tokens) {
            const float *next = vector_of(&w->words, ids[t + AHEAD], w->width);
            for (int64_t at = 0; next && at < w->width; at += 16) __builtin_prefetch(next + at);
        }
        const float *word = vector_of(&w->words, ids[t], w->width);
        const float *position = vector_of(&w->positions, positions[t], w->width);
        const float *type = w->types.vectors ? vector_of(&w->types, types ? types[t] : 0, w->width) : NULL;
        if (!word || !position || (w->types.vectors && !type)) return t;
        embed(word, type, position, &w->norm, w->width, out + t * w->width);
    }
    return -1;
}
