/* Runs a rule and differentiates it, in float32, for the cells that fire only. Compiled and called by native.py.
 *
 * Shapes: H x W cells; n channels and h hidden units, both padded with zeros to multiples of 16 by the caller.
 *   state    (B, H, W, n), worked on in place
 *   fires    (B, steps, H, W) bytes; counts (B, steps), how many of them are 1
 *   filters  dense: (9n, 2n), rows ordered tap, channel; depthwise: (9, 2n). Columns: view a, view b. views (2n): bias
 *   w1       (3n, h), rows ordered own state, view a, view b; b1 (h)
 *   w2       (h, n), its columns of the image channels zero
 *   kept     (sum of counts, 3n): the perceptions of the cells that fired, ordered item, step, cell
 *
 * Items do not depend on each other, so all steps of one are run before the next begins: its state stays in the cache.
 * Within a step the cells that fire are taken in blocks, whose neighbourhoods, perceptions and hidden units stay in the
 * cache too. All products are one function, multiply(). Every sum is made in a fixed order: the same bits each run.
 * The functions share no data, so several threads may call them at once.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) /* registers decide: a tile of ROWS x COLUMNS vectors must fit */
#define LANES 16
#define COLUMNS 4
#elif defined(__AVX__)
#define LANES 8
#define COLUMNS 2
#elif defined(__aarch64__)
#define LANES 4
#define COLUMNS 4
#else
#define LANES 4
#define COLUMNS 2
#endif
enum { ROWS = 6, BLOCK = 96 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VEC(pointer) (*(vec *)(pointer))
#define IN(pointer) (*(const vec *)(pointer))
#define UNROLL _Pragma("GCC unroll 18")

/* ---- Products ---- */

/* One tile of multiply(), held in registers; rows and columns are known when this is compiled. */
static inline __attribute__((always_inline)) void tile(
    const int rows, const int columns, int64_t depth, const float *a, int64_t a_row, int64_t a_column, const float *b,
    int64_t b_row, const float *start, float *c, int64_t c_row)
{
    vec sum[ROWS][COLUMNS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) sum[i][j] = IN((start ? start : c + i * c_row) + j * LANES);
    for (int64_t k = 0; k < depth; k++, a += a_column, b += b_row) {
        vec right[COLUMNS];
        UNROLL for (int j = 0; j < columns; j++) right[j] = IN(b + j * LANES);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < columns; j++) sum[i][j] += a[i * a_row] * right[j];
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) VEC(c + i * c_row + j * LANES) = sum[i][j];
}

/* C (height x width) = A (height x depth) B (depth x width) + start in each row, or + C where start is null.
 * A has any strides, B and C have rows of adjacent numbers; width is a multiple of 16. */
static void multiply(int64_t height, int64_t width, int64_t depth, const float *a, int64_t a_row, int64_t a_column,
                     const float *b, int64_t b_row, const float *start, float *c, int64_t c_row)
{
    for (int64_t j = 0, columns; j < width; j += columns * LANES) {
        columns = (width - j) / LANES < COLUMNS ? (width - j) / LANES : COLUMNS;
        for (int64_t i = 0, rows; i < height; i += rows) {
            rows = height - i < ROWS ? height - i : ROWS;
            switch (rows * 8 + columns) {
#define CASE(r, w) case r * 8 + w: \
                tile(r, w, depth, a + i * a_row, a_row, a_column, b + j, b_row, start ? start + j : 0, \
                     c + i * c_row + j, c_row); \
                break;
#define CASES(w) CASE(1, w) CASE(2, w) CASE(3, w) CASE(4, w) CASE(5, w) CASE(6, w)
                CASES(1) CASES(2)
#if COLUMNS == 4
                CASES(3) CASES(4)
#endif
            }
        }
    }
}

/* ---- Which cells fire: as in fire.py, to the bit ---- */

static uint32_t absorb(uint32_t word, int64_t value)
{
    word += (uint32_t)value + 0x9E3779B9u;
    word = (word ^ (word >> 16)) * 0x85EBCA6Bu;
    word = (word ^ (word >> 13)) * 0xC2B2AE35u;
    return word ^ (word >> 16);
}

