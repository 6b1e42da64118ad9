/* What runs for every cell, in one set of instructions. Part of mednca.c, which includes it once for each set, after
 *
 *     KERNEL(name)   the name of a function in this set
 *     LANES, COLUMNS, ROWS   floats in a vector, and the tile of vectors that the registers hold
 *     MADD(a, b, c)  a b + c, fused where the machine can
 *     PAIRS          int16: 1 where DOT(sum, a, b) multiplies pairs of adjacent numbers, 0 where it takes single ones
 *     DOT, EACH(p)   int16 product; the number (or pair) at p for all lanes
 *
 * A sum is made in the same order wherever its cell lies in a tile, so that tiles and threads do not change a bit.
 */

#if LANES > 1
typedef float KERNEL(vec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t KERNEL(ivec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#else
typedef float KERNEL(vec);
typedef int32_t KERNEL(ivec);
#endif
#define VEC KERNEL(vec)
#define IVEC KERNEL(ivec)
#define PANEL (LANES * COLUMNS)
/* int16 numbers in a vector's worth of weights, and steps of k that one takes */
#define WEIGHTS (LANES * (1 + PAIRS))
#define STRIDE (1 + PAIRS)

/* ---- Products ---- */

/* One tile: sums of `rows` cells in `columns` vectors, held in registers; both are known when this is compiled. */
static INLINE void KERNEL(tile)(const int rows, const int columns, int64_t depth, const float *const *a, int64_t offset,
                                int64_t stride, const float *b, int64_t b_row, const float *start, float *c, int64_t c_row)
{
    VEC sum[ROWS][COLUMNS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++)
            sum[i][j] = *(const VEC *)((start ? start : c + i * c_row) + j * LANES);
    for (int64_t k = 0; k < depth; k++, offset += stride, b += b_row) {
        VEC right[COLUMNS];
        UNROLL for (int j = 0; j < columns; j++) right[j] = *(const VEC *)(b + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            const VEC left = a[i][offset] - (VEC){0};
            UNROLL for (int j = 0; j < columns; j++) sum[i][j] = MADD(left, right[j], sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) *(VEC *)(c + i * c_row + j * LANES) = sum[i][j];
}

static INLINE void KERNEL(tile16)(const int rows, const int columns, int64_t depth, const int16_t *const *a, int64_t offset,
                                  const int16_t *b, const int32_t *start, int32_t *c, int64_t c_row)
{
    IVEC sum[ROWS][COLUMNS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++)
            sum[i][j] = *(const IVEC *)((start ? start : c + i * c_row) + j * LANES);
    for (int64_t k = 0; k < depth; k += STRIDE, b += columns * WEIGHTS)
        UNROLL for (int i = 0; i < rows; i++) {
            const IVEC left = EACH(a[i] + offset + k);
            UNROLL for (int j = 0; j < columns; j++) sum[i][j] = DOT(sum[i][j], left, b + j * WEIGHTS);
        }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) *(IVEC *)(c + i * c_row + j * LANES) = sum[i][j];
}

#if COLUMNS == 4
#define EVERY_TILE(T) TILES(T, 1) TILES(T, 2) TILES(T, 3) TILES(T, 4)
#else
#define EVERY_TILE(T) TILES(T, 1) TILES(T, 2)
#endif
#if ROWS == 6
#define TILES(T, w) T(1, w) T(2, w) T(3, w) T(4, w) T(5, w) T(6, w)
#else
#define TILES(T, w) T(1, w) T(2, w) T(3, w) T(4, w)
#endif

#ifdef ARMV6
#include "armv6.h"
#else
/* C (count x width) = rows a[i] + offset (depth numbers each) x the layer's rows from .. from + depth, + its start if
 * from is 0, else + C. */
static void KERNEL(multiply)(const Layer *l, int64_t count, const float *const *a, int64_t offset, int64_t from, int64_t depth,
                             float *c, int64_t c_row)
{
    for (int64_t j = 0; j < l->width; j += PANEL) {
        const int64_t wide = l->width - j < PANEL ? l->width - j : PANEL;
        const float *b = (const float *)l->weights + j * l->depth + from * wide;
        const float *start = from ? 0 : (const float *)l->start + j;
        for (int64_t i = 0, rows; i < count; i += rows) {
            rows = count - i < ROWS ? count - i : ROWS;
            switch (rows * 8 + wide / LANES) {
#define TILE(r, w) case r * 8 + w: \
                KERNEL(tile)(r, w, depth, a + i, offset, 1, b, w * LANES, start, c + i * c_row + j, c_row); \
                break;
                EVERY_TILE(TILE)
#undef TILE
            }
        }
    }
}


/* The ReLU, which lets NaN through, as torch does. */
static void KERNEL(rectify)(int64_t count, const float *from, float *to)
{
    for (int64_t i = 0; i < count; i++)
        to[i] = from[i] < 0 ? 0 : from[i];
}
#endif

static void KERNEL(multiply16)(const Layer *l, int64_t count, const int16_t *const *a, int64_t offset, int64_t from,
                               int64_t depth, int32_t *c, int64_t c_row)
{
    for (int64_t j = 0; j < l->width; j += PANEL) {
        const int64_t wide = l->width - j < PANEL ? l->width - j : PANEL;
        const int16_t *b = (const int16_t *)l->weights + j * l->depth + from * wide;
        const int32_t *start = from ? 0 : (const int32_t *)l->start + j;
        for (int64_t i = 0, rows; i < count; i += rows) {
            rows = count - i < ROWS ? count - i : ROWS;
            switch (rows * 8 + wide / LANES) {
#define TILE(r, w) case r * 8 + w: \
                KERNEL(tile16)(r, w, depth, a + i, offset, b, start, c + i * c_row + j, c_row); \
                break;
                EVERY_TILE(TILE)
#undef TILE
            }
        }
    }
}

/* ---- The rule ---- */

/* Cells (pointers to their states, in a grid with a border) -> residuals (count, n). row: numbers in a row of the grid.
 * in: (count, n + views), act: (count, depth of the last layer) to work in. */
static void KERNEL(fp32)(const Rule *r, int64_t n, int64_t row, int64_t count, const float *const *cells, float *residuals,
                         float *in, float *act)
{
    const int64_t v = r->views.width, wide = n + v, h = r->hidden.width, units = r->out.depth, first = r->rewritten ? v : 0;
    const float *rows[BLOCK] = {0};
    for (int64_t i = 0; i < count; i++) {
        memcpy(in + i * wide, cells[i], (size_t)n * sizeof(float));
        rows[i] = in + i * wide;
    }
    if (!r->views.plain) {
        for (int tap = 0; tap < 3; tap++) /* rows of the neighbourhood; its three cells lie side by side */
            KERNEL(multiply)(&r->views, count, cells, (tap - 1) * row - n, tap * 3 * n, 3 * n, in + n, wide);
    } else {
        const float *filters = r->views.weights, *start = r->views.start;
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < n; j += LANES) {
                VEC a = *(const VEC *)(start + j), b = *(const VEC *)(start + n + j);
                UNROLL for (int tap = 0; tap < 9; tap++) {
                    const VEC x = *(const VEC *)(cells[i] + (tap / 3 - 1) * row + (tap % 3 - 1) * n + j);
                    a = MADD(x, *(const VEC *)(filters + tap * v + j), a);
                    b = MADD(x, *(const VEC *)(filters + tap * v + n + j), b);
                }
                *(VEC *)(in + i * wide + n + j) = a;
                *(VEC *)(in + i * wide + 2 * n + j) = b;
            }
    }
    KERNEL(multiply)(&r->hidden, count, rows, 0, 0, wide, act + first, units);
    for (int64_t i = 0; i < count; i++) {
        float *unit = act + i * units;
        KERNEL(rectify)(first, rows[i] + n, unit);
        KERNEL(rectify)(h, unit + first, unit + first);
        rows[i] = unit;
    }
    KERNEL(multiply)(&r->out, count, rows, 0, 0, units, residuals, n);
}

/* Sums >> shift -> int16 (count, width); returns how many did not fit. low: 0 for a ReLU, else -32767. */
static int64_t KERNEL(narrow)(const Layer *l, int64_t count, const int32_t *sums, int64_t sums_row, int16_t *out, int64_t out_row)
{
    int32_t bad = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < l->width; j++) {
            const int32_t exact = sums[i * sums_row + j] >> l->shift[j];
            const int32_t fits = exact > 32767 ? 32767 : exact < -32767 ? -32767 : exact;
            bad += fits != exact;
            out[i * out_row + j] = (int16_t)fits;
        }
    return bad;
}

static int64_t KERNEL(int16)(const Rule *r, int64_t n, int64_t row, int64_t count, const int16_t *const *cells,
                             int16_t *residuals, int16_t *in, int16_t *act, int32_t *sums)
{
    const int64_t v = r->views.width, wide = n + v, h = r->hidden.width, units = r->out.depth, first = r->rewritten ? v : 0;
    const int16_t *rows[BLOCK] = {0};
    int64_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        memcpy(in + i * wide, cells[i], (size_t)n * sizeof(int16_t));
        rows[i] = in + i * wide;
    }
    if (!r->views.plain) {
        for (int tap = 0; tap < 3; tap++)
            KERNEL(multiply16)(&r->views, count, cells, (tap - 1) * row - n, tap * 3 * n, 3 * n, sums, v);
    } else {
        const int16_t *filters = r->views.weights;
        const int32_t *start = r->views.start;
        for (int64_t i = 0; i < count; i++) {
            int32_t *restrict sum = sums + i * v;
            memcpy(sum, start, (size_t)v * sizeof(int32_t));
            for (int tap = 0; tap < 9; tap++) {
                const int16_t *x = cells[i] + (tap / 3 - 1) * row + (tap % 3 - 1) * n;
                for (int64_t j = 0; j < n; j++) {
                    sum[j] += (int32_t)x[j] * filters[tap * v + j];
                    sum[n + j] += (int32_t)x[j] * filters[tap * v + n + j];
                }
            }
        }
    }
    bad += KERNEL(narrow)(&r->views, count, sums, v, in + n, wide);
    KERNEL(multiply16)(&r->hidden, count, rows, 0, 0, wide, sums, h);
    bad += KERNEL(narrow)(&r->hidden, count, sums, h, act + first, units);
    for (int64_t i = 0; i < count; i++) {
        int16_t *unit = act + i * units;
        for (int64_t j = 0; j < first; j++)
            unit[j] = rows[i][n + j] < 0 ? 0 : rows[i][n + j];
        for (int64_t j = first; j < first + h; j++)
            unit[j] = unit[j] < 0 ? 0 : unit[j];
        rows[i] = unit;
    }
    KERNEL(multiply16)(&r->out, count, rows, 0, 0, units, sums, n);
    return bad + KERNEL(narrow)(&r->out, count, sums, n, residuals, n);
}

