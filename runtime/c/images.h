/* Images: the values of a scan, their percentiles, and resampling. Part of mednca.c. */

/* ---- Values ---- */

static float value_at(const mednca_scan *s, int64_t c, const int64_t at[3])
{
    const char *p = (const char *)s->voxels + c * s->strides[0] + at[0] * s->strides[1] + at[1] * s->strides[2] +
                    at[2] * s->strides[3];
    union {
        int8_t i8;
        uint8_t u8;
        int16_t i16;
        uint16_t u16;
        int32_t i32;
        uint32_t u32;
        float f32;
        double f64;
    } n;
    double x;
    switch (s->type) {
    case MEDNCA_I8: memcpy(&n, p, 1); x = n.i8; break;
    case MEDNCA_U8: memcpy(&n, p, 1); x = n.u8; break;
    case MEDNCA_I16: memcpy(&n, p, 2); x = n.i16; break;
    case MEDNCA_U16: memcpy(&n, p, 2); x = n.u16; break;
    case MEDNCA_I32: memcpy(&n, p, 4); x = n.i32; break;
    case MEDNCA_U32: memcpy(&n, p, 4); x = n.u32; break;
    case MEDNCA_F32: memcpy(&n, p, 4); x = (double)n.f32; break;
    default: memcpy(&n, p, 8); x = n.f64; break;
    }
    return (float)(x * s->slope + s->intercept);
}

/* Floats in the order of these numbers are in the order of their values. */
static uint32_t to_order(float value)
{
    uint32_t bits;
    value += 0.0f; /* -0 is 0 */
    memcpy(&bits, &value, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float from_order(uint32_t bits)
{
    float value;
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    memcpy(&value, &bits, 4);
    return value;
}

/* Values that can be gone over again and again: a channel of a scan, or an array. */
typedef struct {
    const mednca_scan *scan;
    int64_t channel;
    const float *values;
    int64_t count;
} Values;

/* Counts the values whose order has this upper half (by lower half), or all by upper half. Returns 1 if one is not finite. */
static int tally(const Values *v, int lower, uint32_t upper, uint32_t *histogram)
{
    int broken = 0;
    memset(histogram, 0, 65536 * sizeof(uint32_t));
    if (v->values) {
        for (int64_t i = 0; i < v->count; i++) {
            const uint32_t order = to_order(v->values[i]);
            if (!lower)
                histogram[order >> 16]++;
            else if (order >> 16 == upper)
                histogram[order & 65535]++;
        }
        return 0;
    }
    const int64_t *shape = v->scan->shape;
    int64_t at[3];
    for (at[2] = 0; at[2] < shape[3]; at[2]++)
        for (at[1] = 0; at[1] < shape[2]; at[1]++)
            for (at[0] = 0; at[0] < shape[1]; at[0]++) {
                const float value = value_at(v->scan, v->channel, at);
                const uint32_t order = to_order(value);
                broken |= !(value - value == 0);
                if (!lower)
                    histogram[order >> 16]++;
                else if (order >> 16 == upper)
                    histogram[order & 65535]++;
            }
    return broken;
}

/* The value with `rank` values below it. histogram: 65536 numbers to work in. */
static float ranked(const Values *v, int64_t rank, uint32_t *histogram, int *broken)
{
    *broken |= tally(v, 0, 0, histogram);
    uint32_t upper = 0, lower = 0;
    for (; upper < 65535 && rank >= histogram[upper]; upper++)
        rank -= histogram[upper];
    tally(v, 1, upper, histogram);
    for (; lower < 65535 && rank >= histogram[lower]; lower++)
        rank -= histogram[lower];
    return from_order(upper << 16 | lower);
}

/* Percentile by linear interpolation between ranks, as NumPy has it. */
static double percentile(const Values *v, double share, uint32_t *histogram, int *broken)
{
    const double position = (double)(v->count - 1) * share;
    const int64_t rank = (int64_t)position;
    const double t = position - (double)rank;
    const float a = ranked(v, rank, histogram, broken);
    const float b = rank + 1 < v->count ? ranked(v, rank + 1, histogram, broken) : a;
    const double difference = (double)(float)(b - a);
    return t >= 0.5 ? (double)b - difference * (1 - t) : (double)a + difference * t;
}

/* What values are clipped to and scaled from: their 0.5 and 99.5 percentile, or all of them where these are the same. */
static int measure(const Values *v, uint32_t *histogram, double *low, double *high)
{
    int broken = 0;
    *low = percentile(v, 0.5 / 100, histogram, &broken);
    *high = percentile(v, 99.5 / 100, histogram, &broken);
    if (!broken && !(*high > *low)) {
        *low = (double)ranked(v, 0, histogram, &broken);
        *high = (double)ranked(v, v->count - 1, histogram, &broken);
    }
    return broken;
}

static float rescale(float value, double low, double high)
{
    if (!(high > low))
        return 0;
    double x = (double)value;
    x = x < low ? low : x > high ? high : x;
    return (float)((x - low) / (high - low));
}

/* ---- Resampling: pixel areas aligned, edges repeated ---- */

/* Weights of the old pixels in new pixel i; returns the first of them. Sharp kernels are widened where they shrink the
 * image, so that no pixel is passed over; cubic is Keys' kernel with a = -0.75, not widened. */
static int64_t taps_of(int64_t old, int64_t new, int64_t i, int cubic, float *taps, int64_t *count)
{
    const double ratio = (double)old / (double)new, centre = ((double)i + 0.5) * ratio - 0.5;
    const double stretch = !cubic && ratio > 1 ? ratio : 1;
    int64_t reach = cubic ? 2 : (int64_t)stretch, start = (int64_t)centre;
    reach += !cubic && (double)reach < stretch;
    start -= (double)start > centre;
    const int64_t from = start - reach, to = start + reach + 1;
    const int64_t first = from < 0 ? 0 : from, last = to > old - 1 ? old - 1 : to;
    double sum = 0;
    for (int pass = 0; pass < 2; pass++) {
        double gathered = 0;
        for (int64_t t = from; t <= to; t++) {
            double d = (double)t - centre, weight;
            d = (d < 0 ? -d : d) / stretch;
            if (!cubic)
                weight = d < 1 ? 1 - d : 0;
            else if (d <= 1)
                weight = ((-0.75 + 2) * d - (-0.75 + 3)) * (d * d) + 1;
            else
                weight = d < 2 ? ((-0.75 * d - 5 * -0.75) * d + 8 * -0.75) * d - 4 * -0.75 : 0;
            if (!pass) {
                sum += weight;
                continue;
            }
            gathered += weight / sum;
            if ((t >= first || t == to) && (t < last || t == to)) {
                const int64_t where = t < first ? first : t > last ? last : t;
                taps[where - first] = (float)gathered;
                gathered = 0;
            }
        }
    }
    *count = last - first + 1;
    return first;
}

/* Row of `old` numbers -> of `new` ones, `step` apart. */
static void resize_row(const float *from, int64_t old, float *to, int64_t new, int cubic, float *taps)
{
    for (int64_t i = 0; i < new; i++) {
        int64_t count, first = taps_of(old, new, i, cubic, taps, &count);
        float sum = 0;
        for (int64_t t = 0; t < count; t++)
            sum += taps[t] * from[first + t];
        to[i] = sum;
    }
}
