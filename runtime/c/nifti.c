/* See nifti.h. Numbers in the comments are byte offsets, or the codes of the standard (nifti1.h, nifti2.h of the NIH).
 */
#include "nifti.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef MEDNCA_ZLIB
#include <zlib.h>
#endif

enum { CHUNK = 16384, HEADER_1 = 348, HEADER_2 = 540, GZIP_RATIO = 1040 /* deflate's limit is 1032 */ };

static int refuse(char *message, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int refuse(char *message, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (size)
        vsnprintf(message, size, format, arguments);
    va_end(arguments);
    return 1;
}

int nifti_has_gzip(void)
{
#ifdef MEDNCA_ZLIB
    return 1;
#else
    return 0;
#endif
}

/* ---- Bytes in, unpacked where they are packed ---- */

typedef struct {
    const nifti_source *source;
    uint8_t chunk[CHUNK]; /* the file's next bytes are count from start on, then what the source has */
    size_t start, count;
    int gzip, between;  /* between: the members of a gzip file, of which there may be several */
    const char *broken; /* what is wrong with the file, or null */
#ifdef MEDNCA_ZLIB
    z_stream packed;
#endif
} stream;

static int fill(stream *s)
{
    s->start = 0;
    s->count = s->source->read(s->source->from, s->chunk, CHUNK);
    return s->count > 0;
}

static int stream_open(stream *s, const nifti_source *source, char *message, size_t size)
{
    s->source = source;
    s->gzip = s->between = 0;
    s->broken = NULL;
    if (!fill(s))
        return refuse(message, size, "expected an image, got an empty file; copy it again");
    if (s->count < 2 || s->chunk[0] != 0x1f || s->chunk[1] != 0x8b)
        return 0;
#ifdef MEDNCA_ZLIB
    memset(&s->packed, 0, sizeof s->packed);
    if (inflateInit2(&s->packed, 15 + 16) != Z_OK)
        return refuse(message, size, "too little memory to unpack it");
    s->gzip = 1;
    return 0;
#else
    return refuse(message, size, "is compressed and this build has no zlib; unpack it first with gunzip");
#endif
}

static void stream_close(stream *s)
{
#ifdef MEDNCA_ZLIB
    if (s->gzip)
        inflateEnd(&s->packed);
#endif
    s->gzip = 0;
}

/* Stream -> up to count bytes; fewer where it ends or is broken. */
static size_t stream_read(stream *s, uint8_t *bytes, size_t count)
{
    size_t done = 0;
    if (!s->gzip) {
        if (s->count) {
            done = count < s->count ? count : s->count;
            memcpy(bytes, s->chunk + s->start, done);
            s->start += done;
            s->count -= done;
        }
        return done < count ? done + s->source->read(s->source->from, bytes + done, count - done) : done;
    }
#ifdef MEDNCA_ZLIB
    while (done < count && !s->broken) {
        if (!s->count && !fill(s)) {
            if (!s->between)
                s->broken = "the file is cut off; copy it again";
            break;
        }
        if (s->between) {
            if (!s->chunk[s->start]) { /* padding */
                s->start++, s->count--;
                continue;
            }
            inflateReset(&s->packed);
            s->between = 0;
        }
        size_t room = count - done < 1u << 30 ? count - done : 1u << 30;
        s->packed.next_in = s->chunk + s->start;
        s->packed.avail_in = (unsigned)s->count;
        s->packed.next_out = bytes + done;
        s->packed.avail_out = (unsigned)room;
        int status = inflate(&s->packed, Z_NO_FLUSH);
        s->start += s->count - s->packed.avail_in;
        s->count = s->packed.avail_in;
        done += room - s->packed.avail_out;
        if (status == Z_STREAM_END)
            s->between = 1;
        else if (status != Z_OK && status != Z_BUF_ERROR)
            s->broken = "its compressed data are damaged; copy it again";
    }
#endif
    return done;
}

/* Stream -> whether count bytes could be passed over; UINT64_MAX: all, to the checksum at the end of a gzip file. */
static int stream_skip(stream *s, uint64_t count)
{
    uint8_t nowhere[4096];
    while (count) {
        size_t part = count < sizeof nowhere ? (size_t)count : sizeof nowhere;
        size_t got = stream_read(s, nowhere, part);
        if (count != UINT64_MAX)
            count -= got;
        if (got < part)
            return !s->broken && (count == UINT64_MAX || !count);
    }
    return 1;
}

/* ---- The header ---- */

typedef struct {
    uint8_t bytes[HEADER_2];
    int big; /* whether the file has the most significant byte first */
} header;

static uint64_t number(const header *h, int at, int size)
{
    uint64_t value = 0;
    for (int i = 0; i < size; i++)
        value = value << 8 | h->bytes[at + (h->big ? i : size - 1 - i)];
    return value;
}

static int64_t whole(const header *h, int at, int size)
{
    uint64_t value = number(h, at, size), sign = (uint64_t)1 << (8 * size - 1);
    return (int64_t)((value ^ sign) - sign);
}

static double real(const header *h, int at, int size)
{
    uint64_t word = number(h, at, size);
    if (size == 8) {
        double value;
        memcpy(&value, &word, 8);
        return value;
    }
    uint32_t half = (uint32_t)word;
    float value;
    memcpy(&value, &half, 4);
    return value;
}

static int is_code(int64_t code)
{
    return code >= 0 && code <= 5;
}

/* Sums of two doubles, as exact as nibabel's long doubles and more: a spacing of 2.5 must come out as 2.5 on every
 * machine, since the size that slices are resampled to is rounded from it. */
typedef struct {
    double high, low;
} twofold;

static twofold sum(double a, double b)
{
    double high = a + b, part = high - a;
    return (twofold){high, (a - (high - part)) + (b - part)};
}

static twofold product(double a, double b)
{
    double high = a * b, c = 134217729 * a, d = 134217729 * b; /* 2^27 + 1: halves of the digits */
    double a1 = c - (c - a), a2 = a - a1, b1 = d - (d - b), b2 = b - b1;
    return (twofold){high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2};
}

static twofold add(twofold a, twofold b)
{
    twofold s = sum(a.high, b.high);
    return sum(s.high, s.low + (a.low + b.low));
}

static twofold times(twofold a, twofold b)
{
    twofold p = product(a.high, b.high);
    return sum(p.high, p.low + (a.high * b.low + a.low * b.high));
}

static twofold minus(twofold a)
{
    return (twofold){-a.high, -a.low};
}

/* Quaternion b, c, d -> the rotation, or 1 where they are too long to be parts of a unit quaternion. Below least the
 * first part counts as 0. */
static int rotation(const double q[3], double least, twofold turn[3][3])
{
    const twofold one = {1, 0};
    twofold v[3], square[3], w = {0, 0}, scale = {2, 0};
    for (int i = 0; i < 3; i++) {
        v[i] = (twofold){q[i], 0};
        square[i] = product(q[i], q[i]);
    }
    twofold length = add(add(square[0], square[1]), square[2]), rest = add(one, minus(length));
    if (!(fabs(rest.high) < least)) {
        if (!(rest.high >= 0))
            return 1;
        double root = sqrt(rest.high);
        w = sum(root, add(rest, minus(product(root, root))).high / (2 * root));
    } else {
        double ratio = 2 / length.high;
        scale = sum(ratio, add(scale, minus(times((twofold){ratio, 0}, length))).high / length.high);
    }
    for (int i = 0; i < 3; i++) {
        const int j = (i + 1) % 3, k = (i + 2) % 3;
        turn[i][i] = add(one, minus(times(scale, add(square[j], square[k]))));
        turn[i][j] = times(scale, add(product(q[i], q[j]), minus(times(w, v[k]))));
        turn[i][k] = times(scale, add(product(q[i], q[k]), times(w, v[j])));
    }
    return 0;
}

/* Header -> affine in mm: the sform, else the qform, else the sizes of the voxels alone, as nibabel chooses. */
static int place(nifti_image *image, int axes, char *message, size_t size)
{
    double(*affine)[4] = image->affine;
    if (image->sform_code) {
        memcpy(affine, image->rows, sizeof image->rows);
    } else if (image->qform_code) {
        twofold turn[3][3];
        double least = 3 * (image->version == 1 ? (double)FLT_EPSILON : DBL_EPSILON);
        if (rotation(image->quatern, least, turn))
            return refuse(message, size, "its quaternion (quatern_b, c, d) is longer than 1; repair the header");
        for (int i = 0; i < 3; i++) {
            for (int j = 0; j < 3; j++)
                affine[i][j] = times(turn[i][j], (twofold){image->pixdim[1 + j], 0}).high;
            affine[i][2] *= image->pixdim[0];
            affine[i][3] = image->offset[i];
        }
    } else { /* the centre of the image lies at 0, and x runs to the left */
        for (int i = 0; i < 3; i++) {
            double step = i < axes ? image->pixdim[1 + i] : 1;
            affine[i][i] = i ? step : -step;
            affine[i][3] = -((double)(image->shape[i] - 1) / 2) * affine[i][i];
        }
    }
    int unit = image->units & 7;
    double mm = unit == 1 ? 1000 : unit == 3 ? 0.001 : 1;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 4; j++) {
            affine[i][j] *= mm;
            if (!isfinite(affine[i][j]))
                return refuse(message, size, "affine must be finite, got NaN or infinity; repair the header");
        }
    return 0;
}