#ifndef ARMV6
/* Residuals (count, n) added to the states of their cells. */
static void KERNEL(add)(int64_t n, int64_t count, float *const *cells, const float *residuals)
{
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < n; j += LANES)
            *(VEC *)(cells[i] + j) += *(const VEC *)(residuals + i * n + j);
}

static int64_t KERNEL(add16)(int64_t n, int64_t count, int16_t *const *cells, const int16_t *residuals)
{
    int32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        int16_t *restrict cell = cells[i];
        for (int64_t j = 0; j < n; j++) {
            const int32_t exact = (int32_t)cell[j] + residuals[i * n + j];
            const int32_t fits = exact > 32767 ? 32767 : exact < -32767 ? -32767 : exact;
            bad += fits != exact;
            cell[j] = (int16_t)fits;
        }
    }
    return bad;
}

#endif

/* Which cells of a row fire -> bytes; the row has been absorbed into the key. */
static void KERNEL(fires)(uint32_t key, int64_t from, int64_t count, uint32_t threshold, uint8_t *out)
{
    for (int64_t x = 0; x < count; x++)
        out[x] = (absorb(key, from + x) >> 8) < threshold;
}

#include "train.h"

#ifdef ARMV6
static const Kernels KERNEL(kernels) = {
    .name = NAME, .lanes = 8, .panel = PANEL, .pairs = PAIRS, .rows = 12, .fp32 = KERNEL(fp32), .int16 = KERNEL(dense16),
    .add = KERNEL(add), .add16 = KERNEL(add16), .fires = KERNEL(fires), .forward = KERNEL(forward), .backward = KERNEL(backward),
};
#else
static const Kernels KERNEL(kernels) = {
    .name = NAME, .lanes = LANES < 4 ? 4 : LANES, .panel = PANEL, .pairs = PAIRS, .rows = ROWS, .fp32 = KERNEL(fp32),
    .int16 = KERNEL(int16),
    .add = KERNEL(add), .add16 = KERNEL(add16), .fires = KERNEL(fires), .forward = KERNEL(forward), .backward = KERNEL(backward),
};
#endif

#undef VEC
#undef IVEC
#undef PANEL
#undef WEIGHTS
#undef STRIDE
#undef EVERY_TILE
#undef TILES
#undef KERNEL
#undef NAME
#undef LANES
#undef COLUMNS
#undef ROWS
#undef MADD
#undef PAIRS
#undef DOT
#undef EACH