/* items (B), rows (B, H) and columns (B, W) -> fires and counts; threshold: the fire rate in units of 2^-24. */
void mednca_fires(int64_t batch, int64_t height, int64_t width, int64_t steps, int64_t seed, int64_t level,
                  uint32_t threshold, const int64_t *items, const int64_t *rows, const int64_t *columns,
                  uint8_t *fires, int64_t *counts)
{
    for (int64_t item = 0; item < batch; item++)
        for (int64_t step = 0; step < steps; step++, counts++) {
            uint32_t key = absorb(absorb(absorb(absorb(0, seed), level), step), items[item]);
            *counts = 0;
            for (int64_t y = 0; y < height; y++, fires += width) {
                uint32_t row = absorb(key, rows[item * height + y]), sum = 0;
                for (int64_t x = 0; x < width; x++)
                    sum += fires[x] = (absorb(row, columns[item * width + x]) >> 8) < threshold;
                *counts += sum;
            }
        }
}

/* ---- Cells and their neighbours ---- */

typedef struct {
    int64_t batch, height, width, channels, hidden, steps, depthwise;
} Shape;

/* Fire mask of one step -> the numbers of the cells that fire. */
static int64_t list(const uint8_t *fires, int64_t cells, int32_t *out)
{
    int64_t count = 0;
    for (int64_t i = 0; i < cells; i++) {
        out[count] = (int32_t)i;
        count += fires[i];
    }
    return count;
}

/* Cell -> the numbers of its 3 x 3 neighbours, reflected at the borders. */
static inline void neighbours(const Shape *s, int32_t cell, int64_t out[9])
{
    int64_t y = cell / s->width, x = cell % s->width;
    int64_t rows[3] = {y ? y - 1 : 1, y, y + 1 < s->height ? y + 1 : y - 1};
    int64_t columns[3] = {x ? x - 1 : 1, x, x + 1 < s->width ? x + 1 : x - 1};
    for (int i = 0; i < 9; i++)
        out[i] = rows[i / 3] * s->width + columns[i % 3];
}

static void add(float *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES)
        VEC(to + i) += IN(from + i);
}

/* The neighbourhoods (count, 9n) of a block of cells. */
static void gather(const Shape *s, const float *state, const int32_t *cells, int64_t count, float *around)
{
    const int64_t n = s->channels;
    int64_t near[9];
    for (int64_t i = 0; i < count; i++) {
        neighbours(s, cells[i], near);
        for (int tap = 0; tap < 9; tap++, around += n)
            for (int64_t j = 0; j < n; j += LANES)
                VEC(around + j) = IN(state + near[tap] * n + j);
    }
}

/* The transpose of gather(): adds to the state. */
static void scatter(const Shape *s, float *state, const int32_t *cells, int64_t count, const float *around)
{
    const int64_t n = s->channels;
    int64_t near[9];
    for (int64_t i = 0; i < count; i++) {
        neighbours(s, cells[i], near);
        for (int tap = 0; tap < 9; tap++, around += n)
            add(state + near[tap] * n, around, n);
    }
}

/* ---- The rule ---- */

/* Neighbourhoods (count, 9n) -> perceptions (count, 3n): own state, view a, view b. */
static void perceive(const Shape *s, int64_t count, const float *around, const float *filters, const float *views,
                     float *seen)
{
    const int64_t n = s->channels;
    for (int64_t i = 0; i < count; i++)
        memcpy(seen + i * 3 * n, around + (i * 9 + 4) * n, (size_t)n * sizeof(float));
    if (!s->depthwise) {
        multiply(count, 2 * n, 9 * n, around, 9 * n, 1, filters, 2 * n, views, seen + n, 3 * n);
        return;
    }
    for (int64_t j = 0; j < n; j += LANES)
        for (int64_t i = 0; i < count; i++) {
            vec a = IN(views + j), b = IN(views + n + j);
            UNROLL for (int tap = 0; tap < 9; tap++) {
                vec state = IN(around + (i * 9 + tap) * n + j);
                a += state * IN(filters + tap * 2 * n + j);
                b += state * IN(filters + tap * 2 * n + n + j);
            }
            VEC(seen + (i * 3 + 1) * n + j) = a;
            VEC(seen + (i * 3 + 2) * n + j) = b;
        }
}

