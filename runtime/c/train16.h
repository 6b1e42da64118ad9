/* Forward and backward through time as in train.h, its products of bfloat16 numbers. Part of instructions.h.
 *
 * States, their gradients, sums and weights are float32. What goes into a product is rounded to bfloat16 (to the nearest,
 * halves to even), where one instruction multiplies and adds 32 pairs of numbers instead of 16. The rule sees the states
 * rounded too, so the backward pass needs no others: it takes the steps back in them, and what is kept of a cell that
 * fired, its perception, takes half the memory.
 *
 * Shapes as in train.h. A product sums over pairs of adjacent numbers. Row-major arrays of halves (bfloat16) have them side
 * by side as left factor; a right factor of K x N lies in K/2 rows of N pairs. Products over the cells, for the gradients
 * of the weights, have both factors in such rows: of N pairs, each of a number of one cell and the same of the next.
 * Every sum is made in a fixed order: the same bits each run.
 */
_Static_assert(BLOCK % 2 == 0, "cells are taken in pairs");

typedef uint16_t half16 __attribute__((may_alias));
typedef uint32_t pair16 __attribute__((may_alias));

enum { ROWS16 = 6, COLUMNS16 = 4 };

/* ---- Numbers ---- */

static INLINE __m512 widen16(const half16 *from)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

static INLINE void narrow16(__m512 from, half16 *to)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(from));
}

static void round16(int64_t count, const float *from, half16 *to)
{
    for (int64_t i = 0; i < count; i += 16)
        narrow16(_mm512_loadu_ps(from + i), to + i);
}

/* 16 numbers of one row and the next -> pairs. */
static INLINE __m512i pairs16(__m256i one, __m256i next)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32(one), _mm512_slli_epi32(_mm512_cvtepu16_epi32(next), 16));
}

/* float (depth, width), depth even -> pairs (depth / 2, width). */
static void pack16(int64_t depth, int64_t width, const float *from, pair16 *to)
{
    for (int64_t k = 0; k < depth; k += 2, from += 2 * width, to += width)
        for (int64_t j = 0; j < width; j += 16)
            _mm512_storeu_si512(to + j, pairs16((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + j)),
                                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + width + j))));
}

/* halves (count, width) -> pairs of cells ((count + 1) / 2, width), the last one with zeros where count is odd. */
static void interleave16(int64_t count, int64_t width, const half16 *from, pair16 *to)
{
    for (int64_t i = 0; i < count; i += 2, from += 2 * width, to += width)
        for (int64_t j = 0; j < width; j += 16) {
            const __m256i next = i + 1 < count ? _mm256_loadu_si256((const __m256i *)(from + width + j)) : _mm256_setzero_si256();
            _mm512_storeu_si512(to + j, pairs16(_mm256_loadu_si256((const __m256i *)(from + j)), next));
        }
}

/* ---- Products ---- */

/* Where the rows of a product go. */
typedef struct {
    /* float: added to. Row i, column j at to[i * row + j], or, with places, at
     * to[places[i * taps + j / width] * width + j % width]. */
    float *to;
    int64_t row, taps, width;
    const int32_t *places;
    /* halves: start is added first, rectify and mask (pairs of cells, 0 where <= 0) follow. Each of these may be null, and
     * of what is written too: rows, pairs of cells, and total, to which the sum over the rows is added. */
    const float *start;
    int rectify;
    const pair16 *mask;
    half16 *rows;
    int64_t rows_row;
    pair16 *pairs;
    int64_t pairs_row;
    float *total;
} Out16;

enum { FLOATS, PLACES, HALVES };