static double determinant(double m[3][3])
{
    return m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
           m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}

/* Affine -> the axis of the world that each axis of the file is closest to.
 *
 * "Closest" is nibabel's: the affine without its scales and shears (the orthogonal factor of its polar decomposition)
 * tells how much each axis runs along which; the one that runs most along one chooses first. */
static int orient(nifti_image *image, char *message, size_t size)
{
    double m[3][3];
    for (int j = 0; j < 3; j++) {
        double length = 0;
        for (int i = 0; i < 3; i++)
            length += image->affine[i][j] * image->affine[i][j];
        length = sqrt(length);
        for (int i = 0; i < 3; i++)
            m[i][j] = image->affine[i][j] / length; /* NaN where an axis has no length */
    }
    if (!(fabs(determinant(m)) >= 1e-6))
        return refuse(message, size, "affine must be invertible, its axes lie in one plane; repair the header");

    for (int round = 0; round < 100; round++) { /* Newton: the mean with the inverse of the transpose */
        double next[3][3], change = 0, d = determinant(m);
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 3; j++) {
                int a = (i + 1) % 3, b = (i + 2) % 3, c = (j + 1) % 3, e = (j + 2) % 3;
                next[i][j] = (m[i][j] + (m[a][c] * m[b][e] - m[a][e] * m[b][c]) / d) / 2;
                change = fmax(change, fabs(next[i][j] - m[i][j]));
            }
        memcpy(m, next, sizeof m);
        if (change < 1e-15)
            break;
    }
    int order[3] = {0, 1, 2};
    double most[3];
    for (int j = 0; j < 3; j++)
        most[j] = fmax(fmax(m[0][j] * m[0][j], m[1][j] * m[1][j]), m[2][j] * m[2][j]);
    for (int i = 1; i < 3; i++) /* sorted by insertion, equal ones stay in order */
        for (int j = i; j > 0 && most[order[j]] > most[order[j - 1]]; j--) {
            int swap = order[j];
            order[j] = order[j - 1];
            order[j - 1] = swap;
        }
    int taken[3] = {0, 0, 0};
    for (int k = 0; k < 3; k++) {
        int axis = order[k], best = -1;
        for (int i = 0; i < 3; i++)
            if (!taken[i] && (best < 0 || fabs(m[i][axis]) > fabs(m[best][axis])))
                best = i;
        taken[best] = 1;
        image->target[axis] = best;
        image->sign[axis] = m[best][axis] < 0 ? -1 : 1;
    }
    return 0;
}

