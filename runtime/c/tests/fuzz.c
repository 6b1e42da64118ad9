/* Damaged model and scan files through the functions that mednca-run calls, in memory: no crash, no hang, no leak.
 *
 *     fuzz COUNT [SEED [FIRST]]     COUNT inputs from number FIRST on; each depends on SEED and its number alone
 *
 * Built with the sanitizers (make sanitize), which end the program at the first wrong access; the number of the input
 * is printed then, so that `fuzz 1 SEED NUMBER` shows it again. Small valid files are made here, then changed: bits,
 * bytes, numbers, words of JSON, pieces cut out, doubled, moved, files cut off; packed scans before and after packing.
 * What still is a mask in the end must be a file that is read again.
 */
#include "run.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#ifdef MEDNCA_ZLIB
#include <zlib.h>
#endif

enum {
    ROOM = 1 << 16,    /* bytes of a file */
    MEMORY = 32 << 20, /* larger work than this is not begun: a model may truly ask for much */
    CELLS = 1 << 14,   /* nor more cells */
    LIMIT = 10,        /* seconds of an input, with the sanitizers on */
    BEGIN_STEPS = 2
};

#if defined(__SANITIZE_ADDRESS__)
void __sanitizer_set_death_callback(void (*callback)(void));
#else
#define __sanitizer_set_death_callback(callback) (void)(callback)
#endif

typedef struct {
    uint8_t bytes[ROOM];
    size_t size, at; /* at: what has been read */
} file;

static uint64_t current, seed;

/* ---- What segment.c needs of the program ---- */

void die(const char *format, ...)
{
    fprintf(stderr, "fuzz: die(\"%s\")\n", format);
    abort();
}

double megabytes(double bytes)
{
    return bytes / (1 << 20);
}

/* ---- Random numbers: splitmix64 ---- */

static uint64_t state;

static uint64_t random_bits(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(size_t count)
{
    return count ? (size_t)(random_bits() % count) : 0;
}

/* ---- Files in memory ---- */

static size_t read_file(void *from, void *bytes, size_t count)
{
    file *f = from;
    size_t got = f->size - f->at < count ? f->size - f->at : count;
    memcpy(bytes, f->bytes + f->at, got);
    f->at += got;
    return got;
}

static int write_file(void *to, const void *bytes, size_t count)
{
    file *f = to;
    if (count > ROOM - f->size)
        return 1;
    memcpy(f->bytes + f->size, bytes, count);
    f->size += count;
    return 0;
}

static void expect(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "fuzz: %s\n", what);
        abort();
    }
}

/* ---- Valid files ---- */

