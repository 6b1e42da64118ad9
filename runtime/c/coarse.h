/* Scans of coarse voxels, drawn on between their slices along what moves from one to the next. Part of mednca.c.
 *
 * The same as mednca/coarse.py, which says what for. All is in doubles, in one order; between two turns values are floats. */

/* Slices so many times as far apart as in training are coarse; with more, nothing could be drawn between; the share of the largest second difference above which a line is
 * bent; the share of the standard deviation that may not be straight; what is added to squares of gradients, as a share of
 * their mean; the largest movement in pixels. */
#define COARSE_LEAST 1.9
#define COARSE_MOST 16.0
#define COARSE_BENT 0.1
#define COARSE_STRAIGHT 0.01
#define COARSE_RIDGE 0.01
#define COARSE_FURTHEST 8.0
/* A slice may lie beyond an end of the scan by this share of the way to the next one. */
#define COARSE_BEYOND 0.75
/* Least number of slices of a scan that is drawn on; of bends that tell that one was interpolated; planes that are worked
 * in. */
enum { COARSE_SLICES = 2, COARSE_BENDS = 4, COARSE_PLANES = 12 };
/* Pixels to each side of the windows in which movements are estimated, one after the other. */
static const int64_t COARSE_WINDOWS[] = {8, 8, 6, 6, 4, 4, 4, 4};

/* Lines across an axis: N of H x W pixels, and floats from one to the next. */
typedef struct {
    int64_t count, height, width, line, row, column;
} Across;

static Across across(const int64_t shape[3], int axis)
{
    const int64_t steps[3] = {1, shape[0], shape[0] * shape[1]};
    const int a = axis == 0 ? 1 : 0, b = axis == 2 ? 1 : 2;
    const Across lines = {shape[axis], shape[a], shape[b], steps[axis], steps[a], steps[b]};
    return lines;
}

static void load_line(const float *values, const Across *at, int64_t number, double *plane)
{
    for (int64_t y = 0; y < at->height; y++)
        for (int64_t x = 0; x < at->width; x++)
            *plane++ = (double)values[number * at->line + y * at->row + x * at->column];
}

static void store_line(const double *plane, const Across *at, int64_t number, float *values)
{
    for (int64_t y = 0; y < at->height; y++)
        for (int64_t x = 0; x < at->width; x++)
            values[number * at->line + y * at->row + x * at->column] = (float)*plane++;
}

/* ---- Between two slices ---- */

static double within(double value, double low, double high)
{
    return value >= low ? (value <= high ? value : high) : low;
}

/* What lies `part` of a movement away from each pixel of an image (H, W), linearly, the edge repeated. */
static void move(const double *image, int64_t height, int64_t width, const double *down, const double *right, double part,
                 double *out)
{
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++, down++, right++) {
            const double row = within((double)y + part * *down, 0, (double)(height - 1));
            const double column = within((double)x + part * *right, 0, (double)(width - 1));
            const int64_t top = (int64_t)row, left = (int64_t)column;
            const double *upper = image + top * width, *lower = upper + (top + 1 < height ? width : 0);
            const int64_t beside = left + 1 < width ? left + 1 : left;
            const double share = column - (double)left;
            const double above = upper[left] + share * (upper[beside] - upper[left]);
            const double below = lower[left] + share * (lower[beside] - lower[left]);
            *out++ = above + (row - (double)top) * (below - above);
        }
}

/* Sums over windows of so many pixels to each side, along lines of `length` numbers that lie `step` apart. */
static void sum_along(const double *from, int64_t lines, int64_t apart, int64_t length, int64_t step, int64_t window,
                      double *to)
{
    for (int64_t n = 0; n < lines; n++) {
        const double *line = from + n * apart;
        double sum = 0;
        for (int64_t i = -window; i <= window; i++)
            sum += line[(i < 0 ? 0 : i < length ? i : length - 1) * step];
        for (int64_t i = 0; i < length; i++) {
            to[n * apart + i * step] = sum;
            const int64_t gone = i - window, next = i + window + 1;
            sum += line[(next < length ? next : length - 1) * step] - line[(gone < 0 ? 0 : gone) * step];
        }
    }
}

static void sum_windows(double *image, int64_t height, int64_t width, int64_t window, double *room)
{
    sum_along(image, width, 1, height, width, window, room);
    sum_along(room, height, width, width, 1, window, image);
}

/* Two slices -> by: how many rows, and then how many columns, what is seen halfway moves from one to the other. room: eight
 * planes. */