/* One tile: `valid` of ROWS16 rows and 16 x columns numbers from column j on. */
static INLINE void tile16bf(const int kind, const int columns, int64_t pairs, const pair16 *const *a, int64_t a_column,
                            const pair16 *b, int64_t b_row, const Out16 *o, int64_t i, int64_t j, int64_t valid)
{
    const int slices = columns == 1 ? 4 : columns == 2 ? 2 : 1; /* sums side by side, for one must not wait for the other */
    __m512 sum[4][ROWS16][COLUMNS16];
    UNROLL for (int s = 0; s < slices; s++)
        UNROLL for (int row = 0; row < ROWS16; row++)
            UNROLL for (int c = 0; c < columns; c++)
                sum[s][row][c] = kind == HALVES && o->start && !s ? _mm512_loadu_ps(o->start + j + c * 16) : _mm512_setzero_ps();
    int64_t k = 0, at = 0;
#define MULTIPLY(s) \
    { \
        __m512bh right[COLUMNS16]; \
        UNROLL for (int c = 0; c < columns; c++) right[c] = (__m512bh)_mm512_loadu_si512(b + c * 16); \
        UNROLL for (int row = 0; row < ROWS16; row++) { \
            const __m512bh left = (__m512bh)_mm512_set1_epi32((int32_t)a[row][at]); \
            UNROLL for (int c = 0; c < columns; c++) sum[s][row][c] = _mm512_dpbf16_ps(sum[s][row][c], left, right[c]); \
        } \
        at += a_column; \
        b += b_row; \
    }
    for (; k + slices <= pairs; k += slices)
        UNROLL for (int s = 0; s < slices; s++) MULTIPLY(s)
    if (slices > 1)
        for (; k < pairs; k++)
            MULTIPLY(0)
#undef MULTIPLY
    UNROLL for (int s = 1; s < slices; s++)
        UNROLL for (int row = 0; row < ROWS16; row++)
            UNROLL for (int c = 0; c < columns; c++) sum[0][row][c] = _mm512_add_ps(sum[0][row][c], sum[s][row][c]);
    if (kind != HALVES) {
        int64_t tap[COLUMNS16], within[COLUMNS16];
        if (kind == PLACES)
            UNROLL for (int c = 0; c < columns; c++) {
                tap[c] = (j + c * 16) / o->width;
                within[c] = (j + c * 16) % o->width;
            }
        UNROLL for (int row = 0; row < ROWS16; row++)
            if (row < valid)
                UNROLL for (int c = 0; c < columns; c++) {
                    float *to = o->to + (kind == PLACES ? o->places[(i + row) * o->taps + tap[c]] * o->width + within[c]
                                                        : (i + row) * o->row + j + c * 16);
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum[0][row][c]));
                }
        return;
    }
    const __m512 zero = _mm512_setzero_ps();
    UNROLL for (int c = 0; c < columns; c++) {
        const int64_t column = j + c * 16;
        __m512 total = zero;
        UNROLL for (int row = 0; row < ROWS16; row += 2) {
            __m512 one = sum[0][row][c], next = sum[0][row + 1][c];
            if (row >= valid)
                break;
            if (o->rectify) { /* lets NaN through */
                one = _mm512_max_ps(zero, one);
                next = _mm512_max_ps(zero, next);
            }
            if (o->mask) {
                const __m512i mask = _mm512_loadu_si512(o->mask + (i + row) / 2 * o->pairs_row + column);
                const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(mask, 16));
                const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(mask, _mm512_set1_epi32(-65536)));
                one = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(first, zero, _CMP_NLE_UQ), one);
                next = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(second, zero, _CMP_NLE_UQ), next);
            }
            if (row + 1 >= valid)
                next = zero;
            total = _mm512_add_ps(total, _mm512_add_ps(one, next));
            const __m256i one16 = (__m256i)_mm512_cvtneps_pbh(one), next16 = (__m256i)_mm512_cvtneps_pbh(next);
            if (o->rows) {
                half16 *to = o->rows + (i + row) * o->rows_row + column;
                _mm256_storeu_si256((__m256i *)to, one16);
                if (row + 1 < valid)
                    _mm256_storeu_si256((__m256i *)(to + o->rows_row), next16);
            }
            if (o->pairs)
                _mm512_storeu_si512(o->pairs + (i + row) / 2 * o->pairs_row + column, pairs16(one16, next16));
        }
        if (o->total)
            _mm512_storeu_ps(o->total + column, _mm512_add_ps(_mm512_loadu_ps(o->total + column), total));
    }
}