/* A model of two levels with the smallest sizes that use every part of the format; of one axis or several. */
static void make_model(file *f, int depthwise, int several)
{
    enum { N = 4, H = 10, LEVELS = 2 };
    static const struct {
        const char *name;
        int count, axes, shape[4];
    } arrays[2][7] = {{{"perceive_a.weight", N * N * 9, 4, {N, N, 3, 3}},
                       {"perceive_a.bias", N, 1, {N}},
                       {"perceive_b.weight", N * N * 9, 4, {N, N, 3, 3}},
                       {"perceive_b.bias", N, 1, {N}},
                       {"update_in.weight", H * 3 * N, 2, {H, 3 * N}},
                       {"update_in.bias", H, 1, {H}},
                       {"update_out.weight", N * H, 2, {N, H}}},
                      {{"perceive_a.weight", N * 9, 4, {N, 1, 3, 3}},
                       {"perceive_a.bias", N, 1, {N}},
                       {"perceive_b.weight", N * 9, 4, {N, 1, 3, 3}},
                       {"perceive_b.bias", N, 1, {N}},
                       {"update_in.weight", H * 3 * N, 2, {H, 3 * N}},
                       {"update_in.bias", H, 1, {H}},
                       {"update_out.weight", N * H, 2, {N, H}}}};
    static const char ranges[] = "{\\\"state\\\": [4, 4, 4, 4], \\\"views\\\": [8, 8, 8, 8, 8, 8, 8, 8], "
                                 "\\\"hidden\\\": [8, 8, 8, 8, 8, 8, 8, 8, 8, 8]}";
    char header[8192];
    size_t used = 0, offset = 0;
    used += (size_t)sprintf(
        header + used,
        "{\"__metadata__\": {\"mednca\": \"{\\\"format\\\": \\\"mednca-model\\\", \\\"version\\\": 1, \\\"card\\\": {}, "
        "\\\"config\\\": {\\\"model\\\": {\\\"image_channels\\\": 1, \\\"classes\\\": 2, \\\"channels\\\": %d, "
        "\\\"hidden\\\": %d, \\\"perception\\\": \\\"%s\\\", \\\"scales\\\": [2, 1], \\\"steps\\\": [%d, %d], "
        "\\\"fire_rate\\\": 0.5}, \\\"preprocess\\\": {\\\"modalities\\\": 1, %s, \\\"context\\\": 0, "
        "\\\"normalise\\\": \\\"%s\\\", \\\"spacing\\\": %s, \\\"size\\\": %s, \\\"field\\\": %s}, \\\"predict\\\": {\\\"threshold\\\": 0.5, "
        "\\\"ensemble\\\": 1, \\\"smoothing\\\": 2, \\\"largest_component\\\": true, \\\"coarse\\\": %s}, \\\"values\\\": [1, 2]}, \\\"range\\\": {\\\"levels\\\": "
        "[%s, %s]}}\"}",
        N, H, depthwise ? "depthwise" : "dense", BEGIN_STEPS, BEGIN_STEPS,
        several ? "\\\"axes\\\": [2, 0, 1]" : "\\\"axis\\\": 2", depthwise ? "slice" : "volume",
        depthwise  ? "null"
        : several ? "[0.75, 0.75]"
                  : "[1.0, 0.75]",
        depthwise && !several ? "[6, 6]" : "null", several && !depthwise ? "true" : "false",
        several ? "[0.4, 0.3, 0.5]" : "null", ranges, ranges);
    for (int level = 0; level < LEVELS; level++)
        for (int i = 0; i < 7; i++) {
            used += (size_t)sprintf(header + used, ", \"levels.%d.%s\": {\"dtype\": \"F32\", \"shape\": [", level,
                                    arrays[depthwise][i].name);
            for (int k = 0; k < arrays[depthwise][i].axes; k++)
                used += (size_t)sprintf(header + used, "%s%d", k ? ", " : "", arrays[depthwise][i].shape[k]);
            size_t end = offset + 4 * (size_t)arrays[depthwise][i].count;
            used += (size_t)sprintf(header + used, "], \"data_offsets\": [%zu, %zu]}", offset, end);
            offset = end;
        }
    header[used++] = '}';
    for (int i = 0; i < 8; i++)
        f->bytes[i] = (uint8_t)(used >> 8 * i);
    memcpy(f->bytes + 8, header, used);
    f->size = 8 + used;
    for (size_t i = 0; i < offset / 4; i++) {
        float weight = ((float)below(2001) - 1000) / 2000;
        write_file(f, &weight, sizeof weight);
    }
}

/* A scan of 6 x 5 x 2 voxels of some type, in either version and byte order. */
static void make_scan(file *f, int version, int kind)
{
    static const int codes[] = {2, 4, 16, 64, 1024, 512};
    static const int sizes[] = {1, 2, 4, 8, 8, 2};
    nifti_image image = {.axes = 3,
                         .shape = {6, 5, 2, 1},
                         .version = version,
                         .qform_code = kind % 2,
                         .units = 2,
                         .pixdim = {-1, 1, 1.5, 2},
                         .quatern = {0.5, -0.5, 0.5},
                         .offset = {1, 2, 3},
                         .sform_code = kind % 3 == 0,
                         .rows = {{0, -1, 0, 4}, {1.5, 0, 0, 5}, {0, 0.5, 2, 6}}};
    uint8_t voxels[60 * 8] = {0};
    char message[MEDNCA_MESSAGE];
    nifti_sink sink = {write_file, f};
    f->size = 0;
    expect(!nifti_write_mask(&image, voxels, 0, &sink, message, sizeof message), "a scan could not be made");
    f->size -= 60;
    int at = version == 1 ? 70 : 12, size = sizes[kind];
    f->bytes[at] = (uint8_t)(codes[kind] & 255);
    f->bytes[at + 1] = (uint8_t)(codes[kind] >> 8);
    for (int i = 0; i < 60; i++) {
        float single = (float)below(1000) / 8;
        double both = (double)single;
        uint64_t whole = below(100);
        write_file(f, size == 4 ? (void *)&single : codes[kind] == 64 ? (void *)&both : (void *)&whole, (size_t)size);
    }
}

/* ---- Damage ---- */

