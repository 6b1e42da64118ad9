/* The engine: see mednca.h. One file to compile; it includes
 *
 *     json.h, model.h    a model file: read, checked, rewritten, packed
 *     instructions.h     what runs for every cell (kernels.h, armv6.h, train.h), once for each set of instructions
 *     levels.h           the steps of a level
 *     images.h           values of a scan, percentiles, resampling
 *     log.h, field.h     the bias field of a scan, brought back to what is usual
 *     mask.h             what is done to a mask when all slices are there: smoothing across them, one piece
 *     sizes.h            whether its organ has another size than in training, for a second look
 *     spectrum.h         lines of k-space that no training scan has, brought back to what is usual
 *     coarse.h           scans of coarse voxels, drawn on between their slices
 *
 * and leads a scan through them.
 *
 * Nowhere may a compiler fuse what is written as two operations: the int16 path promises the same bits everywhere. Hence
 * the pragmas below (with another compiler than GCC or clang, see to it: -ffp-contract=off). Where fusing is wanted, the
 * kernels say so.
 */
#include "mednca.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#define YIELD() sched_yield()
#else
#define YIELD() (void)0
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
/* ... nor versions of a loop for strides of 1: GCC then keeps a tile's sums in memory, at half the speed. */
#pragma GCC optimize("-ffp-contract=off", "-fno-version-loops-for-strides")
#endif

#if defined(__clang__)
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 18")
#else
#define INLINE inline
#define UNROLL
#endif
#ifdef __GNUC__
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) (void)(address)
#endif

/* Cells that are computed together, so that weights and results meet in the fastest cache. */
#ifndef MEDNCA_BLOCK
#define MEDNCA_BLOCK 96
#endif
enum { BLOCK = MEDNCA_BLOCK };

/* A layer as the kernels want it: out (width) = start + in (depth) x weights, in columns of panels. */
typedef struct {
    int64_t depth, width; /* padded */
    void *weights;        /* float or int16; see pack() */
    void *start;          /* float, or int32 with the half of the rounding in it */
    int32_t *shift;       /* int16: result >> shift is in units of the layer's output */
    int plain;            /* depthwise: rows of 2n weights, not in panels */
} Layer;

/* The rule of a level. Views are the two views of the neighbourhood, or, where the rule was rewritten, hidden units. */
typedef struct {
    Layer views;  /* dense: depth 3 x 3n, ordered row, column, channel; depthwise: depth 9, width 2n */
    Layer hidden; /* depth n + views: own state, views */
    Layer out;    /* depth [views +] hidden: what has gone through the ReLU */
    int rewritten;
    double condition;
    float *scale;         /* int16: value of one unit of each channel */
} Rule;


typedef struct {
    const char *name;
    int lanes, panel, pairs;
    int rows; /* cells that are best taken at a time */
    void (*fp32)(const Rule *, int64_t n, int64_t row, int64_t count, const float *const *cells, float *residuals, float *in,
                 float *act);
    int64_t (*int16)(const Rule *, int64_t n, int64_t row, int64_t count, const int16_t *const *cells, int16_t *residuals,
                     int16_t *in, int16_t *act, int32_t *sums);
    void (*add)(int64_t n, int64_t count, float *const *cells, const float *residuals);
    int64_t (*add16)(int64_t n, int64_t count, int16_t *const *cells, const int16_t *residuals);
    void (*fires)(uint32_t key, int64_t from, int64_t count, uint32_t threshold, uint8_t *out);
    int (*forward)(const mednca_shape *, float *, const uint8_t *, const float *, const float *, const float *, const float *,
                   const float *, float *);
    int (*backward)(const mednca_shape *, float *, float *, const uint8_t *, const int64_t *, const float *, const float *,
                    const float *, const float *, const float *, const float *, float *, float *, float *, float *, float *);
} Kernels;

static const Kernels *find_kernels(const char *name);

/* Which cells fire: as in fire.py, to the bit. */
static inline uint32_t absorb(uint32_t word, int64_t value)
{
    word += (uint32_t)value + 0x9E3779B9u;
    word = (word ^ (word >> 16)) * 0x85EBCA6Bu;
    word = (word ^ (word >> 13)) * 0xC2B2AE35u;
    return word ^ (word >> 16);
}

/* The nearest whole number; halves away from zero. */
static int64_t nearest(double x)
{
    return x < 0 ? -(int64_t)(0.5 - x) : (int64_t)(x + 0.5);
}

