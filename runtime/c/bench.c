/* See run.h: seconds and memory of one slice on this machine, and a number that tells the bits of the states. */
#include "run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 5, PATIENCE = 60 /* seconds after which there is no further run */ };

/* The next of a sequence that only looks random, the same everywhere. */
static uint32_t next_number(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

/* ---- The bits of the states ---- */

typedef struct {
    const mednca_model *model;
    int32_t level, steps, threads;
    float *state;
    int64_t height, width;
    void *memory;
} labour;

static void share_level(void *what, int32_t rank, mednca_counts *counts)
{
    labour *l = what;
    mednca_level(l->model, l->level, l->state, l->height, l->width, 0, l->steps, 7, 3, NULL, l->memory, rank,
                 l->threads, counts);
}

/* Model -> a number (FNV-1a) that tells all bits of the states after each level's steps, from a start that is the same
 * on every machine. The tests compare machines with it. */
static uint64_t hash_states(const mednca_model *model, const settings *set)
{
    mednca_facts f;
    mednca_counts counts = {0};
    mednca_about(model, &f);
    uint64_t hash = 0xcbf29ce484222325u;
    uint32_t random = 1;
    int64_t numbers = set->height * set->width * f.channels;
    size_t size = mednca_level_size(model, set->height, set->width, set->threads);
    float *state = allocate((size_t)numbers * sizeof *state, size);
    labour l = {model, 0, 0, set->threads, state, set->height, set->width, allocate(size, 0)};
    if (!state || !l.memory)
        die("--size: too little memory for %" PRId64 " x %" PRId64 " cells; give less", set->height, set->width);
    for (; l.level < f.levels; l.level++) {
        l.steps = f.steps[l.level];
        for (int64_t i = 0; i < numbers; i++) {
            float value = (float)(next_number(&random) % 1024) / 1024;
            state[i] = i % f.channels < f.image_channels ? value : (value - 0.5f) / 4;
        }
        in_parallel(set->threads, share_level, &l, &counts);
        for (int64_t i = 0; i < numbers; i++) {
            uint32_t bits;
            memcpy(&bits, &state[i], sizeof bits);
            for (int byte = 0; byte < 4; byte++)
                hash = (hash ^ (bits >> 8 * byte & 255)) * 0x100000001b3u;
        }
    }
    free(state);
    free(l.memory);
    return hash;
}

/* ---- Speed ---- */

/* The most memory that this program has had; the system's usage would count in what started it. */
static double most_memory(void)
{
    char line[256];
    long long kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file) && sscanf(line, "VmHWM: %lld", &kilobytes) != 1)
        ;
    if (file)
        fclose(file);
    return megabytes(1024 * (double)kilobytes);
}

/* What the system calls this machine. */
static const char *machine(char *name, size_t size)
{
    static const char *const keys[] = {"Model", "model name",
                                       "Hardware"}; /* of a Raspberry Pi, of x86, of old kernels */
    char line[256];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        FILE *file = fopen("/proc/cpuinfo", "r");
        while (file && fgets(line, sizeof line, file)) {
            size_t length = strlen(keys[i]);
            const char *value = strchr(line, ':');
            if (value && !strncmp(line, keys[i], length) &&
                strspn(line + length, "\t ") == (size_t)(value - line) - length) {
                line[strcspn(line, "\n")] = 0;
                snprintf(name, size, "%s", value + 1 + strspn(value + 1, " "));
                fclose(file);
                return name;
            }
        }
        if (file)
            fclose(file);
    }
    return "a machine without a name";
}

/* A soft blob on noise, pixels of 8 bits. */
static void paint(uint8_t *pixels, int64_t height, int64_t width, int64_t channels)
{
    uint32_t random = 1;
    for (int64_t i = 0; i < channels * height * width; i++) {
        double y = 4 * (2 * (double)(i / width % height) / (double)height - 1);
        double x = 3 * (2 * (double)(i % width) / (double)width - 1);
        pixels[i] = (uint8_t)(40 + 120 / (1 + x * x + y * y) + next_number(&random) % 40);
    }
}

/* One slice that all threads work on. */
typedef struct {
    mednca_job job;
    void *memory;
    int32_t threads;
    uint8_t *mask;
    float *shares; /* a model of several axes wants memory for them */
    int64_t strides[3], share_strides[4];
} slice_labour;

