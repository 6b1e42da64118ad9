/* Lines of k-space that are stronger or weaker than in any training scan, brought back to what is usual. Part of mednca.c.
 *
 * The same as mednca/spectrum.py, which says what for. There is no Fourier transform here: the powers of the lines along an
 * axis come from the products of voxels that lie so many apart on it, and a line is scaled by sums over the voxels of a row,
 * both as if each row went round in a circle. For an axis of n voxels that is n / 2 products a voxel to find what is unusual,
 * and n to mend it: little beside what a model does. All is in doubles, summed up in one order, with a logarithm, an
 * exponential and a cosine of its own, so that the result has the same bits on every machine. Between two turns values are
 * floats. */

/* SPECTRUM_LEAST: least number of lines along an axis of which anything is told; SPECTRUM_ROUNDS: fits, each of which weighs
 * the lines by the one before; SPECTRUM_TURNS: axes that are mended one after the other; SPECTRUM_PARTS: into which
 * probabilities are sorted. */
enum { SPECTRUM_LEAST = 8, SPECTRUM_ROUNDS = 8, SPECTRUM_TURNS = 3, SPECTRUM_PARTS = 1024 };
/* Distance from the fit, of logarithms, at which a line counts half: it halves from the first of these to the last; what is
 * added to the diagonal of the normal equations. */
#define SPECTRUM_WIDE 2.0
#define SPECTRUM_NARROW 0.3
#define SPECTRUM_RIDGE 1e-9
/* The largest change of a line, of the logarithm of its amplitude. */
#define SPECTRUM_MOST 3.0
/* Powers are told no lower than this share of their mean. */
#define SPECTRUM_FLOOR 1e-9
/* Where the mean power along an axis is no more than this share of all, the scan is the same all along it, but for rounding. */
#define SPECTRUM_NOTHING 1e-12

/* The voxels in the box of a channel: the first one, how many along each axis, floats from one to the next, their mean. */
typedef struct {
    float *first;
    int64_t size[3], step[3];
    double mean;
} Boxed;

/* What is worked in, for axes of up to n voxels. */
typedef struct {
    double *row;     /* 2 n: a row along an axis, less the mean, twice over */
    double *apart;   /* n: sums of products of voxels that lie so many apart; or what those are multiplied with */
    double *sums;    /* n: of a row */
    double *cosines; /* n: of 2 pi i / n */
    double *left;    /* n / 2: logarithms of powers, less the profile */
    double *away[3]; /* n / 2: along each axis, how far each line is from what it should be */
} Room;

/* The cosine of 2 pi i / n, 0 <= i < n. */
static double cosine(int64_t i, int64_t n)
{
    const int64_t near = 2 * i > n ? n - i : i, twice = 4 * near > n ? n - 2 * near : 2 * near;
    const double x = 3.141592653589793 * (double)twice / (double)n, square = x * x; /* within a quarter of the circle */
    double sum = 1;
    for (int k = 22; k > 0; k -= 2) /* 1 - x^2 / 2 (1 - x^2 / 12 (1 - ...)) */
        sum = 1 - square / (k * (k - 1)) * sum;
    return 4 * near > n ? -sum : sum;
}

static void lay_cosines(const Room *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        w->cosines[i] = cosine(i, n);
}

static int64_t rows_along(const Boxed *box, int axis)
{
    return box->size[0] * box->size[1] * box->size[2] / box->size[axis];
}

/* The first voxel of a row along an axis, and its values -> w->row. */
static float *open_row(const Boxed *box, int axis, int64_t number, const Room *w)
{
    const int a = axis == 0 ? 1 : 0, b = axis == 2 ? 1 : 2;
    const int64_t n = box->size[axis];
    float *first = box->first + number % box->size[a] * box->step[a] + number / box->size[a] * box->step[b];
    for (int64_t i = 0; i < n; i++)
        w->row[i] = w->row[n + i] = (double)first[i * box->step[axis]] - box->mean;
    return first;
}

/* Lines 1, 2, ... along an axis -> the logarithms of their mean powers, in w->left. Returns how many; 0 where they are too
 * few, where all there is to see is rounding, and where a value is not finite. */