/* Codes of NIfTI -> number type, bytes of a voxel and those in the file. */
static int number_type(int code, int *type, int *size)
{
    static const struct {
        int code, type, size;
    } known[] = {
        {2, MEDNCA_U8, 1},    {256, MEDNCA_I8, 1}, {4, MEDNCA_I16, 2},  {512, MEDNCA_U16, 2},  {8, MEDNCA_I32, 4},
        {768, MEDNCA_U32, 4}, {16, MEDNCA_F32, 4}, {64, MEDNCA_F64, 8}, {1024, MEDNCA_F64, 8}, {1280, MEDNCA_F64, 8},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == code) {
            *type = known[i].type;
            *size = known[i].size;
            return 0;
        }
    return 1;
}

/* Where things stand in the two versions of the header. */
typedef struct {
    int size, dim, dim_size, type, type_size, pixdim, real_size, offset, slope, qform, code_size, quatern, rows, units,
        units_size, magic, first;
} layout;

static const layout LAYOUTS[2] = {
    {HEADER_1, 40, 2, 70, 2, 76, 4, 108, 112, 252, 2, 256, 280, 123, 1, 344, 352},
    {HEADER_2, 16, 8, 12, 2, 104, 8, 168, 176, 344, 4, 352, 400, 500, 4, 4, 544},
};