/* A (height x 2 pairs) B (2 pairs x width) -> o. A: row i's pair k at a[i * a_row + k * a_column]. */
static INLINE void product16(const int kind, int64_t height, int64_t width, int64_t pairs, const pair16 *a, int64_t a_row,
                             int64_t a_column, const pair16 *b, int64_t b_row, const Out16 *o)
{
    const pair16 *rows[ROWS16];
    for (int64_t j = 0, columns; j < width; j += columns * 16) {
        columns = (width - j) / 16;
        columns = columns > 4 && columns < 8 ? (columns + 1) / 2 : columns < 4 ? columns : 4;
        for (int64_t i = 0; i < height; i += ROWS16) {
            const int64_t valid = height - i < ROWS16 ? height - i : ROWS16;
            for (int64_t row = 0; row < ROWS16; row++) /* beyond the last row: that row, and no result is written */
                rows[row] = a + (i + (row < valid ? row : valid - 1)) * a_row;
            switch (columns) {
            case 1: tile16bf(kind, 1, pairs, rows, a_column, b + j, b_row, o, i, j, valid); break;
            case 2: tile16bf(kind, 2, pairs, rows, a_column, b + j, b_row, o, i, j, valid); break;
            case 3: tile16bf(kind, 3, pairs, rows, a_column, b + j, b_row, o, i, j, valid); break;
            default: tile16bf(kind, 4, pairs, rows, a_column, b + j, b_row, o, i, j, valid);
            }
        }
    }
}

/* Rows of halves (count, depth) x B (depth x width), which has b_row pairs in a row, -> halves. */
static void to_halves16(int64_t count, int64_t width, int64_t depth, const half16 *a, const pair16 *b, int64_t b_row,
                        const Out16 *o)
{
    product16(HALVES, count, width, depth / 2, (const pair16 *)a, depth / 2, 1, b, b_row, o);
}

/* The same, added to the states at places (count, taps), `width` numbers each. */
static void to_places16(int64_t count, int64_t width, int64_t depth, const half16 *a, const pair16 *b, int64_t b_row,
                        float *states, const int32_t *places, int64_t taps)
{
    const Out16 o = {.to = states, .places = places, .taps = taps, .width = width};
    product16(PLACES, count, taps * width, depth / 2, (const pair16 *)a, depth / 2, 1, b, b_row, &o);
}

/* Pairs of cells A ((count + 1) / 2, height) and B ((count + 1) / 2, width) -> A^T B, added to `to`. */
static void over_cells16(int64_t count, int64_t height, int64_t width, const pair16 *a, const pair16 *b, float *to)
{
    const Out16 o = {.to = to, .row = width};
    product16(FLOATS, height, width, (count + 1) / 2, a, 1, height, b, width, &o);
}

/* ---- Cells and their neighbours ---- */

static void neighbours16(const mednca_shape *s, const int32_t *cells, int64_t count, int32_t *near)
{
    int64_t found[9];
    for (int64_t i = 0; i < count; i++, near += 9) {
        neighbours_avx512vnni(s, cells[i], found);
        for (int tap = 0; tap < 9; tap++)
            near[tap] = (int32_t)found[tap];
    }
}

/* States (halves) -> neighbourhoods (count, 9n). */
static void gather16(int64_t n, const half16 *state, const int32_t *near, int64_t count, half16 *around)
{
    for (int64_t i = 0; i < 9 * count; i++, around += n)
        for (int64_t j = 0; j < n; j += 16)
            _mm256_storeu_si256((__m256i *)(around + j), _mm256_loadu_si256((const __m256i *)(state + near[i] * n + j)));
}

