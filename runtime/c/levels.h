/* The steps of a level on a grid, by one thread or by a team. Part of mednca.c. */

/* Where the members of a team wait for each other. */
typedef struct {
    int32_t waiting, round;
} Barrier;

static void wait_for_all(Barrier *barrier, int32_t team)
{
    if (team < 2)
        return;
#ifdef __GNUC__
    const int32_t round = __atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&barrier->waiting, 1, __ATOMIC_ACQ_REL) == team) {
        __atomic_store_n(&barrier->waiting, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&barrier->round, round + 1, __ATOMIC_RELEASE);
    } else
        for (int spins = 0; __atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE) == round; spins++)
            if (spins > 4000)
                YIELD();
#endif
}

/* A level's cells: states with a border of one cell that mirrors what lies inside. */
typedef struct {
    char *states; /* of the first cell inside */
    int64_t height, width, cell, row; /* bytes of a cell and of a row */
} Grid;

static Grid grid_at(const mednca_model *m, char *memory, int64_t height, int64_t width)
{
    const int64_t cell = m->n * (m->options.numbers == MEDNCA_INT16 ? 2 : 4), row = (width + 2) * cell;
    Grid g = {memory + row + cell, height, width, cell, row};
    return g;
}

static int64_t grid_size(const mednca_model *m, int64_t height, int64_t width)
{
    return padded((height + 2) * (width + 2) * m->n * (m->options.numbers == MEDNCA_INT16 ? 2 : 4), 64);
}

/* Cells that have been computed and are not yet to be changed. */
typedef struct {
    int64_t count;
    void **cells;
    char *residuals;
} Batch;

/* What one member of a team works in. */
typedef struct {
    Batch first, batches[2];
    uint8_t *fires;
    char *in, *act, *sums;
} Desk;

static char *piece(char **memory, int64_t bytes)
{
    char *start = *memory;
    *memory += padded(bytes, 64);
    return start;
}

/* Lays out a desk at memory (null: to learn the size); returns its bytes. */
static int64_t desk_at(const mednca_model *m, char *memory, int64_t width, Desk *d)
{
    const int64_t item = m->options.numbers == MEDNCA_INT16 ? 2 : 4;
    int64_t views = 0, units = 0, sums = m->n;
    for (int i = 0; i < m->facts.levels; i++) {
        const Rule *r = &m->rules[i];
        views = views > r->views.width ? views : r->views.width;
        units = units > r->out.depth ? units : r->out.depth;
        units = units > 3 * m->n ? units : 3 * m->n; /* the neighbours of one row take turns with the units */
        sums = sums > r->views.width ? sums : r->views.width;
        sums = sums > r->hidden.width ? sums : r->hidden.width;
    }
    char *p = memory;
    Batch *batches[3] = {&d->first, &d->batches[0], &d->batches[1]};
    for (int i = 0; i < 3; i++) {
        const int64_t cells = width + (i ? BLOCK : 0) + 3; /* some kernels fill the last tile */
        batches[i]->cells = (void **)piece(&p, cells * (int64_t)sizeof(void *));
        batches[i]->residuals = piece(&p, cells * m->n * item);
        batches[i]->count = 0;
    }
    d->fires = (uint8_t *)piece(&p, width);
    d->in = piece(&p, BLOCK * (m->n + views) * item + 32); /* some read ahead */
    d->act = piece(&p, BLOCK * units * item + 32);
    d->sums = piece(&p, item == 2 ? BLOCK * sums * 4 : 0);
    return p - memory;
}

/* Residuals of the cells [from, to) of a batch. */
static int64_t compute(const mednca_model *m, const Rule *r, const Grid *g, Batch *batch, Desk *d)
{
    const int64_t blocks = (batch->count + BLOCK - 1) / BLOCK;
    int64_t bad = 0;
    for (int64_t at = 0, left = blocks, count; at < batch->count; at += count, left--) {
        count = (batch->count - at + left - 1) / left; /* even shares, in whole tiles */
        count = padded(count, m->kernels->rows) < BLOCK ? padded(count, m->kernels->rows) : BLOCK;
        count = count < batch->count - at ? count : batch->count - at;
        if (m->options.numbers == MEDNCA_FP32)
            m->kernels->fp32(r, m->n, g->row / 4, count, (const float *const *)(batch->cells + at),
                             (float *)batch->residuals + at * m->n, (float *)d->in, (float *)d->act);
        else
            bad += m->kernels->int16(r, m->n, g->row / 2, count, (const int16_t *const *)(batch->cells + at),
                                     (int16_t *)batch->residuals + at * m->n, (int16_t *)d->in, (int16_t *)d->act,
                                     (int32_t *)d->sums);
    }
    return bad;
}