/* Header -> everything in the image but the voxels; begin: the byte where those stand, code: their type. */
static int parse(const header *h, nifti_image *image, uint64_t *begin, int *code, int *bytes, char *message,
                 size_t size)
{
    const layout *at = &LAYOUTS[image->version - 1];
    int64_t axes = whole(h, at->dim, at->dim_size);
    *code = (int)number(h, at->type, at->type_size);
    if (number_type(*code, &image->type, bytes)) {
        if (*code == 128 || *code == 2304)
            return refuse(message, size, "voxels must be real numbers, got RGB colours; convert them to channels");
        return refuse(message, size,
                      "voxels must be whole or real numbers of 8 to 64 bits, got NIfTI type %d; convert "
                      "the file",
                      *code);
    }
    if (axes < 1 || axes > 7)
        return refuse(message, size, "expected 2 to 4 axes, got %lld; is the file damaged?", (long long)axes);
    int64_t dims[7] = {1, 1, 1, 1, 1, 1, 1};
    for (int i = 0; i < axes; i++) {
        dims[i] = whole(h, at->dim + (1 + i) * at->dim_size, at->dim_size);
        if (dims[i] < 1)
            return refuse(message, size, "no axis may be empty, got %lld voxels along axis %d; copy it again",
                          (long long)dims[i], i + 1);
    }
    int used = (int)axes;
    while (used > 3 && dims[used - 1] == 1)
        used--;
    if (used < 2 || used > 4)
        return refuse(message, size, "expected axes (X, Y, Z, channels), got %d of them; split the file", used);
    image->axes = used < 3 ? used : 3;
    memcpy(image->shape, dims, sizeof image->shape);

    for (int i = 0; i < 4; i++)
        image->pixdim[i] = real(h, at->pixdim + i * at->real_size, at->real_size);
    if (fabs(image->pixdim[0]) != 1)
        image->pixdim[0] = 1; /* nibabel mends these, and writes them mended */
    for (int i = 1; i < 4; i++) {
        if (image->pixdim[i] == 0)
            image->pixdim[i] = 1;
        if (image->pixdim[i] < 0)
            image->pixdim[i] = -image->pixdim[i];
    }
    int64_t codes[2];
    for (int i = 0; i < 2; i++) {
        codes[i] = whole(h, at->qform + i * at->code_size, at->code_size);
        if (!is_code(codes[i]))
            codes[i] = 0;
    }
    image->qform_code = (int32_t)codes[0];
    image->sform_code = (int32_t)codes[1];
    image->units = (int32_t)number(h, at->units, at->units_size);
    for (int i = 0; i < 3; i++) {
        image->quatern[i] = real(h, at->quatern + i * at->real_size, at->real_size);
        image->offset[i] = real(h, at->quatern + (3 + i) * at->real_size, at->real_size);
        for (int j = 0; j < 4; j++)
            image->rows[i][j] = real(h, at->rows + (4 * i + j) * at->real_size, at->real_size);
    }
    image->slope = real(h, at->slope, at->real_size);
    image->intercept = real(h, at->slope + at->real_size, at->real_size);
    if (image->slope == 0 || !isfinite(image->slope)) {
        image->slope = 1;
        image->intercept = 0;
    }
    if (!isfinite(image->intercept))
        return refuse(message, size, "scl_inter must be finite where scl_slope is set; repair the header");

    double first = image->version == 1 ? real(h, at->offset, 4) : (double)whole(h, at->offset, 8);
    if (!(first >= at->first && first < 1e15))
        return refuse(message, size, "vox_offset must be at least %d, got %g; is the file damaged?", at->first, first);
    *begin = (uint64_t)first;
    return place(image, used, message, size) || orient(image, message, size);
}