/* The same as pairs of cells ((count + 1) / 2, 9n). */
static void gather_pairs16(int64_t n, const half16 *state, const int32_t *near, int64_t count, pair16 *around)
{
    for (int64_t i = 0; i < count; i += 2, near += 18)
        for (int tap = 0; tap < 9; tap++, around += n)
            for (int64_t j = 0; j < n; j += 16) {
                const __m256i one = _mm256_loadu_si256((const __m256i *)(state + near[tap] * n + j));
                const __m256i next = i + 1 < count ? _mm256_loadu_si256((const __m256i *)(state + near[9 + tap] * n + j))
                                                   : _mm256_setzero_si256();
                _mm512_storeu_si512(around + j, pairs16(one, next));
            }
}

/* ---- Depthwise views: float32, of the rounded states ---- */

static void perceive16(int64_t n, const half16 *state, const int32_t *near, int64_t count, const float *filters,
                       const float *views, half16 *seen)
{
    for (int64_t j = 0; j < n; j += 16) {
        __m512 a[9], b[9];
        UNROLL for (int tap = 0; tap < 9; tap++) {
            a[tap] = _mm512_loadu_ps(filters + tap * 2 * n + j);
            b[tap] = _mm512_loadu_ps(filters + tap * 2 * n + n + j);
        }
        for (int64_t i = 0; i < count; i++) {
            __m512 one = _mm512_loadu_ps(views + j), two = _mm512_loadu_ps(views + n + j);
            UNROLL for (int tap = 0; tap < 9; tap++) {
                const __m512 x = widen16(state + near[i * 9 + tap] * n + j);
                one = _mm512_fmadd_ps(x, a[tap], one);
                two = _mm512_fmadd_ps(x, b[tap], two);
            }
            narrow16(one, seen + i * 3 * n + n + j);
            narrow16(two, seen + i * 3 * n + 2 * n + j);
        }
    }
}

/* The transpose: adds to the gradients of the filters and of the states. */
static void unperceive16(int64_t n, const half16 *state, const int32_t *near, int64_t count, const float *filters,
                         const half16 *d_views, float *d_filters, float *d_state)
{
    for (int64_t j = 0; j < n; j += 16) {
        for (int view = 0; view < 2; view++) {
            __m512 sum[9];
            float *total = d_filters + view * n + j;
            UNROLL for (int tap = 0; tap < 9; tap++) sum[tap] = _mm512_loadu_ps(total + tap * 2 * n);
            for (int64_t i = 0; i < count; i++) {
                const __m512 d = widen16(d_views + (i * 2 + view) * n + j);
                UNROLL for (int tap = 0; tap < 9; tap++)
                    sum[tap] = _mm512_fmadd_ps(d, widen16(state + near[i * 9 + tap] * n + j), sum[tap]);
            }
            UNROLL for (int tap = 0; tap < 9; tap++) _mm512_storeu_ps(total + tap * 2 * n, sum[tap]);
        }
        __m512 a[9], b[9];
        UNROLL for (int tap = 0; tap < 9; tap++) {
            a[tap] = _mm512_loadu_ps(filters + tap * 2 * n + j);
            b[tap] = _mm512_loadu_ps(filters + tap * 2 * n + n + j);
        }
        for (int64_t i = 0; i < count; i++) {
            const __m512 one = widen16(d_views + i * 2 * n + j), two = widen16(d_views + i * 2 * n + n + j);
            UNROLL for (int tap = 0; tap < 9; tap++) {
                float *to = d_state + near[i * 9 + tap] * n + j;
                _mm512_storeu_ps(to, _mm512_fmadd_ps(one, a[tap], _mm512_fmadd_ps(two, b[tap], _mm512_loadu_ps(to))));
            }
        }
    }
}

/* ---- The rule ---- */