static int64_t log_powers(const Boxed *box, int axis, const Room *w)
{
    const int64_t n = box->size[axis], count = n / 2, rows = rows_along(box, axis);
    double *const apart = w->apart, *restrict const sums = w->sums, mean = 0;
    const double *const row = w->row;
    if (count < SPECTRUM_LEAST)
        return 0;
    lay_cosines(w, n);
    for (int64_t d = 0; d <= count; d++)
        apart[d] = 0;
    for (int64_t number = 0; number < rows; number++) {
        open_row(box, axis, number, w);
        for (int64_t d = 0; d <= count; d++)
            sums[d] = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d <= count; d++)
                sums[d] += row[i] * row[i + d];
        for (int64_t d = 0; d <= count; d++)
            apart[d] += sums[d] / (double)rows;
    }
    for (int64_t k = 1; k <= count; k++) {
        double power = apart[0];
        for (int64_t d = 1; d <= count; d++) /* n - d apart is as d apart; half of an even n is there once */
            power += (2 * d == n ? 1 : 2) * apart[d] * w->cosines[k * d % n];
        w->left[k - 1] = power;
        mean += power / (double)count;
    }
    if (!(mean > SPECTRUM_NOTHING * apart[0]))
        return 0;
    for (int64_t k = 0; k < count; k++)
        w->left[k] = logarithm(w->left[k] > SPECTRUM_FLOOR * mean ? w->left[k] : SPECTRUM_FLOOR * mean);
    return count;
}

/* The usual profile at a frequency: drawn straight between its points, the same before the first. */
static double profile_at(const double *profile, double f)
{
    const double at = f * 2 * SPECTRUM_GRID - 1;
    const int64_t i = at < 0 ? 0 : at < SPECTRUM_GRID - 2 ? (int64_t)at : SPECTRUM_GRID - 2;
    return at < 0 ? profile[0] : profile[i] + (at - (double)i) * (profile[i + 1] - profile[i]);
}

/* Logarithms of powers in w->left, and the usual profile -> how far each line is from what it should be. */
static void distances(int64_t count, const double *profile, const Room *w, double *away)
{
    double width = SPECTRUM_WIDE;
    for (int64_t k = 0; k < count; k++) {
        w->left[k] -= profile_at(profile, (double)(k + 1) / (double)(2 * count));
        away[k] = 0;
    }
    for (int round = 0; round < SPECTRUM_ROUNDS; round++) {
        double a[FIELD_TERMS][FIELD_TERMS] = {{0}}, b[FIELD_TERMS] = {0};
        for (int64_t k = 0; k < count; k++) {
            const double f = (double)(k + 1) / (double)(2 * count), terms[3] = {1, logarithm(f), f};
            const double far = away[k] / width, weight = 1 / (1 + far * far); /* at first all count the same */
            for (int i = 0; i < 3; i++) {
                for (int j = 0; j <= i; j++)
                    a[i][j] += weight * terms[i] * terms[j];
                b[i] += weight * terms[i] * w->left[k];
            }
        }
        for (int i = 0; i < 3; i++)
            a[i][i] += SPECTRUM_RIDGE;
        solve(a, b, 3);
        for (int64_t k = 0; k < count; k++) {
            const double f = (double)(k + 1) / (double)(2 * count);
            away[k] = w->left[k] - (b[0] + b[1] * logarithm(f) + b[2] * f);
        }
        if (round)
            width = width / 2 > SPECTRUM_NARROW ? width / 2 : SPECTRUM_NARROW;
    }
}

static int is_unusual(double away, double limit)
{
    return away > limit || away < -limit;
}

/* Lines along an axis that are farther than the limit from what they should be -> brought there, and turned over where sign
 * is -1. Returns how many. */
static int64_t scale_lines(const Boxed *box, int axis, double limit, int32_t sign, const Room *w)
{
    const int64_t n = box->size[axis], count = n / 2, rows = rows_along(box, axis);
    double *const gain = w->away[axis], *const apart = w->apart, *restrict const sums = w->sums;
    const double *const row = w->row;
    int64_t changed = 0;
    lay_cosines(w, n);
    for (int64_t k = 0; k < count; k++) {
        double log = -gain[k] / 2;
        const int bad = is_unusual(gain[k], limit);
        log = log < -SPECTRUM_MOST ? -SPECTRUM_MOST : log > SPECTRUM_MOST ? SPECTRUM_MOST : log;
        gain[k] = bad ? sign * exponential(log) : 1;
        changed += bad;
    }
    for (int64_t d = 0; d < n; d++) {
        double sum = 1; /* of frequency 0 */
        for (int64_t k = 1; k <= count; k++) /* and n - k is as k */
            sum += (2 * k == n ? 1 : 2) * gain[k - 1] * w->cosines[k * d % n];
        apart[d] = sum / (double)n;
    }
    for (int64_t number = 0; number < rows; number++) {
        float *first = open_row(box, axis, number, w);
        for (int64_t i = 0; i < n; i++)
            sums[i] = box->mean;
        for (int64_t d = 0; d < n; d++)
            for (int64_t i = 0; i < n; i++)
                sums[i] += apart[d] * row[i + d];
        for (int64_t i = 0; i < n; i++)
            first[i * box->step[axis]] =
                (float)(sums[i] > FIELD_MOST ? FIELD_MOST : sums[i] < -FIELD_MOST ? -FIELD_MOST : sums[i]);
    }
    return changed;
}