/* The transpose of perceive() for the filters: adds to their gradient. */
static void filters_gradient(const Shape *s, int64_t count, const float *around, const float *d_seen, float *d_filters)
{
    const int64_t n = s->channels;
    if (!s->depthwise) {
        multiply(9 * n, 2 * n, count, around, 1, 9 * n, d_seen + n, 3 * n, 0, d_filters, 2 * n);
        return;
    }
    for (int64_t j = 0; j < 2 * n; j += LANES) {
        vec sum[9];
        UNROLL for (int tap = 0; tap < 9; tap++) sum[tap] = IN(d_filters + tap * 2 * n + j);
        for (int64_t i = 0; i < count; i++)
            UNROLL for (int tap = 0; tap < 9; tap++)
                sum[tap] += IN(d_seen + (i * 3 + 1) * n + j) * IN(around + (i * 9 + tap) * n + j % n);
        UNROLL for (int tap = 0; tap < 9; tap++) VEC(d_filters + tap * 2 * n + j) = sum[tap];
    }
}

/* The transpose of perceive() for the neighbourhoods; filters_t: dense (2n, 9n), depthwise as filters. */
static void around_gradient(const Shape *s, int64_t count, const float *filters_t, const float *d_seen, const float *zeros,
                            float *d_around)
{
    const int64_t n = s->channels;
    if (!s->depthwise) {
        multiply(count, 9 * n, 2 * n, d_seen + n, 3 * n, 1, filters_t, 9 * n, zeros, d_around, 9 * n);
        return;
    }
    for (int64_t j = 0; j < n; j += LANES)
        for (int64_t i = 0; i < count; i++)
            UNROLL for (int tap = 0; tap < 9; tap++)
                VEC(d_around + (i * 9 + tap) * n + j) =
                    IN(d_seen + (i * 3 + 1) * n + j) * IN(filters_t + tap * 2 * n + j) +
                    IN(d_seen + (i * 3 + 2) * n + j) * IN(filters_t + tap * 2 * n + n + j);
}

/* Perceptions (count, 3n) -> hidden units (count, h). */
static void excite(const Shape *s, int64_t count, const float *seen, const float *w1, const float *b1, float *hidden)
{
    const int64_t n = s->channels, h = s->hidden;
    multiply(count, h, 3 * n, seen, 3 * n, 1, w1, h, b1, hidden, h);
    for (int64_t i = 0; i < count * h; i++)
        hidden[i] = hidden[i] < 0 ? 0 : hidden[i]; /* lets NaN through, as torch does */
}

/* Aligned scratch memory, handed out piece by piece. */
static float *take(float **free_memory, int64_t count)
{
    float *piece = *free_memory;
    *free_memory += (count + 15) / 16 * 16;
    return piece;
}

static float *reserve(int64_t count, void **memory)
{
    *memory = malloc((size_t)count * sizeof(float) + 64);
    return *memory ? (float *)(((uintptr_t)*memory + 63) & ~(uintptr_t)63) : 0;
}

/* State -> state after the steps. kept may be null. Returns 1 where memory ran out, else 0. */
int mednca_forward(const Shape *s, float *state, const uint8_t *fires, const float *filters, const float *views,
                   const float *w1, const float *b1, const float *w2, float *kept)
{
    const int64_t n = s->channels, h = s->hidden, grid = s->height * s->width;
    void *memory;
    float *scratch = reserve(BLOCK * (12 * n + h) + grid * (n + 1) + n + 64, &memory);
    if (!scratch)
        return 1;
    float *around = take(&scratch, BLOCK * 9 * n), *seen = take(&scratch, BLOCK * 3 * n);
    float *hidden = take(&scratch, BLOCK * h), *residual = take(&scratch, grid * n), *zeros = take(&scratch, n);
    int32_t *cells = (int32_t *)take(&scratch, grid + 1);
    memset(zeros, 0, (size_t)n * sizeof(float));
    for (int64_t item = 0; item < s->batch; item++, state += grid * n)
        for (int64_t step = 0; step < s->steps; step++, fires += grid) {
            const int64_t firing = list(fires, grid, cells);
            for (int64_t at = 0, count; at < firing; at += count) {
                count = firing - at < BLOCK ? firing - at : BLOCK;
                float *q = kept ? kept + at * 3 * n : seen;
                gather(s, state, cells + at, count, around);
                perceive(s, count, around, filters, views, q);
                excite(s, count, q, w1, b1, hidden);
                multiply(count, n, h, hidden, h, 1, w2, n, zeros, residual + at * n, n);
            }
            for (int64_t i = 0; i < firing; i++)
                add(state + cells[i] * n, residual + i * n, n);
            if (kept)
                kept += firing * 3 * n;
        }
    free(memory);
    return 0;
}