/* As mednca_forward(); kept is of halves. */
static int forward16(const mednca_shape *s, float *state, const uint8_t *fires, const float *filters, const float *views,
                     const float *w1, const float *b1, const float *w2, half16 *kept)
{
    const int64_t n = s->channels, h = s->hidden, grid = s->height * s->width, taps = s->depthwise ? 0 : 9;
    void *memory;
    float *scratch = reserve(taps * n * n + 2 * n * h + (grid * n + BLOCK * (taps * n + 3 * n + h)) / 2 + grid + 1 +
                                 BLOCK * 9 + 256, &memory);
    if (!scratch)
        return 1;
    pair16 *filters16 = (pair16 *)take(&scratch, taps * n * n), *w1_16 = (pair16 *)take(&scratch, 3 * n * h / 2);
    pair16 *w2_16 = (pair16 *)take(&scratch, h * n / 2);
    half16 *now = (half16 *)take(&scratch, grid * n / 2), *around = (half16 *)take(&scratch, BLOCK * taps * n / 2);
    half16 *seen = (half16 *)take(&scratch, BLOCK * 3 * n / 2), *hidden = (half16 *)take(&scratch, BLOCK * h / 2);
    int32_t *cells = (int32_t *)take(&scratch, grid + 1), *near = (int32_t *)take(&scratch, BLOCK * 9);
    if (taps)
        pack16(9 * n, 2 * n, filters, filters16);
    pack16(3 * n, h, w1, w1_16);
    pack16(h, n, w2, w2_16);
    for (int64_t item = 0; item < s->batch; item++, state += grid * n) {
        round16(grid * n, state, now);
        for (int64_t step = 0; step < s->steps; step++, fires += grid) {
            const int64_t firing = list_avx512vnni(fires, grid, cells);
            for (int64_t at = 0, count; at < firing; at += count) {
                count = firing - at < BLOCK ? firing - at : BLOCK;
                half16 *q = kept ? kept + at * 3 * n : seen;
                neighbours16(s, cells + at, count, near);
                for (int64_t i = 0; i < count; i++)
                    memcpy(q + i * 3 * n, now + cells[at + i] * n, (size_t)n * sizeof(half16));
                if (s->depthwise)
                    perceive16(n, now, near, count, filters, views, q);
                else {
                    gather16(n, now, near, count, around);
                    to_halves16(count, 2 * n, 9 * n, around, filters16, 2 * n,
                                &(Out16){.start = views, .rows = q + n, .rows_row = 3 * n});
                }
                to_halves16(count, h, 3 * n, q, w1_16, h, &(Out16){.start = b1, .rectify = 1, .rows = hidden, .rows_row = h});
                to_places16(count, n, h, hidden, w2_16, n, state, cells + at, 1); /* the rule sees only `now` */
            }
            for (int64_t i = 0; i < firing; i++)
                round16(n, state + cells[i] * n, now + cells[i] * n);
            if (kept)
                kept += firing * 3 * n;
        }
    }
    free(memory);
    return 0;
}