static void movement(const double *first, const double *second, int64_t height, int64_t width, double *by, double *room)
{
    const int64_t n = height * width;
    double *down = by, *right = by + n, *before = room, *after = room + n, *dd = room + 2 * n, *rr = room + 3 * n;
    double *dr = room + 4 * n, *dl = room + 5 * n, *rl = room + 6 * n, *sums = room + 7 * n;
    for (int64_t i = 0; i < 2 * n; i++)
        by[i] = 0;
    for (size_t turn = 0; turn < sizeof COARSE_WINDOWS / sizeof *COARSE_WINDOWS; turn++) {
        const int64_t window = COARSE_WINDOWS[turn];
        double ridge = 0;
        move(first, height, width, down, right, -0.5, before);
        move(second, height, width, down, right, 0.5, after);
        for (int64_t i = 0; i < n; i++) {
            sums[i] = (before[i] + after[i]) / 2;
            after[i] -= before[i];
        }
        for (int64_t y = 0, i = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++, i++) {
                const double d = (sums[i + (y + 1 < height ? width : 0)] - sums[i - (y ? width : 0)]) / 2;
                const double r = (sums[i + (x + 1 < width)] - sums[i - (x > 0)]) / 2;
                dd[i] = d * d;
                rr[i] = r * r;
                dr[i] = d * r;
                dl[i] = d * after[i];
                rl[i] = r * after[i];
            }
        for (double *product = dd; product <= rl; product += n)
            sum_windows(product, height, width, window, sums);
        for (int64_t i = 0; i < n; i++)
            ridge += dd[i] + rr[i];
        ridge *= COARSE_RIDGE / (double)n;
        if (!(ridge * ridge > 0))
            return;
        for (int64_t i = 0; i < n; i++) {
            const double d = dd[i] + ridge, r = rr[i] + ridge, both = d * r - dr[i] * dr[i];
            down[i] = within(down[i] - (r * dl[i] - dr[i] * rl[i]) / both, -COARSE_FURTHEST, COARSE_FURTHEST);
            right[i] = within(right[i] - (d * rl[i] - dr[i] * dl[i]) / both, -COARSE_FURTHEST, COARSE_FURTHEST);
        }
    }
}

/* Slices at from -> lines at to, line i at the place (i - first) / step in slices. */
static void draw_on(const float *from, const Across *slices, float *to, const Across *lines, double first, double step,
                    double *room)
{
    const int64_t height = lines->height, width = lines->width, n = height * width;
    double *below = room, *above = room + n, *by = room + 2 * n, *rest = room + 4 * n;
    int64_t known = -1;
    for (int64_t i = 0; i < lines->count; i++) {
        const double place = within(((double)i - first) / step, 0, (double)(slices->count - 1));
        const int64_t k = (int64_t)place < slices->count - 2 ? (int64_t)place : slices->count - 2;
        const double t = place - (double)k;
        if (t == 0 || t == 1) {
            load_line(from, slices, k + (int64_t)t, rest);
            store_line(rest, lines, i, to);
            continue;
        }
        if (k != known) {
            load_line(from, slices, k, below);
            load_line(from, slices, k + 1, above);
            movement(below, above, height, width, by, rest);
            known = k;
        }
        move(below, height, width, by, by + n, -t, rest);
        move(above, height, width, by, by + n, 1 - t, rest + n);
        for (int64_t p = 0; p < n; p++)
            rest[p] = (1 - t) * rest[p] + t * rest[n + p];
        store_line(rest, lines, i, to);
    }
}

static int is_coarse(double times)
{
    return times >= COARSE_LEAST && times <= COARSE_MOST;
}

/* ---- Coarse by its header ---- */

int64_t mednca_finer(const mednca_model *model, const mednca_scan *scan, int32_t *axis)
{
    double most = 0;
    *axis = -1;
    for (int a = 0; a < 3 && model->coarse; a++) {
        const double times = scan->spacing[a] / model->ways[a];
        if (scan->shape[1 + a] >= COARSE_SLICES && is_coarse(times) && times > most) {
            *axis = a;
            most = times;
        }
    }
    return *axis < 0 ? 0 : even((double)scan->shape[1 + *axis] * most);
}

static int64_t largest_plane(const int64_t shape[3])
{
    const int64_t xy = shape[0] * shape[1], xz = shape[0] * shape[2], yz = shape[1] * shape[2];
    return xy > xz && xy > yz ? xy : xz > yz ? xz : yz;
}

void mednca_draw(const float *from, const int64_t shape[3], int32_t axis, int64_t length, float *to, void *memory)
{
    int64_t finer[3];
    memcpy(finer, shape, sizeof finer);
    finer[axis] = length;
    const Across slices = across(shape, axis), lines = across(finer, axis);
    const double many = (double)length / (double)shape[axis]; /* (i + 0.5) / many - 0.5 */
    draw_on(from, &slices, to, &lines, (many - 1) / 2, many, (double *)aligned(memory));
}

