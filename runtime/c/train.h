/* Forward and backward through time, in float32, for the cells that fire only. Part of kernels.h.
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
 * cache too. Every sum is made in a fixed order: the same bits each run.
 */
#define LOAD(pointer) (*(const VEC *)(pointer))
#define VECTOR(pointer) (*(VEC *)(pointer))

/* C (height x width) = A (height x depth) B (depth x width) + start in each row, or + C where start is null.
 * A has any strides, B and C have rows of adjacent numbers; width is a multiple of 16. */
static void KERNEL(product)(int64_t height, int64_t width, int64_t depth, const float *a, int64_t a_row, int64_t a_column,
                            const float *b, int64_t b_row, const float *start, float *c, int64_t c_row)
{
    const float *rows_of_a[ROWS] = {0};
    for (int64_t j = 0, columns; j < width; j += columns * LANES) {
        columns = (width - j) / LANES < COLUMNS ? (width - j) / LANES : COLUMNS;
        for (int64_t i = 0, rows; i < height; i += rows) {
            rows = height - i < ROWS ? height - i : ROWS;
            for (int64_t row = 0; row < rows; row++)
                rows_of_a[row] = a + (i + row) * a_row;
            switch (rows * 8 + columns) {
#define TILE(r, w) case r * 8 + w: \
                KERNEL(tile)(r, w, depth, rows_of_a, 0, a_column, b + j, b_row, start ? start + j : 0, c + i * c_row + j, c_row); \
                break;
                EVERY_TILE(TILE)
#undef TILE
            }
        }
    }
}

/* ---- Cells and their neighbours ---- */

/* Fire mask of one step -> the numbers of the cells that fire. */
static int64_t KERNEL(list)(const uint8_t *fires, int64_t cells, int32_t *out)
{
    int64_t count = 0;
    for (int64_t i = 0; i < cells; i++) {
        out[count] = (int32_t)i;
        count += fires[i];
    }
    return count;
}

/* Cell -> the numbers of its 3 x 3 neighbours, reflected at the borders. */
static inline void KERNEL(neighbours)(const mednca_shape *s, int32_t cell, int64_t out[9])
{
    int64_t y = cell / s->width, x = cell % s->width;
    int64_t rows[3] = {y ? y - 1 : 1, y, y + 1 < s->height ? y + 1 : y - 1};
    int64_t columns[3] = {x ? x - 1 : 1, x, x + 1 < s->width ? x + 1 : x - 1};
    for (int i = 0; i < 9; i++)
        out[i] = rows[i / 3] * s->width + columns[i % 3];
}

static void KERNEL(plus)(float *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES)
        VECTOR(to + i) += LOAD(from + i);
}

/* The neighbourhoods (count, 9n) of a block of cells. */
static void KERNEL(gather)(const mednca_shape *s, const float *state, const int32_t *cells, int64_t count, float *around)
{
    const int64_t n = s->channels;
    int64_t near[9];
    for (int64_t i = 0; i < count; i++) {
        KERNEL(neighbours)(s, cells[i], near);
        for (int tap = 0; tap < 9; tap++, around += n)
            for (int64_t j = 0; j < n; j += LANES)
                VECTOR(around + j) = LOAD(state + near[tap] * n + j);
    }
}

/* The transpose of gather(): adds to the state. */
static void KERNEL(scatter)(const mednca_shape *s, float *state, const int32_t *cells, int64_t count, const float *around)
{
    const int64_t n = s->channels;
    int64_t near[9];
    for (int64_t i = 0; i < count; i++) {
        KERNEL(neighbours)(s, cells[i], near);
        for (int tap = 0; tap < 9; tap++, around += n)
            KERNEL(plus)(state + near[tap] * n, around, n);
    }
}

/* ---- The rule ---- */

/* Neighbourhoods (count, 9n) -> perceptions (count, 3n): own state, view a, view b. */
static void KERNEL(perceive)(const mednca_shape *s, int64_t count, const float *around, const float *filters, const float *views,
                     float *seen)
{
    const int64_t n = s->channels;
    for (int64_t i = 0; i < count; i++)
        memcpy(seen + i * 3 * n, around + (i * 9 + 4) * n, (size_t)n * sizeof(float));
    if (!s->depthwise) {
        KERNEL(product)(count, 2 * n, 9 * n, around, 9 * n, 1, filters, 2 * n, views, seen + n, 3 * n);
        return;
    }
    for (int64_t j = 0; j < n; j += LANES)
        for (int64_t i = 0; i < count; i++) {
            VEC a = LOAD(views + j), b = LOAD(views + n + j);
            UNROLL for (int tap = 0; tap < 9; tap++) {
                VEC state = LOAD(around + (i * 9 + tap) * n + j);
                a = MADD(state, LOAD(filters + tap * 2 * n + j), a);
                b = MADD(state, LOAD(filters + tap * 2 * n + n + j), b);
            }
            VECTOR(seen + (i * 3 + 1) * n + j) = a;
            VECTOR(seen + (i * 3 + 2) * n + j) = b;
        }
}