/* The transpose of mednca_forward(), through time.
 *
 * state is the last state and becomes the first one again; d_state is the gradient of the last state and becomes that
 * of the first one. The gradients of filters, views, w1, b1 and w2 are added to. Weights with _t are transposed. */
int mednca_backward(const Shape *s, float *state, float *d_state, const uint8_t *fires, const int64_t *counts,
                    const float *kept, const float *filters_t, const float *w1, const float *b1, const float *w1_t,
                    const float *w2_t, float *d_filters, float *d_views, float *d_w1, float *d_b1, float *d_w2)
{
    const int64_t n = s->channels, h = s->hidden, grid = s->height * s->width;
    void *memory;
    float *scratch = reserve(BLOCK * (12 * n + 2 * h) + grid * (n + 1) + 9 * n + h + 64, &memory);
    if (!scratch)
        return 1;
    float *around = take(&scratch, BLOCK * 9 * n), *d_seen = take(&scratch, BLOCK * 3 * n);
    float *hidden = take(&scratch, BLOCK * h), *d_hidden = take(&scratch, BLOCK * h);
    float *d_residual = take(&scratch, grid * n), *zeros = take(&scratch, 9 * n + h);
    int32_t *cells = (int32_t *)take(&scratch, grid + 1);
    memset(zeros, 0, (size_t)(9 * n + h) * sizeof(float));
    for (int64_t i = 0; i < s->batch * s->steps; i++)
        kept += counts[i] * 3 * n;
    for (int64_t item = s->batch - 1; item >= 0; item--)
        for (int64_t step = s->steps - 1; step >= 0; step--) {
            float *now = state + item * grid * n, *d_now = d_state + item * grid * n;
            const int64_t firing = list(fires + (item * s->steps + step) * grid, grid, cells);
            kept -= firing * 3 * n;
            for (int64_t i = 0; i < firing; i++) { /* take the step back; the scatters below change d_now */
                memcpy(now + cells[i] * n, kept + i * 3 * n, (size_t)n * sizeof(float));
                memcpy(d_residual + i * n, d_now + cells[i] * n, (size_t)n * sizeof(float));
            }
            for (int64_t at = 0, count; at < firing; at += count) {
                count = firing - at < BLOCK ? firing - at : BLOCK;
                const float *q = kept + at * 3 * n, *d_out = d_residual + at * n;
                excite(s, count, q, w1, b1, hidden);
                multiply(h, n, count, hidden, 1, h, d_out, n, 0, d_w2, n);
                multiply(count, h, n, d_out, n, 1, w2_t, h, zeros, d_hidden, h);
                for (int64_t i = 0; i < count * h; i++)
                    d_hidden[i] = hidden[i] <= 0 ? 0 : d_hidden[i];
                for (int64_t i = 0; i < count; i++)
                    add(d_b1, d_hidden + i * h, h);
                multiply(3 * n, h, count, q, 1, 3 * n, d_hidden, h, 0, d_w1, h);
                multiply(count, 3 * n, h, d_hidden, h, 1, w1_t, 3 * n, zeros, d_seen, 3 * n);
                for (int64_t i = 0; i < count; i++) {
                    add(d_now + cells[at + i] * n, d_seen + i * 3 * n, n);
                    add(d_views, d_seen + i * 3 * n + n, 2 * n);
                }
                gather(s, now, cells + at, count, around);
                filters_gradient(s, count, around, d_seen, d_filters);
                around_gradient(s, count, filters_t, d_seen, zeros, around);
                scatter(s, d_now, cells + at, count, around);
            }
        }
    free(memory);
    return 0;
}