/* The nearest whole number of x >= 0; halves to the even one, as Python rounds. */
static int64_t even(double x)
{
    const int64_t below = (int64_t)x;
    const double rest = x - (double)below;
    return below + (rest > 0.5 || (rest == 0.5 && below % 2));
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


#include "json.h"
#include "model.h"

#include "instructions.h"

#include "levels.h"

#include "images.h"

/* ---- Memory of a slice ---- */

typedef struct {
    Barrier *barrier;
    float *image;                /* (I, grid rows, grid columns) */
    float *shares;               /* (K, height, width): probabilities, summed over the ensemble */
    float *row, *taps;           /* one row of a slice; the weights of one of its pixels */
    uint8_t *gate, *dilated;     /* (grid rows, grid columns) */
    uint8_t *mask;               /* (grid rows, grid columns), see Watch */
    Tally *tallies;
    float *whole;                /* (height, width): the foreground's probability in one sample */
    float *mean, *apart;         /* (rows, columns): its mean over the samples, the sum of their squared distances from it */
    float *flat;                 /* where slices are normalised one by one: their pixels side by side */
    uint32_t *histogram;         /* 65536 */
    char *grids[2];              /* levels take turns; the last one has the first */
    char *desks;
    int64_t desk_size;
} Work;

static int64_t most_taps(int64_t old, int64_t new)
{
    return 2 * (old / new + 1) + 8;
}

static int64_t work_at(const mednca_model *m, const mednca_job *j, char *memory, int32_t team, Work *w)
{
    const mednca_facts *f = &m->facts;
    const int64_t cells = j->grid_rows * j->grid_columns;
    const int64_t sides[] = {j->rows, j->columns, j->height, j->width};
    int64_t longest = 2, coarse = f->levels > 1 ? f->scales[f->levels - 2] : 1, taps = 16;
    Desk desk;
    for (int i = 0; i < 4; i++)
        longest = longest > sides[i] ? longest : sides[i];
    for (int i = 0; i < 2; i++) {
        taps = taps > most_taps(sides[i], sides[i + 2]) ? taps : most_taps(sides[i], sides[i + 2]);
        taps = taps > most_taps(sides[i + 2], sides[i]) ? taps : most_taps(sides[i + 2], sides[i]);
    }
    char *p = memory;
    w->barrier = (Barrier *)piece(&p, sizeof(Barrier));
    w->image = (float *)piece(&p, f->image_channels * cells * 4);
    w->shares = (float *)piece(&p, f->classes * j->height * j->width * 4);
    w->row = (float *)piece(&p, longest * 4 * (f->classes + 1));
    w->taps = (float *)piece(&p, taps * 4);
    w->gate = (uint8_t *)piece(&p, m->options.gate >= 0 ? cells : 0);
    w->dilated = (uint8_t *)piece(&p, m->options.gate >= 0 ? cells : 0);
    w->mask = (uint8_t *)piece(&p, m->options.patience > 0 || m->options.signals ? cells : 0);
    w->tallies = (Tally *)piece(&p, 2 * sizeof(Tally));
    w->whole = (float *)piece(&p, m->options.signals ? j->height * j->width * 4 : 0);
    w->mean = (float *)piece(&p, m->options.signals ? j->rows * j->columns * 4 : 0);
    w->apart = (float *)piece(&p, m->options.signals ? j->rows * j->columns * 4 : 0);
    w->grids[0] = piece(&p, grid_size(m, j->grid_rows, j->grid_columns));
    w->grids[1] = piece(&p, f->levels > 1 ? grid_size(m, j->grid_rows / coarse, j->grid_columns / coarse) : 0);
    w->flat = (float *)piece(&p, m->per_slice ? j->height * j->width * 4 : 0);
    w->histogram = (uint32_t *)piece(&p, 65536 * 4);
    w->desk_size = desk_at(m, 0, j->grid_columns, &desk);
    w->desks = piece(&p, w->desk_size * team);
    return p - memory;
}

/* Sizes of a job along one of the model's axes, without measuring its values. */
static int plan(const mednca_model *m, const mednca_scan *scan, int32_t view, mednca_job *j, char *message, size_t size)
{
    const mednca_facts *f = &m->facts;
    const int axis = f->axes[view], rows = axis == 0 ? 1 : 0, columns = axis == 2 ? 1 : 2;
    char text[200];
    memset(j, 0, sizeof *j);
    j->model = m;
    j->scan = *scan;
    j->view = view;
    if (scan->type < MEDNCA_I8 || scan->type > MEDNCA_F64 || !scan->voxels)
        return fail(message, size, "the type of the voxels is none that this library reads");
    if (scan->shape[0] != f->modalities) {
        snprintf(text, sizeof text, "this model takes scans of %d channel(s), got %lld", f->modalities, (long long)scan->shape[0]);
        return fail(message, size, text);
    }
    double voxels = 1;
    for (int i = 0; i < 4; i++) {
        if (scan->shape[i] < 1 || (i && !(scan->spacing[i - 1] > 0 && scan->spacing[i - 1] < 1e9)))
            return fail(message, size, "every axis of the scan must have a voxel, and a spacing above 0 mm");
        voxels *= (double)scan->shape[i];
    }
    j->slices = scan->shape[1 + axis];
    j->height = j->rows = scan->shape[1 + rows];
    j->width = j->columns = scan->shape[1 + columns];
    double side[2] = {(double)j->rows, (double)j->columns};
    if (m->has_size) {
        side[0] = (double)m->size[0];
        side[1] = (double)m->size[1];
    } else if (m->has_spacing) {
        side[0] = side[0] * scan->spacing[rows] / m->spacing[0];
        side[1] = side[1] * scan->spacing[columns] / m->spacing[1];
    }
    if (!(voxels < 1e12 && side[0] < 65536 && side[1] < 65536 && side[0] * side[1] < 1e9))
        return fail(message, size, "the scan is too large: slices of up to 65535 x 65535 and 10^9 pixels can be taken");
    const int64_t least = m->has_spacing && !m->has_size ? 2 : 1;
    j->height = even(side[0]) > least ? even(side[0]) : least;
    j->width = even(side[1]) > least ? even(side[1]) : least;
    const int64_t multiple = f->scales[0];
    const int64_t around = 2 * (int64_t)m->margin;
    const int64_t grid_rows = padded(j->height + around, multiple), grid_columns = padded(j->width + around, multiple);
    j->grid_rows = grid_rows > 2 * multiple ? grid_rows : 2 * multiple;
    j->grid_columns = grid_columns > 2 * multiple ? grid_columns : 2 * multiple;
    j->top = (j->grid_rows - j->height) / 2;
    j->left = (j->grid_columns - j->width) / 2;
    return 0;
}

/* The part of a scan that the model looks at; first: where it begins, along x, y and z. */
static mednca_scan part_of(const mednca_model *m, const mednca_scan *scan, int64_t first[3])
{
    mednca_scan part = *scan;
    for (int i = 0; i < 3; i++) {
        const int64_t length = scan->shape[1 + i];
        first[i] = 0;
        if (!m->has_roi || length < 1)
            continue;
        int64_t behind = even(m->roi[2 * i + 1] * (double)length);
        first[i] = even(m->roi[2 * i] * (double)length);
        first[i] = first[i] < length ? first[i] : length - 1;
        behind = behind > first[i] ? behind : first[i] + 1;
        part.shape[1 + i] = behind - first[i];
        part.voxels = (const char *)part.voxels + first[i] * scan->strides[1 + i];
    }
    return part;
}

size_t mednca_work_size(const mednca_model *model, const mednca_scan *scan, int32_t team, char *message, size_t message_size)
{
    mednca_job job;
    Work work;
    int64_t bytes = 0, first[3];
    const mednca_scan part = part_of(model, scan, first);
    for (int32_t view = 0; view < model->facts.views; view++) {
        if (plan(model, &part, view, &job, message, message_size))
            return 0;
        const int64_t needed = work_at(model, &job, 0, team < 1 ? 1 : team, &work) + 64;
        bytes = needed > bytes ? needed : bytes;
    }
    if ((uint64_t)bytes > SIZE_MAX / 2) {
        fail(message, message_size, "the scan is too large for this machine");
        return 0;
    }
    return (size_t)bytes;
}

static char *aligned(void *memory)
{
    return (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
}

int mednca_begin(const mednca_model *model, const mednca_scan *scan, void *work, mednca_job *job, char *message,
                 size_t message_size)
{
    Work w;
    int64_t first[3];
    const mednca_scan part = part_of(model, scan, first);
    for (int32_t view = model->facts.views - 1; view >= 0; view--)
        if (plan(model, &part, view, job, message, message_size))
            return 1;
    memcpy(job->first, first, sizeof job->first);
    work_at(model, job, aligned(work), 1, &w);
    int broken = 0;
    const int64_t voxels = part.shape[1] * part.shape[2] * part.shape[3];
    for (int64_t c = 0; c < part.shape[0] && !broken; c++) {
        Values values = {.scan = &job->scan, .channel = c, .count = voxels};
        if (model->per_slice || model->field) /* measured later: each slice, or by mednca_field() */
            broken = tally(&values, 0, 0, w.histogram);
        else
            broken = measure(&values, w.histogram, &job->low[c], &job->high[c]);
    }
    return broken ? fail(message, message_size, "the scan holds values that are not finite (NaN or infinity)") : 0;
}

void mednca_turn(mednca_job *job, int32_t view)
{
    mednca_job turned;
    plan(job->model, &job->scan, view, &turned, 0, 0); /* mednca_begin() has seen that all views can be planned */
    memcpy(turned.low, job->low, sizeof turned.low);
    memcpy(turned.high, job->high, sizeof turned.high);
    memcpy(turned.first, job->first, sizeof turned.first);
    turned.spread = job->spread;
    turned.field = job->field;
    memcpy(turned.spread_strides, job->spread_strides, sizeof turned.spread_strides);
    *job = turned;
}

/* What lies beside the slice in a plane of its grid: its edges, repeated. */
static void repeat_edges(const mednca_job *j, float *plane)
{
    const int64_t across = j->grid_columns;
    for (int64_t y = j->top; y < j->top + j->height; y++) {
        float *row = plane + y * across + j->left;
        for (int64_t x = 0; x < j->left; x++)
            row[x - j->left] = row[0];
        for (int64_t x = j->width; x < across - j->left; x++)
            row[x] = row[j->width - 1];
    }
    for (int64_t y = 0; y < j->grid_rows; y++)
        if (y < j->top || y >= j->top + j->height)
            memcpy(plane + y * across, plane + (y < j->top ? j->top : j->top + j->height - 1) * across,
                   (size_t)across * sizeof(float));
}

/* One slice of the scan, resized and normalised -> image (I, grid rows, grid columns), edges repeated. */
static void prepare(const mednca_job *j, int64_t slice, Work *w)
{
    const mednca_model *m = j->model;
    const mednca_facts *f = &m->facts;
    const int axis = f->axes[j->view], rows = axis == 0 ? 1 : 0, columns = axis == 2 ? 1 : 2, cubic = m->has_size;
    const int64_t across = j->grid_columns;
    float *plane = w->image;
    for (int64_t c = 0; c < f->image_channels; c++, plane += j->grid_rows * across) {
        /* channels come neighbour by neighbour, each with all modalities */
        const int64_t modality = c % f->modalities;
        int64_t at[3], z = slice + c / f->modalities - f->context;
        at[axis] = z < 0 ? 0 : z < j->slices ? z : j->slices - 1;
        const double low = j->low[modality], high = j->high[modality];
        float *inside = plane + j->top * across + j->left;
        for (int64_t y = 0; y < j->height; y++) {
            float *out = inside + y * across;
            int64_t count = 1, first = y;
            w->taps[0] = 1;
            if (j->height != j->rows)
                first = taps_of(j->rows, j->height, y, cubic, w->taps, &count);
            for (int64_t x = 0; x < j->columns; x++) {
                float sum = 0;
                at[columns] = x;
                for (int64_t t = 0; t < count; t++) {
                    at[rows] = first + t;
                    float value = value_at(&j->scan, modality, at);
                    value = m->per_slice ? value : rescale(value, low, high);
                    sum = count == 1 && w->taps[0] == 1 ? value : sum + w->taps[t] * value;
                }
                w->row[x] = sum;
            }
            if (j->width != j->columns)
                resize_row(w->row, j->columns, out, j->width, cubic, w->taps);
            else
                memcpy(out, w->row, (size_t)j->width * sizeof(float));
        }
        if (m->per_slice) { /* measured after resizing, as the authors' code does */
            double l, h;
            for (int64_t y = 0; y < j->height; y++)
                memcpy(w->flat + y * j->width, inside + y * across, (size_t)j->width * sizeof(float));
            Values values = {.values = w->flat, .count = j->height * j->width};
            measure(&values, w->histogram, &l, &h);
            for (int64_t y = 0; y < j->height; y++)
                for (int64_t x = 0; x < j->width; x++)
                    inside[y * across + x] = rescale(inside[y * across + x], l, h);
        }
        repeat_edges(j, plane);
    }
}

/* How a run sees the slices of a view. */
typedef struct {
    int rows, columns; /* whether mirrored in the plane */
    int order;         /* whether the last slice comes first */
} Mirrors;

static Mirrors mirrors_of(const mednca_job *j, int32_t member)
{
    const mednca_model *m = j->model;
    const int axis = m->facts.axes[j->view];
    Mirrors found = {0, 0, 0};
    for (int32_t i = 0; i < m->mirrors; i++) {
        const int there = member >> i & 1;
        if (m->mirror_axes[i] == axis)
            found.order = there;
        else if (m->mirror_axes[i] == (axis == 0 ? 1 : 0))
            found.rows = there;
        else
            found.columns = there;
    }
    return found;
}

static void swap(float *one, float *other, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const float kept = one[i];
        one[i] = other[i];
        other[i] = kept;
    }
}

/* The prepared slice, mirrored where two runs differ. */
static void mirror_image(const mednca_job *j, Work *w, Mirrors before, Mirrors now)
{
    const mednca_facts *f = &j->model->facts;
    const int64_t across = j->grid_columns, cells = j->grid_rows * across, block = f->modalities * cells;
    for (int64_t i = 0; before.order != now.order && i < f->context; i++)
        swap(w->image + i * block, w->image + (2 * f->context - i) * block, block);
    if (before.rows == now.rows && before.columns == now.columns)
        return;
    for (int64_t c = 0; c < f->image_channels; c++) {
        float *plane = w->image + c * cells, *inside = plane + j->top * across + j->left;
        for (int64_t y = 0; before.rows != now.rows && y < j->height / 2; y++)
            swap(inside + y * across, inside + (j->height - 1 - y) * across, j->width);
        for (int64_t y = 0; before.columns != now.columns && y < j->height; y++)
            for (int64_t x = 0; x < j->width / 2; x++)
                swap(inside + y * across + x, inside + y * across + j->width - 1 - x, 1);
        repeat_edges(j, plane);
    }
}

/* The image at a level: between the pixels nearest to each new centre. */
static float sharp(const mednca_job *j, const Work *w, int64_t channel, int64_t scale, int64_t y, int64_t x)
{
    const float *plane = w->image + channel * j->grid_rows * j->grid_columns;
    const float *p = plane + (y * scale + (scale - 1) / 2) * j->grid_columns + x * scale + (scale - 1) / 2;
    if (scale % 2)
        return p[0];
    const float above = 0.5f * p[0] + 0.5f * p[1], below = 0.5f * p[j->grid_columns] + 0.5f * p[j->grid_columns + 1];
    return 0.5f * above + 0.5f * below;
}

/* ---- A slice through the levels ---- */

/* Cells of a level in the rows from .. to - 1: its image, and the state of the cell above each, or zeros. */
static void fill(const mednca_job *j, const Work *w, int32_t level, const Grid *g, const Grid *coarse, int64_t from, int64_t to,
                 mednca_counts *counts)
{
    const mednca_model *m = j->model;
    const mednca_facts *f = &m->facts;
    const Rule *r = &m->rules[level], *before = level ? &m->rules[level - 1] : 0;
    const int64_t scale = f->scales[level], factor = level ? f->scales[level - 1] / scale : 1;
    for (int64_t y = from; y < to; y++) {
        char *cell = g->states + y * g->row;
        for (int64_t x = 0; x < g->width; x++, cell += g->cell) {
            if (!level)
                memset(cell, 0, (size_t)g->cell);
            else {
                const char *above = coarse->states + y / factor * coarse->row + x / factor * coarse->cell;
                if (m->options.numbers == MEDNCA_FP32 || x % factor == 0) {
                    memcpy(cell, above, (size_t)g->cell);
                    for (int64_t c = 0; m->options.numbers == MEDNCA_INT16 && c < f->channels; c++)
                        put(m, r, cell, c, get(m, before, above, c), counts);
                } else
                    memcpy(cell, cell - g->cell, (size_t)g->cell);
            }
            for (int64_t c = 0; c < f->image_channels; c++)
                put(m, r, cell, c, sharp(j, w, c, scale, y, x), counts);
        }
    }
    mirror(g, from, to);
}

/* e^x, x <= 0, without the machine's library: the same bits everywhere. */
static double power_of_e(double x)
{
    if (!(x > -700))
        return x != x ? x : 0;
    const int64_t k = nearest(x * 1.4426950408889634);
    const double r = (x - (double)k * 0.6931471803691238) - (double)k * 1.9082149292705877e-10;
    double sum = 1;
    for (int i = 13; i > 0; i--)
        sum = 1 + sum * r / i;
    uint64_t bits = (uint64_t)(1023 + k) << 52;
    double scale;
    memcpy(&scale, &bits, 8);
    return sum * scale;
}

/* Logits of a cell -> probabilities of the classes, added up, and of them all; the background's logit is 0. Returns 0 where one
 * is not finite. */
static int softmax(const mednca_model *m, const Rule *r, const char *cell, float *shares, int64_t apart, float part, float *whole)
{
    const int64_t first = m->facts.image_channels, classes = m->facts.classes;
    double most = 0, sum;
    for (int64_t k = 0; k < classes; k++) {
        const double logit = (double)get(m, r, cell, first + k);
        if (!(logit - logit == 0)) {
            *whole = 0;
            return 0;
        }
        most = logit > most ? logit : most;
    }
    const double background = sum = power_of_e(-most);
    for (int64_t k = 0; k < classes; k++)
        sum += power_of_e((double)get(m, r, cell, first + k) - most);
    *whole = (float)(1 - background / sum);
    for (int64_t k = 0; k < classes; k++)
        shares[k * apart] += (float)(power_of_e((double)get(m, r, cell, first + k) - most) / sum) * part;
    return 1;
}

/* The probability of the foreground. */
static double foreground(const mednca_model *m, const Rule *r, const char *cell)
{
    const int64_t first = m->facts.image_channels;
    double most = 0, sum;
    for (int64_t k = 0; k < m->facts.classes; k++)
        most = (double)get(m, r, cell, first + k) > most ? (double)get(m, r, cell, first + k) : most;
    sum = power_of_e(-most);
    const double background = sum;
    for (int64_t k = 0; k < m->facts.classes; k++)
        sum += power_of_e((double)get(m, r, cell, first + k) - most);
    return 1 - background / sum;
}

static int is_foreground(const mednca_model *m, const Rule *r, const char *cell)
{
    return foreground(m, r, cell) > m->threshold;
}

/* What can be said of most cells without a power of e. */
static void find_logits(mednca_model *m)
{
    double low = -80, high = 80;
    int bits = 0;
    while (high - low > 1e-12) { /* one class: 1 / (1 + e^-x) > threshold, as foreground() would have it */
        const double x = (low + high) / 2, most = x > 0 ? x : 0, background = power_of_e(-most);
        *(1 - background / (background + power_of_e(x - most)) > m->threshold ? &high : &low) = x;
    }
    m->logit = (float)high;
    while (1 << bits < m->facts.classes)
        bits++;
    m->no_logit = (float)(low - 0.6932 * bits - 1e-3); /* the sum of K powers is at most K times the largest */
}

/* A cell's value in the mask of a level: 0 background, else 1 + the likeliest class. */
static uint8_t mask_value(const mednca_model *m, const Rule *r, const char *cell)
{
    const int64_t first = m->facts.image_channels;
    int64_t best = 0;
    float most = get(m, r, cell, first);
    for (int64_t k = 1; k < m->facts.classes; k++) {
        const float logit = get(m, r, cell, first + k);
        best = logit > most ? k : best;
        most = logit > most ? logit : most;
    }
    if (most > m->logit || (m->facts.classes > 1 && most > m->no_logit && is_foreground(m, r, cell)))
        return (uint8_t)(1 + best);
    return 0;
}

/* The coarse foreground, dilated by a square -> the cells of the next level that may fire. 0 where there is no foreground:
 * then the whole image is computed, lest something be missed in silence. */
static int open_gate(const mednca_job *j, Work *w, int32_t level, const Grid *g)
{
    const mednca_model *m = j->model;
    const int64_t scale = m->facts.scales[level], factor = scale / m->facts.scales[level + 1], wide = g->width * factor;
    const int64_t reach = (m->options.gate + scale - 1) / scale;
    int64_t found = 0;
    memset(w->dilated, 0, (size_t)(g->height * g->width));
    for (int64_t y = 0; y < g->height; y++)
        for (int64_t x = 0; x < g->width; x++) {
            if (!is_foreground(m, &m->rules[level], g->states + y * g->row + x * g->cell))
                continue;
            found++;
            for (int64_t i = y > reach ? y - reach : 0; i <= y + reach && i < g->height; i++) {
                const int64_t from = x > reach ? x - reach : 0, to = x + reach < g->width ? x + reach : g->width - 1;
                memset(w->dilated + i * g->width + from, 1, (size_t)(to - from + 1));
            }
        }
    for (int64_t y = 0; found && y < g->height * factor; y++)
        for (int64_t x = 0; x < wide; x++)
            w->gate[y * wide + x] = w->dilated[y / factor * g->width + x / factor];
    return found > 0;
}

/* Row y of the slice's voxels from a plane of pixels (height, width) -> out, which is returned. */
static const float *voxel_row(const mednca_job *j, const Work *w, const float *plane, int64_t y, float *out)
{
    const int64_t longest = j->columns > j->width ? j->columns : j->width;
    float *mix = j->width == j->columns ? out : w->row + j->model->facts.classes * longest;
    int64_t count = 1, first = y;
    if (j->rows != j->height)
        first = taps_of(j->height, j->rows, y, 0, w->taps, &count);
    for (int64_t x = 0; x < j->width; x++) {
        float sum = 0;
        for (int64_t t = 0; t < count; t++)
            sum += w->taps[t] * plane[(first + t) * j->width + x];
        mix[x] = j->rows == j->height ? plane[y * j->width + x] : sum;
    }
    if (j->width != j->columns)
        resize_row(mix, j->width, out, j->columns, 0, w->taps);
    return out;
}

/* One more sample of the foreground's probability (in whole) -> mean and squared distances, of `number` others so far. */
static void add_sample(const mednca_job *j, Work *w, int32_t number)
{
    for (int64_t y = 0; y < j->rows; y++) {
        const float *row = voxel_row(j, w, w->whole, y, w->row);
        float *mean = w->mean + y * j->columns, *apart = w->apart + y * j->columns;
        for (int64_t x = 0; x < j->columns; x++) {
            const float before = number ? mean[x] : row[x], delta = row[x] - before;
            mean[x] = before + delta / (float)(number + 1);
            apart[x] = (number ? apart[x] : 0) + delta * (row[x] - mean[x]);
        }
    }
}

/* The square root, without the machine's library. */
static double root(double x)
{
    uint64_t bits;
    double y;
    if (!(x > 1e-30))
        return x != x ? x : 0;
    memcpy(&bits, &x, 8);
    bits = (bits >> 1) + ((uint64_t)1023 << 51); /* half the exponent: within 7 % */
    memcpy(&y, &bits, 8);
    for (int i = 0; i < 4; i++)
        y = 0.5 * (y + x / y);
    return y;
}

/* A number of the size of 1 in units of 2^-24, so that sums do not depend on their order. */
static int64_t in_units(double x)
{
    return x - x == 0 ? nearest(x * 16777216.0) : 0;
}

/* How far the samples of a voxel lie apart, and the means of the axes.
 *
 * sum: the probability of the foreground, averaged over the views so far, each with its part of all views; earlier: the same
 * before this one; there: where the spread goes, or null; samples: of this view. Until the last view there holds the squared
 * distances within and between the views. */
static void note_spread(const mednca_job *j, float apart, float sum, float earlier, char *there, int32_t samples,
                        mednca_counts *counts)
{
    const double views = j->model->facts.views, view = (double)j->view;
    double within = apart, between = 0;
    float kept[2] = {0, 0};
    if (there && view > 0) {
        memcpy(&kept[0], there, 4);
        memcpy(&kept[1], there + j->spread_strides[0], 4);
        const double delta = views * ((double)sum - (double)earlier) - views * (double)earlier / view;
        within += (double)kept[0];
        between = (double)kept[1] + delta * delta * view / (view + 1);
    }
    if (view + 1 == views) {
        counts->mean += in_units((double)sum);
        if (views > 1 && !there)
            return;
        within = root((within + samples * between) / (samples * views));
        between = root(between / views);
        counts->spread += in_units(within);
        counts->axes += in_units(between);
    }
    kept[0] = (float)within;
    kept[1] = (float)between;
    if (there)
        memcpy(there, &kept[0], 4);
    if (there && views > 1)
        memcpy(there + j->spread_strides[0], &kept[1], 4);
}

/* Probabilities (K, height, width) -> the probabilities of the slice's voxels, averaged over the views so far, and the
 * mask, once all have been seen. */
static void decide(const mednca_job *j, int64_t slice, Work *w, uint8_t *mask, const int64_t *mask_strides, float *probability,
                   const int64_t *probability_strides, int32_t samples, mednca_counts *counts)
{
    const mednca_model *m = j->model;
    const mednca_facts *f = &m->facts;
    const int axis = f->axes[j->view], rows = axis == 0 ? 1 : 0, columns = axis == 2 ? 1 : 2;
    const int64_t longest = j->columns > j->width ? j->columns : j->width;
    for (int64_t y = 0; y < j->rows; y++) {
        for (int64_t k = 0; k < f->classes; k++)
            voxel_row(j, w, w->shares + k * j->height * j->width, y, w->row + k * longest);
        for (int64_t x = 0; x < j->columns; x++) {
            int64_t at[3], best = 0;
            float sum = 0, earlier = 0;
            at[axis] = slice + j->first[axis];
            at[rows] = y + j->first[rows];
            at[columns] = x + j->first[columns];
            for (int64_t k = 0; k < f->classes; k++) {
                float share = w->row[k * longest + x], before = 0;
                char *there = probability ? (char *)probability + k * probability_strides[0] + at[0] * probability_strides[1] +
                                                at[1] * probability_strides[2] + at[2] * probability_strides[3]
                                          : 0;
                if (f->views > 1) {
                    if (j->view && there)
                        memcpy(&before, there, 4);
                    share = before + share * (1.0f / (float)f->views);
                    w->row[k * longest + x] = share;
                    earlier += before;
                }
                sum += share;
                best = share > w->row[best * longest + x] ? k : best;
                if (there)
                    memcpy(there, &share, 4);
            }
            if (m->options.signals) {
                const int64_t *strides = j->spread_strides;
                char *there = j->spread ? (char *)j->spread + at[0] * strides[1] + at[1] * strides[2] + at[2] * strides[3] : 0;
                note_spread(j, w->apart[y * j->columns + x], sum, earlier, there, samples, counts);
            }
            if (j->view + 1 < f->views)
                continue;
            mask[at[0] * mask_strides[0] + at[1] * mask_strides[1] + at[2] * mask_strides[2]] =
                sum > (float)m->threshold ? f->values[best] : 0;
        }
    }
}

/* All steps of a level of a slice, or as many as it takes to settle; on the way what the signals are made of is counted.
 * Returns how many samples of the foreground's probability were taken before the end. */
static int32_t run_watched(const mednca_job *j, Work *w, int32_t level, const Grid *g, uint32_t seed, int64_t slice,
                           const uint8_t *gate, Desk *desk, int32_t rank, int32_t team, mednca_counts *counts)
{
    const mednca_model *m = j->model;
    const mednca_facts *f = &m->facts;
    const Rule *r = &m->rules[level];
    const int64_t scale = f->scales[level];
    const int32_t steps = f->steps[level], patience = m->options.patience > 0 ? m->options.patience : 0;
    const int32_t signals = m->options.signals && level + 1 == f->levels;
    const int32_t quarter = signals ? (steps < 8 ? 1 : steps / 4) : 0;
    const int32_t samples = f->ensemble * f->views > 1 ? 0 : quarter < 3 ? quarter : 3;
    const int32_t parts = samples || !signals ? samples : 1; /* of the last quarter */
    int32_t at = 0;
    int64_t from, to;
    Watch watch = {.mask = w->mask, .tallies = w->tallies, .patience = patience, .steps = steps,
                   .rows = {j->top / scale, (j->top + j->height + scale - 1) / scale},
                   .columns = {j->left / scale, (j->left + j->width + scale - 1) / scale}};
    rows_of(g, rank, team, &from, &to);
    if (patience)
        look(m, r, g, &watch, from, to, 0);
    for (int32_t part = parts; part >= 0; part--) { /* the steps before the last quarter, then its parts */
        const int32_t until = steps - (part ? part * quarter / parts : 0);
        const int looks = patience || (signals && part < parts);
        if (!watch.over)
            run_level(m, level, g, at, until - at, seed, slice, gate, desk, w->barrier, rank, team, looks ? &watch : 0, counts);
        at = until;
        if (part == parts) {
            watch.flips = 0;
            if (signals && !patience)
                look(m, r, g, &watch, from, to, 0);
        }
        if (part && samples) {
            if (rank == 0) {
                for (int64_t y = 0; y < j->height; y++)
                    for (int64_t x = 0; x < j->width; x++)
                        w->whole[y * j->width + x] =
                            (float)foreground(m, r, g->states + (y + j->top) * g->row + (x + j->left) * g->cell);
                add_sample(j, w, parts - part);
            }
            wait_for_all(w->barrier, team);
        }
    }
    counts->flips += signals ? watch.flips : 0;
    return samples;
}

/* The end of a run, by one member: its probabilities are added up, and its mask compared with that of the level before. */
static void end_run(const mednca_job *j, Work *w, Mirrors mirrors, const Grid *grid, const Grid *coarse, mednca_counts *counts)
{
    const mednca_model *m = j->model;
    const mednca_facts *f = &m->facts;
    const int32_t last = f->levels - 1, factor = last ? f->scales[last - 1] : 1;
    const float part = 1.0f / (float)f->ensemble;
    float unused;
    for (int64_t y = 0; y < j->height; y++)
        for (int64_t x = 0; x < j->width; x++) {
            const int64_t i = y * j->width + x, row = j->top + (mirrors.rows ? j->height - 1 - y : y),
                          column = j->left + (mirrors.columns ? j->width - 1 - x : x);
            const char *cell = grid->states + row * grid->row + column * grid->cell;
            float *whole = m->options.signals ? w->whole + i : &unused;
            counts->broken += !softmax(m, &m->rules[last], cell, w->shares + i, j->height * j->width, part, whole);
            if (!m->options.signals)
                continue;
            const uint8_t value = mask_value(m, &m->rules[last], cell);
            counts->fine += value != 0;
            if (!last)
                continue;
            const uint8_t before = mask_value(m, &m->rules[last - 1], coarse->states + row / factor * coarse->row +
                                                                          column / factor * coarse->cell);
            counts->coarse += before != 0;
            counts->agree += value && value == before;
        }
}

int32_t mednca_abi(void)
{
    return MEDNCA_ABI;
}

void mednca_slice(const mednca_job *job, int64_t slice, void *work, int32_t rank, int32_t team, uint8_t *mask,
                  const int64_t *mask_strides, float *probability, const int64_t *probability_strides, mednca_counts *counts)
{
    const mednca_model *m = job->model;
    const mednca_facts *f = &m->facts;
    Work w;
    Desk desk;
    int32_t samples = 0;
    work_at(m, job, aligned(work), team, &w);
    desk_at(m, w.desks + rank * w.desk_size, job->grid_columns, &desk);
    if (rank == 0) {
        memset(w.shares, 0, (size_t)(f->classes * job->height * job->width) * sizeof(float));
        prepare(job, slice, &w);
    }
    wait_for_all(w.barrier, team);
    Mirrors mirrors = {0, 0, 0};
    for (int32_t member = 0; member < f->ensemble; member++) {
        const Mirrors before = mirrors;
        mirrors = mirrors_of(job, member);
        if (rank == 0)
            mirror_image(job, &w, before, mirrors);
        Grid grid = {0, 0, 0, 0, 0}, coarse = grid;
        for (int32_t level = 0; level < f->levels; level++) {
            const int64_t height = job->grid_rows / f->scales[level], width = job->grid_columns / f->scales[level];
            const int64_t from = height * rank / team, to = height * (rank + 1) / team;
            uint8_t *gate = 0;
            coarse = grid;
            grid = grid_at(m, w.grids[(f->levels - 1 - level) % 2], height, width);
            if (level && m->options.gate >= 0) { /* its first byte tells all members whether there is one */
                if (rank == 0 && !open_gate(job, &w, level - 1, &coarse))
                    memset(w.gate, 1, (size_t)(height * width));
                gate = w.gate;
            }
            wait_for_all(w.barrier, team); /* nobody lifts before all have done their part of the level above */
            if (rank == 0)
                w.tallies[0] = w.tallies[1] = (Tally){0, 0};
            fill(job, &w, level, &grid, &coarse, from, to, counts);
            wait_for_all(w.barrier, team);
            if (rank == 0 && team > 1) /* the rows beyond the borders mirror rows that another member may have filled */
                mirror(&grid, 0, height);
            wait_for_all(w.barrier, team);
            samples += run_watched(job, &w, level, &grid, m->options.seed + (uint32_t)member,
                                   mirrors.order ? job->slices - 1 - slice : slice, gate, &desk, rank, team, counts);
        }
        if (rank == 0) {
            end_run(job, &w, mirrors, &grid, &coarse, counts);
            if (m->options.signals)
                add_sample(job, &w, samples);
        }
        samples++;
        wait_for_all(w.barrier, team);
    }
    if (rank == 0 && ((f->views > 1 && !probability) || (m->field && !job->field)))
        counts->broken += job->rows * job->columns; /* there is no average, or the field is still in the scan */
    if (rank == 0)
        decide(job, slice, &w, mask, mask_strides, probability, probability_strides, samples, counts);
    wait_for_all(w.barrier, team);
}

size_t mednca_level_size(const mednca_model *model, int64_t height, int64_t width, int32_t team)
{
    Desk desk;
    return (size_t)(64 + grid_size(model, height, width) + desk_at(model, 0, width, &desk) * (team < 1 ? 1 : team)) + 64;
}

void mednca_level(const mednca_model *model, int32_t level, float *state, int64_t height, int64_t width, int32_t first,
                  int32_t steps, uint32_t seed, int64_t item, const uint8_t *gate, void *work, int32_t rank, int32_t team,
                  mednca_counts *counts)
{
    char *p = aligned(work);
    Barrier *barrier = (Barrier *)piece(&p, sizeof(Barrier));
    Grid g = grid_at(model, piece(&p, grid_size(model, height, width)), height, width);
    Desk desk;
    const Rule *r = &model->rules[level];
    const int64_t n = model->facts.channels;
    desk_at(model, p + rank * desk_at(model, 0, width, &desk), width, &desk);
    if (rank == 0) {
        for (int64_t i = 0; i < height * width; i++) {
            char *cell = g.states + i / width * g.row + i % width * g.cell;
            memset(cell, 0, (size_t)g.cell);
            for (int64_t c = 0; c < n; c++)
                put(model, r, cell, c, state[i * n + c], counts);
        }
        mirror(&g, 0, height);
    }
    wait_for_all(barrier, team);
    run_level(model, level, &g, first, steps, seed, item, gate, &desk, barrier, rank, team, 0, counts);
    if (rank == 0)
        for (int64_t i = 0; i < height * width; i++)
            for (int64_t c = 0; c < n; c++)
                state[i * n + c] = get(model, r, g.states + i / width * g.row + i % width * g.cell, c);
    wait_for_all(barrier, team);
}

#include "log.h"

#include "field.h"

#include "mask.h"

#include "sizes.h"

#include "spectrum.h"

#include "coarse.h"

/* ---- Training ---- */

/* items (B), rows (B, H) and columns (B, W) -> fires and counts; threshold: the fire rate in units of 2^-24. */
void mednca_fires(int64_t batch, int64_t height, int64_t width, int64_t steps, int64_t seed, int64_t level, uint32_t threshold,
                  const int64_t *items, const int64_t *rows, const int64_t *columns, uint8_t *fires, int64_t *counts)
{
    for (int64_t item = 0; item < batch; item++)
        for (int64_t step = 0; step < steps; step++, counts++) {
            const uint32_t key = absorb(absorb(absorb(absorb(0, seed), level), step), items[item]);
            *counts = 0;
            for (int64_t y = 0; y < height; y++, fires += width) {
                const uint32_t row = absorb(key, rows[item * height + y]);
                for (int64_t x = 0; x < width; x++)
                    *counts += fires[x] = (absorb(row, columns[item * width + x]) >> 8) < threshold;
            }
        }
}

int mednca_forward(const mednca_shape *shape, float *state, const uint8_t *fires, const float *filters, const float *views,
                   const float *w1, const float *b1, const float *w2, float *kept)
{
    return available(0)->forward(shape, state, fires, filters, views, w1, b1, w2, kept);
}

int mednca_backward(const mednca_shape *shape, float *state, float *d_state, const uint8_t *fires, const int64_t *counts,
                    const float *kept, const float *filters_t, const float *w1, const float *b1, const float *w1_t,
                    const float *w2_t, float *d_filters, float *d_views, float *d_w1, float *d_b1, float *d_w2)
{
    return available(0)->backward(shape, state, d_state, fires, counts, kept, filters_t, w1, b1, w1_t, w2_t, d_filters, d_views,
                                  d_w1, d_b1, d_w2);
}

int mednca_forward16(const mednca_shape *shape, float *state, const uint8_t *fires, const float *filters, const float *views,
                     const float *w1, const float *b1, const float *w2, uint16_t *kept)
{
#ifdef WITH_BFLOAT16
    if (mednca_has_bfloat16())
        return forward16(shape, state, fires, filters, views, w1, b1, w2, kept);
#else
    (void)shape, (void)state, (void)fires, (void)filters, (void)views, (void)w1, (void)b1, (void)w2, (void)kept;
#endif
    return 2;
}

int mednca_backward16(const mednca_shape *shape, float *state, float *d_state, const uint8_t *fires, const int64_t *counts,
                      const uint16_t *kept, const float *filters_t, const float *w1, const float *b1, const float *w1_t,
                      const float *w2_t, float *d_filters, float *d_views, float *d_w1, float *d_b1, float *d_w2)
{
#ifdef WITH_BFLOAT16
    if (mednca_has_bfloat16())
        return backward16(shape, state, d_state, fires, counts, kept, filters_t, w1, b1, w1_t, w2_t, d_filters, d_views, d_w1,
                          d_b1, d_w2);
#else
    (void)shape, (void)state, (void)d_state, (void)fires, (void)counts, (void)kept, (void)filters_t, (void)w1, (void)b1;
    (void)w1_t, (void)w2_t, (void)d_filters, (void)d_views, (void)d_w1, (void)d_b1, (void)d_w2;
#endif
    return 2;
}
