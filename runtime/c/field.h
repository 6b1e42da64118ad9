/* The bias field: the smooth factor that a coil puts on a scan, brought back to what is usual. Part of mednca.c.
 *
 * The same as mednca/field.py, which says what for: a polynomial in x, y and z, the shading, is fitted to the logarithms of
 * the positive voxels on a grid. Where it is farther from the usual one than in training, the scan is multiplied by the
 * exponential of the difference. All is in doubles, summed up in one order, with a logarithm and an exponential of its own,
 * so that the result has the same bits on every machine. */

/* FIELD_DEGREE: of the polynomial; FIELD_ACROSS: most voxels along an axis that the fit looks at; FIELD_ROUNDS: fits, each of
 * which weighs the voxels by the one before; FIELD_ENOUGH: least number of positive voxels for each coefficient. */
enum { FIELD_DEGREE = 3, FIELD_ACROSS = 24, FIELD_ROUNDS = 4, FIELD_ENOUGH = 4 };
/* Distance from the fit, of logarithms, at which a voxel counts half; what is added to the diagonal of the normal equations,
 * as a share of its mean. */
#define FIELD_WIDTH 0.5
#define FIELD_RIDGE 1e-9
/* Share of the voxels, and number of them, above which those of the least intensity are fill. */
#define FIELD_FILL 0.01
#define FIELD_SOME 8
/* Where the limit ends, over itself: from there on a shading is wholly replaced, between the two in part. */
#define FIELD_ENDS 1.25
/* The change is kept within this on either side, and what is left within the finite numbers of float32. */
#define FIELD_FURTHEST 500.0
#define FIELD_MOST 3.4028234663852886e38
/* Stands for the logarithm of a voxel that is not positive. */
#define FIELD_NONE 1e9

/* Coefficients, by the powers of x, y and z. */
typedef struct {
    double of[FIELD_DEGREE + 1][FIELD_DEGREE + 1][FIELD_DEGREE + 1];
} Cubic;

/* Sums over voxels of weight x^i y^j z^k, and of weight log x^i y^j z^k. */
typedef struct {
    double weights[2 * FIELD_DEGREE + 1][2 * FIELD_DEGREE + 1][2 * FIELD_DEGREE + 1];
    Cubic logs;
} Moments;

/* The least box that holds all voxels that count: where it begins, and voxels along each axis. The voxels in it that the fit
 * looks at, first, first + step, ... along each axis, and their logarithms, x running fastest. */
typedef struct {
    int64_t from[3], size[3];
    int64_t first[3], step[3];
    double *logs;
} Samples;

/* Where a voxel lies along an axis, from -1 to 1; a single one at 0. */
static double place_of(int64_t i, int64_t size)
{
    return (double)(2 * i - (size - 1)) / (double)(size > 1 ? size - 1 : 1);
}

/* Coefficients -> those of the polynomial in x alone, on the line at y and z. */
static void line_at(const Cubic *fit, double y, double z, double line[FIELD_DEGREE + 1])
{
    for (int i = 0; i <= FIELD_DEGREE; i++) {
        line[i] = 0;
        for (int j = FIELD_DEGREE - i; j >= 0; j--) {
            double inner = 0;
            for (int k = FIELD_DEGREE - i - j; k >= 0; k--)
                inner = inner * z + fit->of[i][j][k];
            line[i] = line[i] * y + inner;
        }
    }
}

static double value_on(const double line[FIELD_DEGREE + 1], double x)
{
    double value = 0;
    for (int i = FIELD_DEGREE; i >= 0; i--)
        value = value * x + line[i];
    return value;
}