void mednca_middles(const float *from, const int64_t shape[3], int32_t axis, int64_t length, float *to)
{
    int64_t coarse[3];
    memcpy(coarse, shape, sizeof coarse);
    coarse[axis] = length;
    const Across lines = across(shape, axis), slices = across(coarse, axis);
    for (int64_t i = 0; i < length; i++) {
        const double at = ((double)i + 0.5) * ((double)shape[axis] / (double)length) - 0.5;
        const int64_t below = (int64_t)at, above = below + 1 < lines.count ? below + 1 : below;
        const float share = (float)(at - (double)below);
        for (int64_t y = 0; y < lines.height; y++)
            for (int64_t x = 0; x < lines.width; x++) {
                const float *pixel = from + y * lines.row + x * lines.column, lower = pixel[below * lines.line];
                to[i * slices.line + y * slices.row + x * slices.column] =
                    lower + share * (pixel[above * lines.line] - lower);
            }
    }
}

/* ---- Coarse before it was interpolated ---- */

/* What is worked in, for axes of up to n voxels. */
typedef struct {
    double *planes; /* COARSE_PLANES of them */
    double *bend;   /* n */
    double *back;   /* n x n: what each slice has of each line */
    double *pivots; /* 2 n */
    float *slices;  /* as many as there are voxels */
} Drawing;

/* The mean absolute second difference at each line, 0 at the ends -> d->bend. */
static void find_bends(const float *values, const Across *at, const Drawing *d)
{
    const int64_t n = at->height * at->width;
    for (int64_t i = 0; i < at->count; i++) {
        double sum = 0;
        for (int64_t y = 0; y < at->height && i && i < at->count - 1; y++)
            for (int64_t x = 0; x < at->width; x++) {
                const float *pixel = values + i * at->line + y * at->row + x * at->column;
                const double bend = (double)pixel[-at->line] - 2 * (double)*pixel + (double)pixel[at->line];
                sum += bend < 0 ? -bend : bend;
            }
        d->bend[i] = sum / (double)n;
    }
}

/* Bends -> the place of the first slice and the way from one to the next. Returns how many there are, or 0. */
static int64_t find_slices(int64_t count, const Drawing *d, double *first, double *step)
{
    const double *bend = d->bend;
    double most = 0, earlier = 0, later = 0, least_way = (double)count;
    int64_t places = 0;
    for (int64_t i = 0; i < count; i++)
        most = bend[i] > most ? bend[i] : most;
    const double least = COARSE_BENT * most;
    for (int64_t i = 1; i < count - 1;) {
        int64_t end = i;
        double sum = 0, weights = 0;
        while (bend[end] > least) /* the last one is not */
            end++;
        if (end == i) {
            i++;
            continue;
        }
        if (end - i > 2)
            return 0;
        for (int64_t j = i - 1; j <= end; j++) {
            sum += bend[j] * (double)j;
            weights += bend[j];
        }
        if (places == 1)
            *first = sum / weights;
        else if (places > 2 && later - earlier < least_way) /* of those that are neither first nor last */
            least_way = later - earlier;
        earlier = later; /* at last, that of the last but one */
        later = sum / weights;
        places++;
        i = end;
    }
    if (places < COARSE_BENDS)
        return 0;
    *step = (earlier - *first) / (double)even((earlier - *first) / least_way);
    *first -= *step * (double)(int64_t)(*first / *step + COARSE_BEYOND);
    return (int64_t)(((double)(count - 1) - *first) / *step + COARSE_BEYOND) + 1;
}

static int lies_between(int64_t i, int64_t slices, double first, double step)
{
    return (double)i >= first && (double)i <= first + step * (double)(slices - 1);
}

/* What line i has of slice k: nothing where it lies beyond the first or the last. */
static double share_of(int64_t i, int64_t k, int64_t slices, double first, double step)
{
    const double away = (double)i - (first + step * (double)k);
    return lies_between(i, slices, first, step) ? within(1 - (away < 0 ? -away : away) / step, 0, 1) : 0;
}