/* Values of a channel -> the box of those that are not fill. */
static void find_box(float *values, const int64_t shape[3], Boxed *box)
{
    const int64_t x = sizeof(float), step[3] = {1, shape[0], shape[0] * shape[1]};
    const mednca_scan scan = {.voxels = values, .type = MEDNCA_F32, .slope = 1, .shape = {1, shape[0], shape[1], shape[2]},
                              .strides = {0, x, x * step[1], x * step[2]}};
    Samples found;
    box_of(&scan, 0, black_of(&scan, 0), &found);
    memcpy(box->size, found.size, sizeof box->size);
    memcpy(box->step, step, sizeof box->step);
    box->first = values + found.from[0] + found.from[1] * step[1] + found.from[2] * step[2];
}

static double mean_of_box(const Boxed *box)
{
    double sum = 0;
    for (int64_t z = 0; z < box->size[2]; z++)
        for (int64_t y = 0; y < box->size[1]; y++)
            for (int64_t x = 0; x < box->size[0]; x++)
                sum += (double)box->first[x + y * box->step[1] + z * box->step[2]];
    return sum / (double)(box->size[0] * box->size[1] * box->size[2]);
}

/* An axis of n voxels needs 2 n numbers for its rows, three times n, and four times n / 2. */
static int64_t longest_of(const int64_t shape[3])
{
    const int64_t longest = shape[0] > shape[1] ? shape[0] : shape[1];
    return longest > shape[2] ? longest : shape[2];
}

size_t mednca_mend_size(const mednca_model *model, const mednca_scan *scan)
{
    const double bytes = 7 * sizeof(double) * (double)longest_of(scan->shape + 1) + 64;
    if (!model->spectrum)
        return 0;
    return bytes < (double)(SIZE_MAX / 2) ? (size_t)bytes : SIZE_MAX; /* more than there is */
}

int64_t mednca_mend(const mednca_model *model, int64_t channel, float *values, const int64_t shape[3], int32_t sign,
                    void *memory)
{
    const double *usual = model->spectra[channel], limit = usual[0];
    const int64_t n = longest_of(shape);
    double *p = (double *)aligned(memory);
    Room w = {.row = p, .apart = p + 2 * n, .sums = p + 3 * n, .cosines = p + 4 * n, .left = p + 5 * n};
    Boxed box;
    int64_t changed = 0;
    if (!model->spectrum)
        return 0;
    find_box(values, shape, &box);
    for (int axis = 0; axis < 3; axis++)
        w.away[axis] = w.left + (1 + axis) * (n / 2);
    for (int turn = 0; turn < SPECTRUM_TURNS; turn++) {
        double most = 0;
        int worst = -1;
        box.mean = mean_of_box(&box);
        for (int axis = 0; axis < 3; axis++) {
            const int64_t count = log_powers(&box, axis, &w);
            double excess = 0;
            distances(count, usual + 1 + axis * SPECTRUM_GRID, &w, w.away[axis]);
            for (int64_t k = 0; k < count; k++)
                excess += is_unusual(w.away[axis][k], limit) ? w.away[axis][k] * w.away[axis][k] : 0;
            worst = excess > most ? axis : worst;
            most = excess > most ? excess : most;
        }
        if (worst < 0)
            break;
        changed += scale_lines(&box, worst, limit, sign, &w);
        sign = 1;
    }
    return changed;
}

double mednca_overlap(const mednca_model *model, const int64_t *shape, const float *probability,
                      const int64_t *probability_strides)
{
    int64_t counts[SPECTRUM_PARTS] = {0}, all = 0, voxels = 0, shares = 0;
    double best = 0;
    for (int64_t z = 0; z < shape[2]; z++)
        for (int64_t y = 0; y < shape[1]; y++)
            for (int64_t x = 0; x < shape[0]; x++) {
                const char *at = (const char *)probability + x * probability_strides[1] + y * probability_strides[2] +
                                 z * probability_strides[3];
                float sum = 0, share;
                for (int64_t k = 0; k < model->facts.classes; k++) {
                    memcpy(&share, at + k * probability_strides[0], sizeof share);
                    sum += share;
                }
                sum *= SPECTRUM_PARTS;
                counts[sum > SPECTRUM_PARTS - 1 ? SPECTRUM_PARTS - 1 : sum > 0 ? (int64_t)sum : 0]++;
            }
    for (int64_t i = 0; i < SPECTRUM_PARTS; i++)
        all += counts[i] * (2 * i + 1); /* in units of 1 / (2 SPECTRUM_PARTS) */
    for (int64_t i = SPECTRUM_PARTS - 1; i >= 0; i--) {
        voxels += counts[i];
        shares += counts[i] * (2 * i + 1);
        const int64_t both = 2 * SPECTRUM_PARTS * voxels + all;
        const double overlap = (double)(2 * shares) / (double)(both > 1 ? both : 1);
        best = overlap > best ? overlap : best;
    }
    return best;
}