/* Sums over all samples; fit: what they are weighed by, with Cauchy's weights, or null, for which all count the same. */
static void moments_of(const Samples *s, const Cubic *fit, Moments *m)
{
    const double *log = s->logs;
    memset(m, 0, sizeof *m);
    for (int64_t k = s->first[2]; k < s->size[2]; k += s->step[2])
        for (int64_t j = s->first[1]; j < s->size[1]; j += s->step[1]) {
            const double y = place_of(j, s->size[1]), z = place_of(k, s->size[2]);
            double line[FIELD_DEGREE + 1], weights[2 * FIELD_DEGREE + 1] = {0}, logs[FIELD_DEGREE + 1] = {0}, a = 1;
            if (fit)
                line_at(fit, y, z, line);
            for (int64_t i = s->first[0]; i < s->size[0]; i += s->step[0], log++) {
                if (*log == FIELD_NONE)
                    continue;
                const double x = place_of(i, s->size[0]), far = fit ? (*log - value_on(line, x)) / FIELD_WIDTH : 0;
                double power = 1 / (1 + far * far);
                for (int n = 0; n <= 2 * FIELD_DEGREE; n++, power *= x) {
                    weights[n] += power;
                    if (n <= FIELD_DEGREE)
                        logs[n] += power * *log;
                }
            }
            for (int q = 0; q <= 2 * FIELD_DEGREE; q++, a *= y) {
                double b = a;
                for (int r = 0; q + r <= 2 * FIELD_DEGREE; r++, b *= z) {
                    for (int p = 0; p + q + r <= 2 * FIELD_DEGREE; p++)
                        m->weights[p][q][r] += b * weights[p];
                    for (int p = 0; p + q + r <= FIELD_DEGREE; p++)
                        m->logs.of[p][q][r] += b * logs[p];
                }
            }
        }
}

/* a x = b: b becomes x. a: symmetric and positive definite; its lower half is read, and used up. Cholesky's elimination,
 * without roots. */
static void solve(double a[FIELD_TERMS][FIELD_TERMS], double b[FIELD_TERMS], int count)
{
    for (int j = 0; j < count; j++)
        for (int i = j + 1; i < count; i++) {
            const double share = a[i][j] / a[j][j];
            for (int k = j + 1; k <= i; k++)
                a[i][k] -= share * a[k][j];
            b[i] -= share * b[j];
        }
    for (int j = count - 1; j >= 0; j--) {
        for (int i = j + 1; i < count; i++)
            b[j] -= a[i][j] * b[i];
        b[j] /= a[j][j];
    }
}

/* Sums, and the powers of each term -> the polynomial that is nearest to the logarithms. */
static void fit_terms(const Moments *m, int terms[FIELD_TERMS][3], int count, Cubic *fit)
{
    double a[FIELD_TERMS][FIELD_TERMS], b[FIELD_TERMS], trace = 0;
    for (int i = 0; i < count; i++) {
        const int *p = terms[i];
        for (int j = 0; j <= i; j++)
            a[i][j] = m->weights[p[0] + terms[j][0]][p[1] + terms[j][1]][p[2] + terms[j][2]];
        b[i] = m->logs.of[p[0]][p[1]][p[2]];
        trace += a[i][i];
    }
    for (int i = 0; i < count; i++)
        a[i][i] += FIELD_RIDGE * trace / count;
    solve(a, b, count);
    memset(fit, 0, sizeof *fit);
    for (int i = 0; i < count; i++)
        fit->of[terms[i][0]][terms[i][1]][terms[i][2]] = b[i];
}

/* A channel of a scan -> what a voxel must be above to count: 0, or the least intensity where that is fill. */
static float black_of(const mednca_scan *scan, int64_t c)
{
    const int64_t *size = scan->shape + 1;
    int64_t at[3], count = 0;
    float least = 0;
    for (at[2] = 0; at[2] < size[2]; at[2]++)
        for (at[1] = 0; at[1] < size[1]; at[1]++)
            for (at[0] = 0; at[0] < size[0]; at[0]++) {
                const float value = value_at(scan, c, at);
                if (!count || value < least) {
                    least = value;
                    count = 1;
                } else
                    count += value == least;
            }
    return least > 0 && count > FIELD_SOME && (double)count > FIELD_FILL * (double)(size[0] * size[1] * size[2]) ? least : 0;
}

/* A channel of a scan, and what its voxels must be above to count -> the box of these; all of it where there are none. */
static void box_of(const mednca_scan *scan, int64_t c, float black, Samples *s)
{
    const int64_t *size = scan->shape + 1;
    int64_t at[3], low[3], high[3] = {-1, -1, -1};
    memcpy(low, size, sizeof low);
    for (at[2] = 0; at[2] < size[2]; at[2]++)
        for (at[1] = 0; at[1] < size[1]; at[1]++)
            for (at[0] = 0; at[0] < size[0]; at[0]++)
                if (value_at(scan, c, at) > black)
                    for (int axis = 0; axis < 3; axis++) {
                        low[axis] = at[axis] < low[axis] ? at[axis] : low[axis];
                        high[axis] = at[axis] > high[axis] ? at[axis] : high[axis];
                    }
    for (int axis = 0; axis < 3; axis++) {
        s->from[axis] = high[axis] < 0 ? 0 : low[axis];
        s->size[axis] = high[axis] < 0 ? size[axis] : high[axis] + 1 - low[axis];
    }
}