static int64_t apply(const mednca_model *m, const Batch *batch, int64_t from, int64_t to)
{
    if (m->options.numbers == MEDNCA_INT16)
        return m->kernels->add16(m->n, to - from, (int16_t *const *)(batch->cells + from),
                                 (int16_t *)batch->residuals + from * m->n);
    m->kernels->add(m->n, to - from, (float *const *)(batch->cells + from), (float *)batch->residuals + from * m->n);
    return 0;
}

/* The border beside rows from .. to - 1. */
static void mirror_columns(const Grid *g, int64_t from, int64_t to)
{
    char *row = g->states + from * g->row;
    for (int64_t y = from; y < to; y++, row += g->row) {
        memcpy(row - g->cell, row + g->cell, (size_t)g->cell);
        memcpy(row + g->width * g->cell, row + (g->width - 2) * g->cell, (size_t)g->cell);
    }
}

/* Row to: a copy of another with its border. */
static void mirror_row(const Grid *g, int64_t to, int64_t from)
{
    memcpy(g->states + to * g->row - g->cell, g->states + from * g->row - g->cell, (size_t)g->row);
}

/* One step of the rows from .. to - 1, in place.
 *
 * A cell may change only after its neighbours have seen it, so the residuals of a row are added when the next row has
 * been computed: the last row of each batch waits for the next batch. In a team the first and the last row of a
 * member's part wait until all are done, for the neighbours' sake; they are left in first and in the batch returned. */
static Batch *step_rows(const mednca_model *m, const Rule *r, const Grid *g, uint32_t key, int64_t from, int64_t to, int hold,
                        const uint8_t *gate, Desk *d, mednca_counts *counts)
{
    Batch *batch = &d->batches[0], *before = &d->batches[1];
    int64_t waiting = 0; /* cells of the batch before that were added already */
    before->count = d->first.count = 0;
    for (int64_t y = from; y < to;) {
        Batch *b = hold && y == from ? &d->first : batch;
        int64_t last = 0;
        b->count = 0;
        do {
            last = b->count;
            m->kernels->fires(absorb(key, y), 0, g->width, m->fire_threshold, d->fires);
            char *cell = g->states + y * g->row;
            for (int64_t at = 0; at < g->row; at += 64) /* the row below has not been seen in this step */
                PREFETCH(cell + g->row - g->cell + at);
            if (gate)
                for (int64_t x = 0; x < g->width; x++)
                    d->fires[x] &= gate[y * g->width + x];
            for (int64_t x = 0; x < g->width; x++, cell += g->cell) {
                b->cells[b->count] = cell;
                b->count += d->fires[x];
            }
            y++;
        } while (b != &d->first && y < to && b->count < BLOCK);
        counts->saturated += compute(m, r, g, b, d);
        counts->cells += b->count;
        if (b == &d->first)
            continue;
        counts->saturated += apply(m, before, waiting, before->count);
        counts->saturated += apply(m, b, 0, last);
        waiting = last;
        batch = before;
        before = b;
    }
    /* what still waits lies in before, from `waiting` on: move it to the front */
    const int64_t size = m->n * (m->options.numbers == MEDNCA_INT16 ? 2 : 4);
    memmove(before->cells, before->cells + waiting, (size_t)(before->count - waiting) * sizeof(void *));
    memmove(before->residuals, before->residuals + waiting * size, (size_t)((before->count - waiting) * size));
    before->count -= waiting;
    return before;
}

/* ---- The mask, looked at between steps ---- */

/* What a team counts in a step. */
typedef struct {
    int32_t flips, filled; /* pixels that changed; pixels of the foreground */
} Tally;

typedef struct {
    uint8_t *mask;               /* (height, width): 0 background, else 1 + the class */
    Tally *tallies;              /* of steps with an even and with an odd number */
    int64_t rows[2], columns[2]; /* where the slice lies: what was padded is not looked at */
    int32_t patience, steps;     /* of the level; patience 0: all steps are run */
    int32_t quiet, over;         /* steps without a flip; whether the level has ended early */
    int64_t flips;               /* that this member has seen */
} Watch;

static uint8_t mask_value(const mednca_model *m, const Rule *r, const char *cell);

static void add_up(int32_t *sum, int32_t value)
{
#ifdef __GNUC__
    __atomic_fetch_add(sum, value, __ATOMIC_RELAXED);
#else
    *sum += value;
#endif
}

/* The rows of a member of a team. */
static void rows_of(const Grid *g, int32_t rank, int32_t team, int64_t *from, int64_t *to)
{
    const int64_t members = team < g->height / 2 ? team : g->height / 2; /* at least two rows each */
    *from = rank < members ? g->height * rank / members : 0;
    *to = rank < members ? g->height * (rank + 1) / members : 0;
}