static void share_slice(void *what, int32_t rank, mednca_counts *counts)
{
    slice_labour *l = what;
    mednca_slice(&l->job, 0, l->memory, rank, l->threads, l->mask, l->strides, l->shares, l->share_strides,
                 counts);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const mednca_model *model, const settings *set, const slice_labour *l, const mednca_counts *counts,
                   double *seconds, int runs)
{
    mednca_facts f;
    char name[128], steps[128];
    mednca_about(model, &f);
    qsort(seconds, (size_t)runs, sizeof *seconds, by_size);
    double median = runs % 2 ? seconds[runs / 2] : (seconds[runs / 2 - 1] + seconds[runs / 2]) / 2;
    double cells = (double)cells_of_slice(&l->job), memory = most_memory();
    const char *called = machine(name, sizeof name), *many = set->threads > 1 ? "s" : "";
    const char *numbers = set->engine.numbers == MEDNCA_INT16 ? "int16" : "fp32";
    list(steps, sizeof steps, f.steps, f.levels, "+");

    printf("machine       %s, %d thread%s\n", called, set->threads, many);
    printf("instructions  %s, %s\n", f.instructions, numbers);
    printf("model         %d parameters, steps %s, runs %d\n", f.parameters, steps, f.ensemble);
    printf("slice         %" PRId64 " x %" PRId64 " pixels, %" PRId64 " x %" PRId64 " cells\n", set->height, set->width,
           l->job.grid_rows, l->job.grid_columns);
    printf("seconds       %.3f a slice (median of %d, %.3f to %.3f)\n", median, runs, seconds[0], seconds[runs - 1]);
    printf("cells         %.4g a second, of which %.0f %% fire and are computed\n", cells / median,
           100 * (double)counts->cells / cells);
    printf("memory        %.1f MB at most\n", memory);
    if (counts->saturated)
        printf("saturated     %" PRId64 " numbers did not fit the model's int16 range\n", counts->saturated);
    printf("to paste      mednca-run %d | %s | %d thread%s | %s %s | %d parameters, steps %s, runs %d | %" PRId64
           " x %" PRId64 " cells | %.3f s | %.1f MB\n",
           MEDNCA_VERSION, called, set->threads, many, f.instructions, numbers, f.parameters, steps, f.ensemble,
           l->job.grid_rows, l->job.grid_columns, median, memory);
}

void run_bench(const mednca_model *model, const settings *set)
{
    char message[MEDNCA_MESSAGE];
    mednca_facts f;
    mednca_about(model, &f);
    if (set->levels && set->levels != f.levels)
        die("--steps: this model has %d levels, got steps for %d", f.levels, set->levels);
    if (set->hash) {
        printf("%016" PRIx64 "\n", hash_states(model, set));
        return;
    }
    /* One slice of the size asked for, along the first axis that the model cuts. */
    const int64_t plane = set->height * set->width, sides[2] = {set->height, set->width}, steps[2] = {set->width, 1};
    uint8_t *pixels = allocate((size_t)(plane * f.modalities), 0);
    slice_labour l = {.threads = set->threads, .mask = allocate((size_t)plane, 0)};
    if (f.views > 1)
        l.shares = allocate((size_t)plane * 4 * (size_t)f.classes, (size_t)(plane * (1 + f.modalities)));
    if (!pixels || !l.mask || (f.views > 1 && !l.shares))
        die("--size: too little memory for %" PRId64 " x %" PRId64 " pixels; give less", set->height, set->width);
    paint(pixels, set->height, set->width, f.modalities);
    mednca_scan scan = {.voxels = pixels, .type = MEDNCA_U8, .slope = 1, .shape = {f.modalities}, .strides = {plane}};
    for (int axis = 0, side = 0; axis < 3; axis++) {
        const int across = axis == f.axes[0];
        scan.shape[1 + axis] = across ? 1 : sides[side];
        scan.strides[1 + axis] = l.strides[axis] = across ? plane : steps[side];
        l.share_strides[1 + axis] = 4 * l.strides[axis];
        scan.spacing[axis] = 1;
        side += !across;
    }
    l.share_strides[0] = 4 * plane;
    size_t size = mednca_work_size(model, &scan, set->threads, message, sizeof message);
    if (!size)
        die("%s: %s", set->model, message);
    l.memory = allocate(size, (size_t)(plane * (1 + f.modalities)));
    if (!l.memory)
        die("--size: %.0f MB of memory are needed, which this machine does not have; give less",
            megabytes((double)size));
    if (mednca_begin(model, &scan, l.memory, &l.job, message, sizeof message))
        die("%s: %s", set->model, message);
    const size_t more = mednca_field_size(model, &scan);
    void *even = more ? allocate(more, size) : NULL;
    if (more && !even)
        die("--size: too little memory to take the field out of the slice in; give less");
    mednca_field(&l.job, even);

    double seconds[RUNS], spent = 0;
    mednca_counts counts;
    int runs = 0;
    while (!runs || (runs < RUNS && spent + seconds[0] < PATIENCE)) {
        memset(&counts, 0, sizeof counts);
        begin_progress(set->quiet ? 0 : cells_of_slice(&l.job));
        double start = now();
        in_parallel(set->threads, share_slice, &l, &counts);
        seconds[runs] = now() - start;
        end_progress();
        spent += seconds[runs++];
    }
    report(model, set, &l, &counts, seconds, runs);
    free(even);
    free(l.memory);
    free(l.mask);
    free(l.shares);
    free(pixels);
}