/* A channel of a scan, what its voxels must be above, and their box -> the logarithm of its shading; returns 0 where too few
 * are to tell. s->logs: FIELD_ACROSS^3 doubles to work in. */
static int find_shading(const mednca_scan *scan, int64_t c, float black, Samples *s, Cubic *fit)
{
    Moments moments;
    double *logs = s->logs;
    int terms[FIELD_TERMS][3], count = 0, most[3];
    int64_t i[3], positive = 0;
    for (int axis = 0; axis < 3; axis++) {
        s->step[axis] = (s->size[axis] + FIELD_ACROSS - 1) / FIELD_ACROSS;
        s->first[axis] = s->step[axis] / 2;
        const int64_t last = (s->size[axis] - 1 - s->first[axis]) / s->step[axis];
        most[axis] = last < FIELD_DEGREE ? (int)last : FIELD_DEGREE; /* an axis of n voxels has powers below n */
    }
    for (int x = 0; x <= most[0]; x++)
        for (int y = 0; y <= most[1] && x + y <= FIELD_DEGREE; y++)
            for (int z = 0; z <= most[2] && x + y + z <= FIELD_DEGREE; z++, count++) {
                terms[count][0] = x;
                terms[count][1] = y;
                terms[count][2] = z;
            }
    for (i[2] = s->first[2]; i[2] < s->size[2]; i[2] += s->step[2])
        for (i[1] = s->first[1]; i[1] < s->size[1]; i[1] += s->step[1])
            for (i[0] = s->first[0]; i[0] < s->size[0]; i[0] += s->step[0]) {
                const int64_t at[3] = {s->from[0] + i[0], s->from[1] + i[1], s->from[2] + i[2]};
                const float value = value_at(scan, c, at);
                positive += value > black;
                *logs++ = value > black ? logarithm((double)value) : FIELD_NONE;
            }
    if (positive < FIELD_ENOUGH * count)
        return 0;
    for (int round = 0; round < FIELD_ROUNDS; round++) {
        moments_of(s, round ? fit : 0, &moments);
        fit_terms(&moments, terms, count, fit);
    }
    return 1;
}

/* Mean of a power over -1 to 1. */
static double mean_of(int power)
{
    return power % 2 ? 0 : 1.0 / (power + 1);
}

/* A shading -> its variance over the box. */
static double variance_of(const Cubic *shading)
{
    double mean = 0, square = 0;
    for (int i = 0; i <= FIELD_DEGREE; i++)
        for (int j = 0; i + j <= FIELD_DEGREE; j++)
            for (int k = 0; i + j + k <= FIELD_DEGREE; k++) {
                mean += shading->of[i][j][k] * mean_of(i) * mean_of(j) * mean_of(k);
                for (int x = 0; x <= FIELD_DEGREE; x++)
                    for (int y = 0; x + y <= FIELD_DEGREE; y++)
                        for (int z = 0; x + y + z <= FIELD_DEGREE; z++)
                            square += shading->of[i][j][k] * shading->of[x][y][z] * mean_of(i + x) * mean_of(j + y) *
                                      mean_of(k + z);
            }
    return square - mean * mean;
}

/* A fit, and what is usual: the limit, and the coefficients without the constant -> by the exponential of what the scan is
 * to be multiplied; returns 0 where it is to stay as it is. */