static int read_header(stream *s, header *h, nifti_image *image, char *message, size_t size)
{
    static const char foreign[] = "expected NIfTI, got something else; is the file what its name says?";
    memset(h, 0, sizeof *h);
    size_t got = stream_read(s, h->bytes, HEADER_1);
    image->version = 1;
    h->big = 0;
    if (got < 4)
        return refuse(message, size, "%s", s->broken ? s->broken : foreign);
    uint64_t little = number(h, 0, 4);
    if (little == HEADER_2 || little == 0x1c020000) {
        image->version = 2;
        if (got == HEADER_1)
            got += stream_read(s, h->bytes + got, HEADER_2 - HEADER_1);
    }
    const layout *at = &LAYOUTS[image->version - 1];
    if (got < (size_t)at->size)
        return refuse(message, size, "%s", s->broken ? s->broken : foreign);

    int64_t axes = whole(h, at->dim, at->dim_size);
    h->big = axes < 0 || axes > 7;
    const char *magic = (const char *)h->bytes + at->magic, *wanted = image->version == 1 ? "n+1" : "n+2";
    if (!memcmp(magic, image->version == 1 ? "ni1" : "ni2", 4))
        return refuse(message, size, "the header of a pair .hdr and .img; join them to one .nii");
    if (memcmp(magic, wanted, 4))
        return refuse(message, size, "%s", foreign);
    static const uint8_t ends[2][4] = {{13, 10, 26, 10}, {0, 0, 0, 0}};
    if (image->version == 2 && memcmp(magic + 4, ends[0], 4) && memcmp(magic + 4, ends[1], 4))
        return refuse(message, size, "its line ends were changed on the way; copy it again, as a binary file");
    return 0;
}

/* ---- The voxels ---- */

static void swap_bytes(uint8_t *bytes, size_t count, int size)
{
    for (size_t i = 0; i < count; i++, bytes += size)
        for (int a = 0, b = size - 1; a < b; a++, b--) {
            uint8_t swap = bytes[a];
            bytes[a] = bytes[b];
            bytes[b] = swap;
        }
}

/* 64-bit whole numbers, in place -> int32 where all of them fit, else float64. */
static void shrink(nifti_image *image, size_t count, int has_sign)
{
    uint8_t *bytes = image->voxels;
    int fits = 1;
    for (size_t i = 0; i < count && fits; i++) {
        uint64_t word;
        memcpy(&word, bytes + 8 * i, 8);
        fits = has_sign ? (int64_t)word >= INT32_MIN && (int64_t)word <= INT32_MAX : word <= INT32_MAX;
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t word;
        memcpy(&word, bytes + 8 * i, 8);
        int32_t low = (int32_t)(int64_t)word;
        double value = has_sign ? (double)(int64_t)word : (double)word;
        if (fits)
            memcpy(bytes + 4 * i, &low, 4);
        else
            memcpy(bytes + 8 * i, &value, 8);
    }
    image->type = fits ? MEDNCA_I32 : MEDNCA_F64;
    void *less = fits ? realloc(image->voxels, 4 * count) : NULL;
    if (less)
        image->voxels = less;
}

static double voxel(const void *voxels, int type, size_t i)
{
    switch (type) {
    case MEDNCA_I8: return ((const int8_t *)voxels)[i];
    case MEDNCA_U8: return ((const uint8_t *)voxels)[i];
    case MEDNCA_I16: return ((const int16_t *)voxels)[i];
    case MEDNCA_U16: return ((const uint16_t *)voxels)[i];
    case MEDNCA_I32: return ((const int32_t *)voxels)[i];
    case MEDNCA_U32: return ((const uint32_t *)voxels)[i];
    case MEDNCA_F32: return (double)((const float *)voxels)[i];
    default: return ((const double *)voxels)[i];
    }
}

/* Voxels -> how many are not finite once they are float32. */
static size_t not_finite(const nifti_image *image, size_t count)
{
    const double limit = 0x1.ffffffp127; /* from here on float32 rounds to infinity */
    if (image->type < MEDNCA_F32 && fabs(image->slope) * 0x1p32 + fabs(image->intercept) < limit)
        return 0;
    size_t broken = 0;
    for (size_t i = 0; i < count; i++) {
        double scaled = voxel(image->voxels, image->type, i) * image->slope;
        broken += !(fabs(scaled + image->intercept) < limit);
    }
    return broken;
}

