/* Local normalisation: each voxel against the mean and the standard deviation of a box around it. Part of mednca.c.
 *
 * The same as mednca/local.py, which says what for. Sums run along z, y and x in turn, in doubles: what enters the box is
 * added, what leaves it is taken away, always in the same order, so that the result has the same bits on every machine. */

/* Least standard deviation that is blown up, as a share of the local mean, and of the largest intensity; standard deviations
 * from black to white. */
#define LOCAL_FLOOR 0.1
#define LOCAL_LEAST 1e-5
#define LOCAL_RANGE 6.0
/* Half a voxel more than this is rounded up: a spacing whose last bit differs decides nothing. */
#define LOCAL_TIE 1e-6

/* Sums over `reach` neighbours on each side along a line of numbers `step` apart, fewer at its ends. */
static void box_line(const double *from, double *to, int64_t count, int64_t step, int64_t reach)
{
    double sum = 0;
    for (int64_t i = 0; i < reach && i < count; i++)
        sum += from[i * step];
    for (int64_t i = 0; i < count; i++) {
        if (i + reach < count)
            sum += from[(i + reach) * step];
        if (i > reach)
            sum -= from[(i - reach - 1) * step];
        to[i * step] = sum;
    }
}

static int64_t in_box(int64_t i, int64_t count, int64_t reach)
{
    const int64_t first = i > reach ? i - reach : 0, last = i + reach < count ? i + reach : count - 1;
    return last - first + 1;
}

/* A voxel above the channel's 0.5 percentile, low, as a share of the largest one, high. */
static double intensity(const mednca_job *j, int64_t c, const int64_t at[3])
{
    const double low = j->low[c], high = j->high[c], value = (double)value_at(&j->scan, c, at);
    return high > low && value > low ? (value - low) / (high - low) : 0;
}

/* Adds a plane of the scan, and its squares, `sign` times. */
static void add_plane(const mednca_job *j, int64_t c, int64_t z, double sign, double *sums, double *squares)
{
    int64_t at[3] = {0, 0, z};
    for (at[0] = 0; at[0] < j->scan.shape[1]; at[0]++)
        for (at[1] = 0; at[1] < j->scan.shape[2]; at[1]++) {
            const double x = intensity(j, c, at);
            *sums++ += sign * x;
            *squares++ += sign * (x * x);
        }
}

/* One channel of the scan -> out (x, y, z); planes: 5 of X Y doubles to work in. */
static void normalise_channel(const mednca_job *j, int64_t c, const int64_t reach[3], double *planes, float *out)
{
    const int64_t X = j->scan.shape[1], Y = j->scan.shape[2], Z = j->scan.shape[3], plane = X * Y;
    double *running[2] = {planes, planes + plane}, *across = planes + 2 * plane, *boxes[2] = {planes + 3 * plane, planes + 4 * plane};
    memset(planes, 0, (size_t)(2 * plane) * sizeof(double));
    for (int64_t z = 0; z < reach[2] && z < Z; z++)
        add_plane(j, c, z, 1, running[0], running[1]);
    for (int64_t z = 0; z < Z; z++) {
        int64_t at[3] = {0, 0, z};
        if (z + reach[2] < Z)
            add_plane(j, c, z + reach[2], 1, running[0], running[1]);
        if (z > reach[2])
            add_plane(j, c, z - reach[2] - 1, -1, running[0], running[1]);
        for (int which = 0; which < 2; which++) {
            for (int64_t x = 0; x < X; x++)
                box_line(running[which] + x * Y, across + x * Y, Y, 1, reach[1]);
            for (int64_t y = 0; y < Y; y++)
                box_line(across + y, boxes[which] + y, X, Y, reach[0]);
        }
        for (at[0] = 0; at[0] < X; at[0]++)
            for (at[1] = 0; at[1] < Y; at[1]++) {
                const int64_t here = at[0] * Y + at[1];
                const double count = (double)(in_box(at[0], X, reach[0]) * in_box(at[1], Y, reach[1]) * in_box(z, Z, reach[2]));
                const double mean = boxes[0][here] / count, variance = boxes[1][here] / count - mean * mean;
                const double least = LOCAL_FLOOR * mean;
                const double spread = root((variance > 0 ? variance : 0) + least * least + LOCAL_LEAST * LOCAL_LEAST);
                const double y = 0.5 + (intensity(j, c, at) - mean) / (LOCAL_RANGE * spread);
                out[here * Z + z] = (float)(y < 0 ? 0 : y > 1 ? 1 : y);
            }
    }
}

size_t mednca_local_size(const mednca_model *model, const mednca_scan *scan)
{
    int64_t first[3];
    const mednca_scan part = part_of(model, scan, first);
    if (!(model->window > 0))
        return 0;
    const double plane = (double)part.shape[1] * (double)part.shape[2];
    const double bytes = plane * ((double)part.shape[0] * (double)part.shape[3] * sizeof(float) + 5 * sizeof(double)) + 128;
    return bytes < (double)(SIZE_MAX / 2) ? (size_t)bytes : SIZE_MAX; /* more than there is */
}

void mednca_local(mednca_job *job, void *memory)
{
    mednca_scan *scan = &job->scan;
    const int64_t voxels = scan->shape[1] * scan->shape[2] * scan->shape[3];
    int64_t reach[3];
    if (!(job->model->window > 0) || job->local)
        return;
    for (int axis = 0; axis < 3; axis++) {
        const double wanted = job->model->window / (2 * scan->spacing[axis]);
        reach[axis] = wanted < (double)scan->shape[1 + axis] ? (int64_t)(wanted + 0.5 - LOCAL_TIE) : scan->shape[1 + axis];
    }
    double *planes = (double *)aligned(memory);
    float *out = (float *)(planes + 5 * scan->shape[1] * scan->shape[2]);
    for (int64_t c = 0; c < scan->shape[0]; c++)
        normalise_channel(job, c, reach, planes, out + c * voxels);
    const int64_t z = sizeof(float);
    scan->voxels = out;
    scan->type = MEDNCA_F32;
    scan->slope = 1;
    scan->intercept = 0;
    scan->strides[0] = voxels * z;
    scan->strides[1] = scan->shape[2] * scan->shape[3] * z;
    scan->strides[2] = scan->shape[3] * z;
    scan->strides[3] = z;
    for (int64_t c = 0; c < scan->shape[0]; c++) {
        job->low[c] = 0;
        job->high[c] = 1;
    }
    job->local = 1;
}