/* As mednca_backward(); kept is of halves, and state becomes the rounded first one. */
static int backward16(const mednca_shape *s, float *state, float *d_state, const uint8_t *fires, const int64_t *counts,
                      const half16 *kept, const float *filters_t, const float *w1, const float *b1, const float *w1_t,
                      const float *w2_t, float *d_filters, float *d_views, float *d_w1, float *d_b1, float *d_w2)
{
    const int64_t n = s->channels, h = s->hidden, grid = s->height * s->width, taps = s->depthwise ? 0 : 9;
    void *memory;
    float *scratch = reserve(taps * n * n + 3 * n * h + h * n / 2 + grid * n + BLOCK * (2 * h + 5 * n + taps * n) + grid + 1 +
                                 BLOCK * 9 + 512, &memory);
    if (!scratch)
        return 1;
    pair16 *filters16 = (pair16 *)take(&scratch, taps * n * n), *w1_16 = (pair16 *)take(&scratch, 3 * n * h / 2);
    pair16 *w1_t16 = (pair16 *)take(&scratch, 3 * n * h / 2), *w2_t16 = (pair16 *)take(&scratch, h * n / 2);
    half16 *now = (half16 *)take(&scratch, grid * n / 2), *d_residual = (half16 *)take(&scratch, grid * n / 2);
    pair16 *hidden = (pair16 *)take(&scratch, BLOCK / 2 * h), *d_hidden_pairs = (pair16 *)take(&scratch, BLOCK / 2 * h);
    half16 *d_hidden = (half16 *)take(&scratch, BLOCK * h / 2);
    pair16 *d_out_pairs = (pair16 *)take(&scratch, BLOCK / 2 * n), *seen = (pair16 *)take(&scratch, BLOCK / 2 * 3 * n);
    half16 *d_seen = (half16 *)take(&scratch, BLOCK * n);
    pair16 *d_seen_pairs = (pair16 *)take(&scratch, BLOCK / 2 * 2 * n), *around = (pair16 *)take(&scratch, BLOCK / 2 * taps * n);
    int32_t *cells = (int32_t *)take(&scratch, grid + 1), *near = (int32_t *)take(&scratch, BLOCK * 9);
    if (taps)
        pack16(2 * n, 9 * n, filters_t, filters16);
    pack16(3 * n, h, w1, w1_16);
    pack16(h, 3 * n, w1_t, w1_t16);
    pack16(n, h, w2_t, w2_t16);
    for (int64_t i = 0; i < s->batch * s->steps; i++)
        kept += counts[i] * 3 * n;
    for (int64_t item = s->batch - 1; item >= 0; item--) {
        float *d_now = d_state + item * grid * n;
        round16(grid * n, state + item * grid * n, now);
        for (int64_t step = s->steps - 1; step >= 0; step--) {
            const int64_t firing = list_avx512vnni(fires + (item * s->steps + step) * grid, grid, cells);
            kept -= firing * 3 * n;
            for (int64_t i = 0; i < firing; i++) { /* take the step back; d_now changes below */
                memcpy(now + cells[i] * n, kept + i * 3 * n, (size_t)n * sizeof(half16));
                round16(n, d_now + cells[i] * n, d_residual + i * n);
            }
            for (int64_t at = 0, count; at < firing; at += count) {
                count = firing - at < BLOCK ? firing - at : BLOCK;
                const half16 *q = kept + at * 3 * n, *d_out = d_residual + at * n;
                to_halves16(count, h, 3 * n, q, w1_16, h, &(Out16){.start = b1, .rectify = 1, .pairs = hidden, .pairs_row = h});
                interleave16(count, n, d_out, d_out_pairs);
                over_cells16(count, h, n, hidden, d_out_pairs, d_w2);
                to_halves16(count, h, n, d_out, w2_t16, h,
                            &(Out16){.mask = hidden, .rows = d_hidden, .rows_row = h, .pairs = d_hidden_pairs, .pairs_row = h,
                                     .total = d_b1});
                interleave16(count, 3 * n, q, seen);
                over_cells16(count, 3 * n, h, seen, d_hidden_pairs, d_w1);
                to_places16(count, n, h, d_hidden, w1_t16, 3 * n, d_now, cells + at, 1);
                to_halves16(count, 2 * n, h, d_hidden, w1_t16 + n, 3 * n,
                            &(Out16){.rows = d_seen, .rows_row = 2 * n, .pairs = d_seen_pairs, .pairs_row = 2 * n,
                                     .total = d_views});
                neighbours16(s, cells + at, count, near);
                if (s->depthwise)
                    unperceive16(n, now, near, count, filters_t, d_seen, d_filters, d_now);
                else {
                    gather_pairs16(n, now, near, count, around);
                    over_cells16(count, 9 * n, 2 * n, around, d_seen_pairs, d_filters);
                    to_places16(count, n, 2 * n, d_seen, filters16, 9 * n, d_now, near, 9);
                }
            }
        }
        for (int64_t i = 0; i < grid * n; i += 16)
            _mm512_storeu_ps(state + item * grid * n + i, widen16(now + i));
    }
    free(memory);
    return 0;
}