static int read_voxels(stream *s, const header *h, nifti_image *image, uint64_t begin, int code, int bytes,
                       char *message, size_t size)
{
    uint64_t count = 1, there = s->source->size;
    for (int i = 0; i < 4; i++)
        if (__builtin_mul_overflow(count, (uint64_t)image->shape[i], &count))
            count = UINT64_MAX / 16;
    uint64_t total = count > UINT64_MAX / 16 ? UINT64_MAX : count * (uint64_t)bytes;
    if (s->gzip)
        there = there > UINT64_MAX / GZIP_RATIO ? UINT64_MAX : there * GZIP_RATIO;
    if (total > there || begin > there - total) /* said before memory is asked for */
        return refuse(message, size,
                      "the file is cut off: its header tells of %lld x %lld x %lld x %lld voxels of %d "
                      "bytes; copy it again",
                      (long long)image->shape[0], (long long)image->shape[1], (long long)image->shape[2],
                      (long long)image->shape[3], bytes);
    image->voxels = total > SIZE_MAX / 2 ? NULL : malloc((size_t)total);
    if (!image->voxels)
        return refuse(message, size, "too little memory for its %llu MB of voxels", (unsigned long long)(total >> 20));
    const layout *at = &LAYOUTS[image->version - 1];
    if (!stream_skip(s, begin - (uint64_t)at->size) || stream_read(s, image->voxels, (size_t)total) < total ||
        (s->gzip && !stream_skip(s, UINT64_MAX)))
        return refuse(message, size, "%s", s->broken ? s->broken : "the file is cut off; copy it again");

    const uint16_t one = 1;
    int big_here = !*(const uint8_t *)&one;
    if (h->big != big_here)
        swap_bytes(image->voxels, (size_t)count, bytes);
    if (code == 1024 || code == 1280)
        shrink(image, (size_t)count, code == 1024);
    size_t broken = not_finite(image, (size_t)count);
    if (broken)
        return refuse(message, size, "voxels must be finite, got %zu that are NaN or infinite; repair them", broken);
    return 0;
}

int nifti_read(nifti_image *image, const nifti_source *source, char *message, size_t size)
{
    stream s;
    header h;
    uint64_t begin = 0;
    int code = 0, bytes = 0;
    memset(image, 0, sizeof *image);
    if (stream_open(&s, source, message, size))
        return 1;
    int failed = read_header(&s, &h, image, message, size) || parse(&h, image, &begin, &code, &bytes, message, size) ||
                 read_voxels(&s, &h, image, begin, code, bytes, message, size);
    stream_close(&s);
    if (failed)
        nifti_free(image);
    return failed;
}

void nifti_free(nifti_image *image)
{
    free(image->voxels);
    image->voxels = NULL;
}

/* ---- To the engine and back ---- */

/* First voxel and strides of the file -> those in RAS+. */
static uint8_t *turn(const nifti_image *image, uint8_t *first, int64_t size, int64_t strides[3])
{
    for (int i = 0; i < 3; i++) {
        strides[image->target[i]] = size * image->sign[i];
        if (image->sign[i] < 0)
            first += size * (image->shape[i] - 1);
        size *= image->shape[i];
    }
    return first;
}

void nifti_scan(const nifti_image *image, mednca_scan *scan)
{
    static const int64_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 8};
    int64_t size = sizes[image->type];
    scan->voxels = turn(image, image->voxels, size, scan->strides + 1);
    scan->strides[0] = size * image->shape[0] * image->shape[1] * image->shape[2];
    scan->shape[0] = image->shape[3];
    for (int i = 0; i < 3; i++) {
        double sum = 0;
        for (int row = 0; row < 3; row++)
            sum += image->affine[row][i] * image->affine[row][i];
        scan->shape[1 + image->target[i]] = image->shape[i];
        scan->spacing[image->target[i]] = sqrt(sum);
    }
    scan->type = image->type;
    scan->slope = image->slope;
    scan->intercept = image->intercept;
}

uint8_t *nifti_turn_mask(const nifti_image *image, uint8_t *mask, int64_t strides[3])
{
    return turn(image, mask, 1, strides);
}

/* ---- Bytes out ---- */

static void put(uint8_t *bytes, int at, int size, uint64_t value)
{
    for (int i = 0; i < size; i++)
        bytes[at + i] = (uint8_t)(value >> 8 * i);
}