static int change_of(const Cubic *fit, const double usual[FIELD_TERMS], Cubic *change)
{
    const double limit = usual[0];
    int term = 1;
    memset(change, 0, sizeof *change);
    for (int i = 0; i <= FIELD_DEGREE; i++)
        for (int j = 0; i + j <= FIELD_DEGREE; j++)
            for (int k = 0; i + j + k <= FIELD_DEGREE; k++)
                if (i + j + k)
                    change->of[i][j][k] = usual[term++] - fit->of[i][j][k];
    const double square = variance_of(change);
    if (limit > 0 && square <= limit * limit)
        return 0;
    const double far = square > 0 ? exponential(0.5 * logarithm(square)) : 0; /* the root */
    const double share = limit > 0 ? (far - limit) / ((FIELD_ENDS - 1) * limit) : 1;
    for (int i = 0; share < 1 && i <= FIELD_DEGREE; i++)
        for (int j = 0; i + j <= FIELD_DEGREE; j++)
            for (int k = 0; i + j + k <= FIELD_DEGREE; k++)
                change->of[i][j][k] *= share;
    change->of[0][0][0] = -fit->of[0][0][0];
    return 1;
}

/* A channel of a scan, and what is usual in it -> out, the same with no shading beyond the limit, x running fastest. Where it
 * is changed, fill and what is not positive is 0. */
static void shade_as_usual(const mednca_scan *scan, int64_t c, const double usual[FIELD_TERMS], double *logs, float *out)
{
    Cubic fit, change;
    Samples box = {.logs = logs};
    const float black = black_of(scan, c);
    box_of(scan, c, black, &box);
    const int found = find_shading(scan, c, black, &box, &fit);
    const int changed = found && change_of(&fit, usual, &change), kept = found ? !changed : usual[0] > 0;
    const int64_t *size = scan->shape + 1;
    int64_t at[3];
    for (at[2] = 0; at[2] < size[2]; at[2]++)
        for (at[1] = 0; at[1] < size[1]; at[1]++) {
            double line[FIELD_DEGREE + 1];
            if (changed)
                line_at(&change, place_of(at[1] - box.from[1], box.size[1]), place_of(at[2] - box.from[2], box.size[2]), line);
            for (at[0] = 0; at[0] < size[0]; at[0]++) {
                double value = (double)value_at(scan, c, at);
                if (kept) {
                    *out++ = (float)value;
                    continue;
                }
                if (!(value > (double)black))
                    value = 0;
                else if (changed) {
                    const double log = value_on(line, place_of(at[0] - box.from[0], box.size[0]));
                    value *= exponential(log < -FIELD_FURTHEST  ? -FIELD_FURTHEST
                                         : log > FIELD_FURTHEST ? FIELD_FURTHEST
                                                                : log);
                }
                *out++ = (float)(value < FIELD_MOST ? value : FIELD_MOST);
            }
        }
}

/* What is worked in: logarithms, and the histogram of measure(). */
enum { FIELD_LOGS = FIELD_ACROSS * FIELD_ACROSS * FIELD_ACROSS, FIELD_HISTOGRAM = 65536 };

size_t mednca_field_size(const mednca_model *model, const mednca_scan *scan)
{
    int64_t first[3];
    const mednca_scan part = part_of(model, scan, first);
    if (!model->field)
        return 0;
    double bytes = sizeof(float);
    for (int axis = 0; axis < 4; axis++)
        bytes *= (double)part.shape[axis];
    bytes += FIELD_LOGS * sizeof(double) + FIELD_HISTOGRAM * sizeof(uint32_t) + 128;
    return bytes < (double)(SIZE_MAX / 2) ? (size_t)bytes : SIZE_MAX; /* more than there is */
}

void mednca_field(mednca_job *job, void *memory)
{
    mednca_scan *scan = &job->scan;
    const int64_t *shape = scan->shape, voxels = shape[1] * shape[2] * shape[3], x = sizeof(float);
    if (!job->model->field || job->field)
        return;
    double *logs = (double *)aligned(memory);
    uint32_t *histogram = (uint32_t *)(logs + FIELD_LOGS);
    float *out = (float *)(histogram + FIELD_HISTOGRAM);
    for (int64_t c = 0; c < shape[0]; c++) {
        Values values = {.values = out + c * voxels, .count = voxels};
        shade_as_usual(scan, c, job->model->shadings[c], logs, out + c * voxels);
        measure(&values, histogram, &job->low[c], &job->high[c]);
    }
    scan->voxels = out;
    scan->type = MEDNCA_F32;
    scan->slope = 1;
    scan->intercept = 0;
    scan->strides[0] = voxels * x;
    scan->strides[1] = x;
    scan->strides[2] = shape[1] * x;
    scan->strides[3] = shape[1] * shape[2] * x;
    job->field = 1;
}