/* The transpose of perceive() for the filters: adds to their gradient. */
static void KERNEL(filters_gradient)(const mednca_shape *s, int64_t count, const float *around, const float *d_seen, float *d_filters)
{
    const int64_t n = s->channels;
    if (!s->depthwise) {
        KERNEL(product)(9 * n, 2 * n, count, around, 1, 9 * n, d_seen + n, 3 * n, 0, d_filters, 2 * n);
        return;
    }
    for (int64_t j = 0; j < 2 * n; j += LANES) {
        VEC sum[9];
        UNROLL for (int tap = 0; tap < 9; tap++) sum[tap] = LOAD(d_filters + tap * 2 * n + j);
        for (int64_t i = 0; i < count; i++)
            UNROLL for (int tap = 0; tap < 9; tap++)
                sum[tap] = MADD(LOAD(d_seen + (i * 3 + 1) * n + j), LOAD(around + (i * 9 + tap) * n + j % n), sum[tap]);
        UNROLL for (int tap = 0; tap < 9; tap++) VECTOR(d_filters + tap * 2 * n + j) = sum[tap];
    }
}

/* The transpose of perceive() for the neighbourhoods; filters_t: dense (2n, 9n), depthwise as filters. */
static void KERNEL(around_gradient)(const mednca_shape *s, int64_t count, const float *filters_t, const float *d_seen, const float *zeros,
                            float *d_around)
{
    const int64_t n = s->channels;
    if (!s->depthwise) {
        KERNEL(product)(count, 9 * n, 2 * n, d_seen + n, 3 * n, 1, filters_t, 9 * n, zeros, d_around, 9 * n);
        return;
    }
    for (int64_t j = 0; j < n; j += LANES)
        for (int64_t i = 0; i < count; i++)
            UNROLL for (int tap = 0; tap < 9; tap++)
                VECTOR(d_around + (i * 9 + tap) * n + j) =
                    MADD(LOAD(d_seen + (i * 3 + 1) * n + j), LOAD(filters_t + tap * 2 * n + j),
                         LOAD(d_seen + (i * 3 + 2) * n + j) * LOAD(filters_t + tap * 2 * n + n + j));
}

/* Perceptions (count, 3n) -> hidden units (count, h). */
static void KERNEL(excite)(const mednca_shape *s, int64_t count, const float *seen, const float *w1, const float *b1, float *hidden)
{
    const int64_t n = s->channels, h = s->hidden;
    KERNEL(product)(count, h, 3 * n, seen, 3 * n, 1, w1, h, b1, hidden, h);
    for (int64_t i = 0; i < count * h; i++)
        hidden[i] = hidden[i] < 0 ? 0 : hidden[i]; /* lets NaN through, as torch does */
}

/* State -> state after the steps. kept may be null. Returns 1 where memory ran out, else 0. */
static int KERNEL(forward)(const mednca_shape *s, float *state, const uint8_t *fires, const float *filters, const float *views,
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
            const int64_t firing = KERNEL(list)(fires, grid, cells);
            for (int64_t at = 0, count; at < firing; at += count) {
                count = firing - at < BLOCK ? firing - at : BLOCK;
                float *q = kept ? kept + at * 3 * n : seen;
                KERNEL(gather)(s, state, cells + at, count, around);
                KERNEL(perceive)(s, count, around, filters, views, q);
                KERNEL(excite)(s, count, q, w1, b1, hidden);
                KERNEL(product)(count, n, h, hidden, h, 1, w2, n, zeros, residual + at * n, n);
            }
            for (int64_t i = 0; i < firing; i++)
                KERNEL(plus)(state + cells[i] * n, residual + i * n, n);
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
static int KERNEL(backward)(const mednca_shape *s, float *state, float *d_state, const uint8_t *fires, const int64_t *counts,
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
            const int64_t firing = KERNEL(list)(fires + (item * s->steps + step) * grid, grid, cells);
            kept -= firing * 3 * n;
            for (int64_t i = 0; i < firing; i++) { /* take the step back; the scatters below change d_now */
                memcpy(now + cells[i] * n, kept + i * 3 * n, (size_t)n * sizeof(float));
                memcpy(d_residual + i * n, d_now + cells[i] * n, (size_t)n * sizeof(float));
            }
            for (int64_t at = 0, count; at < firing; at += count) {
                count = firing - at < BLOCK ? firing - at : BLOCK;
                const float *q = kept + at * 3 * n, *d_out = d_residual + at * n;
                KERNEL(excite)(s, count, q, w1, b1, hidden);
                KERNEL(product)(h, n, count, hidden, 1, h, d_out, n, 0, d_w2, n);
                KERNEL(product)(count, h, n, d_out, n, 1, w2_t, h, zeros, d_hidden, h);
                for (int64_t i = 0; i < count * h; i++)
                    d_hidden[i] = hidden[i] <= 0 ? 0 : d_hidden[i];
                for (int64_t i = 0; i < count; i++)
                    KERNEL(plus)(d_b1, d_hidden + i * h, h);
                KERNEL(product)(3 * n, h, count, q, 1, 3 * n, d_hidden, h, 0, d_w1, h);
                KERNEL(product)(count, 3 * n, h, d_hidden, h, 1, w1_t, 3 * n, zeros, d_seen, 3 * n);
                for (int64_t i = 0; i < count; i++) {
                    KERNEL(plus)(d_now + cells[at + i] * n, d_seen + i * 3 * n, n);
                    KERNEL(plus)(d_views, d_seen + i * 3 * n + n, 2 * n);
                }
                KERNEL(gather)(s, now, cells + at, count, around);
                KERNEL(filters_gradient)(s, count, around, d_seen, d_filters);
                KERNEL(around_gradient)(s, count, filters_t, d_seen, zeros, around);
                KERNEL(scatter)(s, d_now, cells + at, count, around);
            }
        }
    free(memory);
    return 0;
}

#undef LOAD
#undef VECTOR