static void damage(file *f, int text)
{
    static const uint64_t numbers[] = {0,
                                       1,
                                       2,
                                       7,
                                       0x7f,
                                       0x80,
                                       0xff,
                                       0x7fff,
                                       0x8000,
                                       0xffff,
                                       0x7fffffff,
                                       0x80000000,
                                       0xffffffff,
                                       0x7fffffffffffffff,
                                       0x8000000000000000,
                                       0xffffffffffffffff,
                                       0x7f800000,
                                       0x7fc00000,
                                       0x7ff0000000000000,
                                       348,
                                       540,
                                       352,
                                       544};
    static const char *const words[] = {"null",
                                        "true",
                                        "[",
                                        "]",
                                        "{",
                                        "}",
                                        "1e999",
                                        "-1",
                                        "0",
                                        "99999999999",
                                        "\\u0000",
                                        "\\",
                                        "\\\"dense\\\"",
                                        "\\\"depthwise\\\"",
                                        "\\\"slice\\\"",
                                        "\"",
                                        ",",
                                        ":",
                                        "1e-400",
                                        "NaN",
                                        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
                                        "\"F32\"",
                                        "4096",
                                        "65536"};
    for (size_t left = 1 + below(5); left && f->size; left--) {
        /* most numbers that matter stand near the beginning */
        size_t at = below(below(2) ? f->size : f->size < 600 ? f->size : 600), length = 1 + below(16);
        uint8_t *here = f->bytes + at;
        length = length < f->size - at ? length : f->size - at;
        switch (below(text ? 10 : 8)) {
        case 0: *here ^= (uint8_t)(1 << below(8)); break;
        case 1: *here = (uint8_t)random_bits(); break;
        case 2:
        case 3: { /* a number, in either byte order */
            uint64_t number = numbers[below(sizeof numbers / sizeof *numbers)] + (below(4) ? 0 : below(3) - 1);
            size_t size = (size_t)1 << below(4), big = below(2);
            for (size_t i = 0; i < size && at + i < f->size; i++)
                here[i] = (uint8_t)(number >> 8 * (big ? size - 1 - i : i));
            break;
        }
        case 4: /* cut out */
            memmove(here, here + length, f->size - at - length);
            f->size -= length;
            break;
        case 5: /* double */
            if (length <= ROOM - f->size) {
                memmove(here + length, here, f->size - at);
                f->size += length;
            }
            break;
        case 6: memmove(f->bytes + below(f->size - length + 1), here, length); break;
        case 7: f->size = below(4) ? f->size : at; break;
        case 8: /* a digit */
            while (at < f->size && (f->bytes[at] < '0' || f->bytes[at] > '9'))
                at++;
            if (at < f->size)
                f->bytes[at] = (uint8_t)('0' + below(10));
            break;
        default: { /* a word of JSON, over or between */
            const char *word = words[below(sizeof words / sizeof *words)];
            size_t size = strlen(word);
            if (below(2) && size <= ROOM - f->size) {
                memmove(here + size, here, f->size - at);
                f->size += size;
            }
            memcpy(here, word, size < f->size - at ? size : f->size - at);
        }
        }
    }
}