/* The mask in a member's rows is brought up to date. tally: of the step; null before the first. */
static void look(const mednca_model *m, const Rule *r, const Grid *g, Watch *w, int64_t from, int64_t to, Tally *tally)
{
    int32_t flips = 0, filled = 0;
    from = from > w->rows[0] ? from : w->rows[0];
    to = to < w->rows[1] ? to : w->rows[1];
    for (int64_t y = from; y < to; y++) {
        uint8_t *mask = w->mask + y * g->width;
        const char *cell = g->states + y * g->row + w->columns[0] * g->cell;
        for (int64_t x = w->columns[0]; x < w->columns[1]; x++, cell += g->cell) {
            const uint8_t value = mask_value(m, r, cell);
            flips += value != mask[x];
            filled += value != 0;
            mask[x] = value;
        }
    }
    if (!tally)
        return;
    w->flips += flips;
    add_up(&tally->flips, flips);
    add_up(&tally->filled, filled);
}

/* Whether the mask will not change any more, as far as one can tell after so many steps. A mask that is empty or full says
 * little: that is how the coarsest level begins. All members of a team find the same. */
static int is_settled(Watch *w, const Tally *tally, int32_t done)
{
    const int64_t pixels = (w->rows[1] - w->rows[0]) * (w->columns[1] - w->columns[0]);
    w->quiet = tally->flips ? 0 : w->quiet + 1;
    return w->patience && w->quiet >= w->patience &&
           ((tally->filled && tally->filled < pixels) || 2 * (int64_t)done >= w->steps);
}

/* Steps first .. first + steps - 1 of a level, by one member of a team. The border must be in place, and is again.
 * watch: null, or looks at the mask after each step and may end the level. */
static void run_level(const mednca_model *m, int32_t level, const Grid *g, int32_t first, int32_t steps, uint32_t seed, int64_t item,
                      const uint8_t *gate, Desk *d, Barrier *barrier, int32_t rank, int32_t team, Watch *watch,
                      mednca_counts *counts)
{
    const Rule *r = &m->rules[level];
    int64_t from, to;
    rows_of(g, rank, team, &from, &to);
    for (int32_t step = first; step < first + steps; step++) {
        const uint32_t key = absorb(absorb(absorb(absorb(0, seed), level), step), item);
        counts->all += (to - from) * g->width;
        counts->steps += (to - from) * g->width;
        Batch *last = from < to ? step_rows(m, r, g, key, from, to, team > 1, gate, d, counts) : 0;
        wait_for_all(barrier, team);
        if (watch && rank == 0) /* all have read the tally of the step before */
            watch->tallies[(step + 1) % 2] = (Tally){0, 0};
        if (last) {
            counts->saturated += apply(m, &d->first, 0, d->first.count);
            counts->saturated += apply(m, last, 0, last->count);
            mirror_columns(g, from, to);
            if (from == 0)
                mirror_row(g, -1, 1);
            if (to == g->height)
                mirror_row(g, g->height, g->height - 2);
        }
        if (watch)
            look(m, r, g, watch, from, to, &watch->tallies[step % 2]);
        wait_for_all(barrier, team);
        if (watch && is_settled(watch, &watch->tallies[step % 2], step + 1)) {
            watch->over = 1;
            counts->all += (to - from) * g->width * (watch->steps - step - 1);
            return;
        }
    }
}

/* ---- States ---- */

/* The number of channel c nearest to a value; saturation is counted. */
static int16_t to_units(const Rule *r, int64_t c, float value, int64_t *bad)
{
    double x = (double)value / (double)r->scale[c];
    if (!(x > -32767.5 && x < 32767.5)) {
        ++*bad;
        return x > 0 ? 32767 : x < 0 ? -32767 : 0;
    }
    return (int16_t)nearest(x);
}

/* Writes a channel of a cell. */
static void put(const mednca_model *m, const Rule *r, char *cell, int64_t c, float value, mednca_counts *counts)
{
    if (m->options.numbers == MEDNCA_INT16)
        ((int16_t *)cell)[c] = to_units(r, c, value, &counts->saturated);
    else
        ((float *)cell)[c] = value;
}

static float get(const mednca_model *m, const Rule *r, const char *cell, int64_t c)
{
    return m->options.numbers == MEDNCA_INT16 ? (float)((const int16_t *)cell)[c] * r->scale[c] : ((const float *)cell)[c];
}

static void mirror(const Grid *g, int64_t from, int64_t to)
{
    mirror_columns(g, from, to);
    if (from == 0 && to > from)
        mirror_row(g, -1, 1);
    if (to == g->height && to > from)
        mirror_row(g, g->height, g->height - 2);
}