/* Lines -> the slices that they were interpolated from, by least squares, in d->slices: line by line. */
static void take_slices_of(const float *values, const Across *at, int64_t slices, double first, double step, const Drawing *d)
{
    const int64_t n = at->height * at->width, count = at->count;
    double *diagonal = d->pivots, *beside = d->pivots + count;
    for (int64_t k = 0; k < slices; k++) { /* normal equations: each line has of two neighbours at most */
        diagonal[k] = beside[k] = 0;
        for (int64_t i = 0; i < count; i++) {
            const double share = share_of(i, k, slices, first, step);
            d->back[k * count + i] = share;
            diagonal[k] += share * share;
            beside[k] += k + 1 < slices ? share * share_of(i, k + 1, slices, first, step) : 0;
        }
    }
    for (int64_t k = 1; k < slices; k++) {
        const double factor = beside[k - 1] / diagonal[k - 1];
        diagonal[k] -= factor * beside[k - 1];
        for (int64_t i = 0; i < count; i++)
            d->back[k * count + i] -= factor * d->back[(k - 1) * count + i];
    }
    for (int64_t k = slices - 1; k >= 0; k--)
        for (int64_t i = 0; i < count; i++) {
            const double after = k + 1 < slices ? beside[k] * d->back[(k + 1) * count + i] : 0;
            d->back[k * count + i] = (d->back[k * count + i] - after) / diagonal[k];
        }
    for (int64_t k = 0; k < slices; k++) {
        double *sum = d->planes, *line = d->planes + n;
        for (int64_t p = 0; p < n; p++)
            sum[p] = 0;
        for (int64_t i = 0; i < count; i++) {
            load_line(values, at, i, line);
            for (int64_t p = 0; p < n; p++)
                sum[p] += d->back[k * count + i] * line[p];
        }
        for (int64_t p = 0; p < n; p++)
            d->slices[k * n + p] = (float)within(sum[p], -FIELD_MOST, FIELD_MOST);
    }
}

/* Whether lines run straight between d->slices. */
static int run_straight(const float *values, const Across *at, int64_t slices, double first, double step, const Drawing *d)
{
    const int64_t n = at->height * at->width;
    int64_t between = 0;
    double apart = 0, mean = 0, variance = 0, *line = d->planes;
    for (int64_t i = 0; i < at->count; i++) {
        load_line(values, at, i, line);
        for (int64_t p = 0; p < n; p++)
            mean += line[p] / (double)(n * at->count);
    }
    for (int64_t i = 0; i < at->count; i++) {
        load_line(values, at, i, line);
        for (int64_t p = 0; p < n; p++)
            variance += (line[p] - mean) * (line[p] - mean);
        if (!lies_between(i, slices, first, step))
            continue;
        between++;
        for (int64_t k = 0; k < slices; k++) {
            const double share = share_of(i, k, slices, first, step);
            for (int64_t p = 0; p < n && share > 0; p++)
                line[p] -= share * (double)d->slices[k * n + p];
        }
        for (int64_t p = 0; p < n; p++)
            apart += line[p] * line[p];
    }
    return apart <= COARSE_STRAIGHT * COARSE_STRAIGHT * variance * (double)between / (double)at->count;
}

size_t mednca_draw_size(const mednca_model *model, const mednca_scan *scan)
{
    const int64_t *shape = scan->shape + 1, n = longest_of(shape);
    const double voxels = (double)shape[0] * (double)shape[1] * (double)shape[2];
    const double numbers = COARSE_PLANES * (double)largest_plane(shape) + (double)n * (double)(n + 3);
    const double bytes = sizeof(double) * numbers + sizeof(float) * voxels + 64;
    if (!model->coarse)
        return 0;
    return bytes < (double)(SIZE_MAX / 2) ? (size_t)bytes : SIZE_MAX; /* more than there is */
}

int64_t mednca_redraw(const mednca_model *model, const mednca_scan *scan, float *values, void *memory)
{
    const int64_t *shape = scan->shape + 1, n = longest_of(shape);
    double *p = (double *)aligned(memory), first = 0, step = 0, most = 0, begin = 0, apart = 0;
    Drawing d = {.planes = p, .bend = p + COARSE_PLANES * largest_plane(shape)};
    int64_t found = 0;
    int along = -1;
    d.pivots = d.bend + n;
    d.back = d.pivots + 2 * n;
    d.slices = (float *)(d.back + n * n);
    for (int axis = 0; axis < 3; axis++) {
        const Across lines = across(shape, axis);
        find_bends(values, &lines, &d);
        const int64_t slices = find_slices(lines.count, &d, &first, &step);
        const double times = slices ? step * scan->spacing[axis] / model->ways[axis] : 0;
        if (!is_coarse(times) || times <= most)
            continue;
        take_slices_of(values, &lines, slices, first, step, &d);
        if (run_straight(values, &lines, slices, first, step, &d)) {
            along = axis;
            found = slices;
            most = times;
            apart = step;
            begin = first;
        }
    }
    if (along < 0)
        return 0;
    const Across lines = across(shape, along);
    const Across slices = {found, lines.height, lines.width, lines.height * lines.width, lines.width, 1};
    take_slices_of(values, &lines, found, begin, apart, &d);
    draw_on(d.slices, &slices, values, &lines, begin, apart, d.planes);
    int64_t inside = 0;
    for (int64_t k = 0; k < found; k++) {
        const double place = begin + (double)k * apart;
        inside += place > -0.5 && place < (double)lines.count - 0.5;
    }
    return inside;
}