/* File -> the same, packed. */
static void pack(file *f)
{
#ifdef MEDNCA_ZLIB
    static file packed;
    z_stream z;
    memset(&z, 0, sizeof z);
    expect(deflateInit2(&z, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK, "zlib has no memory");
    z.next_in = f->bytes;
    z.avail_in = (unsigned)f->size;
    z.next_out = packed.bytes;
    z.avail_out = ROOM;
    expect(deflate(&z, Z_FINISH) == Z_STREAM_END, "zlib did not finish");
    packed.size = z.total_out;
    deflateEnd(&z);
    memcpy(f->bytes, packed.bytes, packed.size);
    f->size = packed.size;
#else
    (void)f;
#endif
}

/* ---- One input ---- */

static uint64_t opened, read_in, too_large, segmented;

static void run_input(file *model_file, file *scan_file)
{
    char message[MEDNCA_MESSAGE] = "";
    settings set = {.threads = below(64) ? 1 : 2, .quiet = 1};
    set.engine = (mednca_options){.numbers = below(2) ? MEDNCA_INT16 : MEDNCA_FP32,
                                  .gauge = (int32_t)below(2),
                                  .gate = (int32_t)below(3) - 1,
                                  .ensemble = 1 + (int32_t)below(2),
                                  .patience = (int32_t)below(3),
                                  .signals = (int32_t)below(2),
                                  .seed = 5};
    for (int i = 0; i < MEDNCA_LEVELS; i++)
        set.engine.steps[i] = BEGIN_STEPS; /* a file may ask for a long time, that is no fault */
    int32_t sets = 0;
    while (mednca_instructions(sets))
        sets++;
    set.engine.instructions = mednca_instructions((int32_t)below((size_t)sets));

    /* the model's bytes in memory of just their size, so that a byte too far is seen */
    uint8_t *bytes = malloc(model_file->size ? model_file->size : 1);
    memcpy(bytes, model_file->bytes, model_file->size);
    mednca_model *model = mednca_open(bytes, model_file->size, &set.engine, message, sizeof message);
    free(bytes);
    expect(model || (message[0] && strlen(message) < sizeof message), "a refused model must come with a message");
    opened += model != NULL;

    nifti_image image;
    nifti_source source = {read_file, scan_file, scan_file->size};
    scan_file->at = 0;
    message[0] = 0;
    int failed = nifti_read(&image, &source, message, sizeof message);
    expect(!failed || message[0], "a refused scan must come with a message");
    read_in += !failed;
    if (model && !failed) {
        mednca_scan scan;
        mednca_job job;
        mednca_counts counts;
        nifti_scan(&image, &scan);
        size_t size = mednca_work_size(model, &scan, set.threads, message, sizeof message);
        int small = size && size < MEMORY;
        if (small) {
            void *work = calloc(1, size);
            small = work && (mednca_begin(model, &scan, work, &job, message, sizeof message) ||
                             cells_of_scan(&job) <= CELLS);
            free(work);
        }
        too_large += size && !small;
        uint8_t *mask = small || !size ? segment(model, &image, &set, &counts, message, sizeof message) : NULL;
        if (mask) {
            static file written;
            nifti_image again;
            nifti_sink sink = {write_file, &written};
            nifti_source back = {read_file, &written, 0};
            written.size = written.at = 0;
            segmented++;
            expect(!nifti_write_mask(&image, mask, nifti_has_gzip() && below(2), &sink, message, sizeof message),
                   "a mask must be written");
            back.size = written.size;
            expect(!nifti_read(&again, &back, message, sizeof message), "a written mask must be read");
            expect(!memcmp(again.voxels, mask, (size_t)(image.shape[0] * image.shape[1] * image.shape[2])),
                   "a written mask must be read as it was");
            nifti_free(&again);
        }
        free(mask);
    }
    if (!failed)
        nifti_free(&image);
    mednca_close(model);
}

static void tell_input(void)
{
    fprintf(stderr, "fuzz: that was input %" PRIu64 " of seed %" PRIu64 "\n", current, seed);
}

static void too_long(int number)
{
    (void)number;
    tell_input();
    fprintf(stderr, "fuzz: it took more than %d s\n", LIMIT);
    abort();
}

int main(int count, char **words)
{
    static file models[4], scans[12], model, scan;
    uint64_t inputs = count > 1 ? strtoull(words[1], NULL, 10) : 0,
             first = count > 3 ? strtoull(words[3], NULL, 10) : 0;
    seed = count > 2 ? strtoull(words[2], NULL, 10) : 1;
    if (!inputs) {
        fputs("usage: fuzz COUNT [SEED [FIRST]]\n", stderr);
        return 2;
    }
    state = 0;
    for (int i = 0; i < 4; i++)
        make_model(&models[i], i % 2, i / 2);
    for (int i = 0; i < 12; i++)
        make_scan(&scans[i], 1 + i / 6, i % 6);
    __sanitizer_set_death_callback(tell_input);
    signal(SIGVTALRM, too_long);
    double start = now(), longest = 0;
    for (current = first; current < first + inputs; current++) {
        struct itimerval limit = {{0, 0}, {LIMIT, 0}};
        setitimer(ITIMER_VIRTUAL, &limit, NULL);
        double before = now();
        state = seed * 0x2545f4914f6cdd1du + current;
        const size_t what = below(8); /* 0 to 3: the model, 4 to 6: the scan, 7: both */
        model = models[below(4)];
        scan = scans[below(12)];
        const size_t packing = below(3); /* 0: none, 1: after the damage, 2: before it */
        if (packing == 2)
            pack(&scan);
        if (what < 4 || what == 7)
            damage(&model, 1);
        if (what >= 4)
            damage(&scan, 0);
        if (packing == 1)
            pack(&scan);
        run_input(&model, &scan);
        double took = now() - before;
        longest = took > longest ? took : longest;
        if ((current + 1 - first) % 100000 == 0)
            fprintf(stderr, "fuzz: %" PRIu64 " inputs, %.0f s\n", current + 1 - first, now() - start);
    }
    printf("%" PRIu64 " inputs in %.0f s, the longest took %.3f s; models opened %" PRIu64 ", scans read %" PRIu64
           ", masks made %" PRIu64 ", too large to try %" PRIu64 "\n",
           inputs, now() - start, longest, opened, read_in, segmented, too_large);
    return 0;
}
