/* A second look: whether the organ of a mask has another size than in training, and scans of other sizes. Part of mednca.c.
 *
 * The same as mednca/second_look.py, which says what for. */

/* The least number of voxels of a mask that is judged; the share of the fullest slice above which an end slice of the scan cuts
 * the organ off; the largest factor of an axis, and of the number of voxels. */
enum { LOOK_VOXELS = 8 };
#define LOOK_CUT 0.5
#define LOOK_LARGEST 3.0
#define LOOK_GROWTH 8.0

/* Foreground voxels in slice i across an axis. */
static int64_t in_slice(const uint8_t *mask, const int64_t *shape, const int64_t *strides, int axis, int64_t i)
{
    const int a = axis == 0 ? 1 : 0, b = axis == 2 ? 1 : 2;
    int64_t count = 0;
    for (int64_t y = 0; y < shape[a]; y++)
        for (int64_t x = 0; x < shape[b]; x++)
            count += mask[i * strides[axis] + y * strides[a] + x * strides[b]] != 0;
    return count;
}

/* Factors of the axes -> the same, or nearer to 1 where that would be too much. */
static void make_bearable(double by[3])
{
    double all = 1, more = 1;
    for (int axis = 0; axis < 3; axis++) {
        by[axis] = by[axis] > LOOK_LARGEST ? LOOK_LARGEST : by[axis] < 1 / LOOK_LARGEST ? 1 / LOOK_LARGEST : by[axis];
        all *= by[axis];
        more *= by[axis] > 1 ? by[axis] : 1;
    }
    for (int axis = 0; axis < 3 && all > LOOK_GROWTH; axis++)
        if (by[axis] > 1)
            by[axis] = exponential(logarithm(by[axis]) * logarithm(LOOK_GROWTH * more / all) / logarithm(more));
}

int mednca_unusual(const mednca_model *model, const uint8_t *mask, const int64_t *shape, const int64_t *strides,
                   const double *spacing, double stretch[3], double *strangeness)
{
    const double *usual = model->sizes;
    double before[3], by[3] = {1, 1, 1};
    int unusual = 0;
    *strangeness = -1;
    for (int axis = 0; axis < 3 && model->facts.second_look; axis++) {
        int64_t count = 0, end = 0, most = 0;
        double sum = 0, squares = 0;
        for (int64_t i = 0; i < shape[axis]; i++) {
            const int64_t here = in_slice(mask, shape, strides, axis, i);
            end = (i == 0 || i == shape[axis] - 1) && here > end ? here : end;
            most = here > most ? here : most;
            count += here;
            sum += (double)here * (double)i;
            squares += (double)here * (double)i * (double)i;
        }
        if (count < LOOK_VOXELS)
            return 0;
        const double mean = sum / (double)count, variance = squares / (double)count - mean * mean;
        const double size = (variance > 0 ? variance : 0) + 1.0 / 12, far = usual[axis] / spacing[axis];
        const double limit = logarithm(usual[3 + axis]);
        double log = shape[axis] > 1 ? 0.5 * logarithm(size / (far * far)) : 0;
        if (log < 0 && (double)end > LOOK_CUT * (double)most)
            log = 0; /* the organ goes on beyond the end of the scan */
        const double strange = (log < 0 ? -log : log) / limit;
        *strangeness = strange > *strangeness ? strange : *strangeness;
        by[axis] = strange > 1 ? exponential(-log) : 1;
    }
    memcpy(before, stretch, sizeof before);
    for (int axis = 0; axis < 3 && *strangeness > 1; axis++)
        stretch[axis] *= by[axis];
    make_bearable(stretch);
    for (int axis = 0; axis < 3; axis++)
        unusual |= stretch[axis] != before[axis];
    return *strangeness > 1 && unusual;
}

int64_t mednca_stretched(int64_t length, double by)
{
    const int64_t found = even((double)length * by), least = length < 2 ? length : 2;
    return found < least ? least : found;
}

void mednca_values(const mednca_scan *scan, int64_t channel, float *out)
{
    int64_t at[3];
    for (at[2] = 0; at[2] < scan->shape[3]; at[2]++)
        for (at[1] = 0; at[1] < scan->shape[2]; at[1]++)
            for (at[0] = 0; at[0] < scan->shape[1]; at[0]++)
                *out++ = value_at(scan, channel, at);
}

void mednca_resize(const float *from, const int64_t shape[3], int32_t axis, int64_t length, float *to)
{
    const int64_t old = shape[axis], inner = axis == 0 ? 1 : axis == 1 ? shape[0] : shape[0] * shape[1];
    const int64_t outer = shape[0] * shape[1] * shape[2] / (inner * old);
    float taps[64]; /* lengths are at most some four times apart */
    for (int64_t i = 0; i < length; i++) {
        int64_t count;
        const int64_t first = taps_of(old, length, i, 0, taps, &count);
        for (int64_t o = 0; o < outer; o++)
            for (int64_t n = 0; n < inner; n++) {
                float sum = 0;
                for (int64_t t = 0; t < count; t++)
                    sum += taps[t] * from[(o * old + first + t) * inner + n];
                to[(o * length + i) * inner + n] = sum;
            }
    }
}

void mednca_decide(const mednca_model *model, const int64_t *shape, const float *probability,
                   const int64_t *probability_strides, uint8_t *mask, const int64_t *mask_strides)
{
    for (int64_t z = 0; z < shape[2]; z++)
        for (int64_t y = 0; y < shape[1]; y++)
            for (int64_t x = 0; x < shape[0]; x++)
                mask[x * mask_strides[0] + y * mask_strides[1] + z * mask_strides[2]] =
                    value_of(model, (const char *)probability + x * probability_strides[1] + y * probability_strides[2] +
                                        z * probability_strides[3], probability_strides[0]);
}