static void put_real(uint8_t *bytes, int at, int size, double value)
{
    uint64_t word;
    memcpy(&word, &value, 8);
    if (size == 4) { /* it was read from a float32 */
        float narrow = (float)value;
        uint32_t half;
        memcpy(&half, &narrow, 4);
        word = half;
    }
    put(bytes, at, size, word);
}

/* The mask's header: new but for its place in the world; a header may hold a patient's name. */
static size_t make_header(const nifti_image *image, uint8_t *bytes)
{
    const layout *at = &LAYOUTS[image->version - 1];
    int real_size = at->real_size;
    memset(bytes, 0, (size_t)at->first);
    put(bytes, 0, 4, (uint64_t)at->size);
    put(bytes, at->dim, at->dim_size, (uint64_t)image->axes);
    for (int i = 0; i < 7; i++)
        put(bytes, at->dim + (1 + i) * at->dim_size, at->dim_size, i < image->axes ? (uint64_t)image->shape[i] : 1);
    put(bytes, at->type, 2, 2);     /* uint8 */
    put(bytes, at->type + 2, 2, 8); /* bits */
    for (int i = 0; i < 8; i++)
        put_real(bytes, at->pixdim + i * real_size, real_size, i <= image->axes ? image->pixdim[i] : 1);
    if (image->version == 1)
        put_real(bytes, at->offset, 4, at->first);
    else
        put(bytes, at->offset, 8, (uint64_t)at->first);
    put_real(bytes, at->slope, real_size, 1);
    put(bytes, at->qform, at->code_size, (uint64_t)image->qform_code);
    put(bytes, at->qform + at->code_size, at->code_size, (uint64_t)image->sform_code);
    for (int i = 0; i < 3; i++) {
        put_real(bytes, at->quatern + i * real_size, real_size, image->quatern[i]);
        put_real(bytes, at->quatern + (3 + i) * real_size, real_size, image->offset[i]);
        for (int j = 0; j < 4; j++)
            put_real(bytes, at->rows + (4 * i + j) * real_size, real_size, image->rows[i][j]);
    }
    put(bytes, at->units, at->units_size, (uint64_t)(uint32_t)image->units);
    memcpy(bytes + at->magic, image->version == 1 ? "n+1\0" : "n+2\0\r\n\032\n", image->version == 1 ? 4 : 8);
    return (size_t)at->first;
}

#ifdef MEDNCA_ZLIB
/* Bytes -> packed to the sink; the time is left out, so that the same mask gives the same file. */
static int pack(z_stream *packed, const uint8_t *bytes, size_t count, int last, const nifti_sink *sink)
{
    uint8_t out[CHUNK];
    int status;
    do {
        size_t part = count < 1u << 30 ? count : 1u << 30;
        packed->next_in = (uint8_t *)(uintptr_t)bytes;
        packed->avail_in = (unsigned)part;
        bytes += part;
        count -= part;
        do {
            packed->next_out = out;
            packed->avail_out = sizeof out;
            status = deflate(packed, last && !count ? Z_FINISH : Z_NO_FLUSH);
            if (sink->write(sink->to, out, sizeof out - packed->avail_out))
                return 1;
        } while (!packed->avail_out);
    } while (count);
    return last && status != Z_STREAM_END;
}
#endif

int nifti_write_mask(const nifti_image *image, const uint8_t *mask, int gzip, const nifti_sink *sink, char *message,
                     size_t message_size)
{
    static const char full[] = "cannot be written; check the folder and the disk";
    uint8_t head[544];
    size_t size = make_header(image, head), voxels = (size_t)(image->shape[0] * image->shape[1] * image->shape[2]);
    if (!gzip) {
        if (sink->write(sink->to, head, size) || sink->write(sink->to, mask, voxels))
            return refuse(message, message_size, "%s", full);
        return 0;
    }
#ifdef MEDNCA_ZLIB
    z_stream packed;
    memset(&packed, 0, sizeof packed);
    if (deflateInit2(&packed, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return refuse(message, message_size, "too little memory to pack it; write .nii");
    int failed = pack(&packed, head, size, 0, sink) || pack(&packed, mask, voxels, 1, sink);
    deflateEnd(&packed);
    return failed ? refuse(message, message_size, "%s", full) : 0;
#else
    return refuse(message, message_size, "this build has no zlib; write .nii");
#endif
}
