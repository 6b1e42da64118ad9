/* mednca-run: a model and a scan in, a mask out. One static program for a Raspberry Pi, or any Linux.
 *
 * This file is what a person meets: arguments, files that are whole or absent, errors of one line with exit status 2.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static const char HELP[] =
    "mednca-run: segment a medical scan with a model of mednca, without Python.\n"
    "\n"
    "  mednca-run MODEL SCAN -o MASK       segment SCAN (.nii, .nii.gz), write MASK on its grid\n"
    "  mednca-run MODEL --bench            how fast and how large is this model on this machine?\n"
    "  mednca-run MODEL --info             what is this model?\n"
    "\n"
    "MODEL is a .safetensors file of mednca, or the run folder that holds model.safetensors.\n"
    "\n"
    "  -o, --out MASK         the mask to write; its ending, .nii or .nii.gz, says how\n"
    "      --int16            whole numbers: the same mask on every machine, and faster on a Raspberry Pi;\n"
    "                         the model must have been calibrated for it ('mednca-run MODEL --info' tells)\n"
    "      --gate N           look closely only where the coarse result, widened by N pixels, sees something:\n"
    "                         several times as fast, but what the coarse level misses stays missed; try 8\n"
    "      --anytime N        end a level of a slice when no pixel of its mask has changed for N steps: faster, and\n"
    "                         nearly the same mask; try 4\n"
    "      --seed N           names the random stream of the cells that fire (0); the same seed, the same mask\n"
    "      --ensemble N       mean of N runs instead of the model's own number\n"
    "      --threads N        threads to use (one for each processor)\n"
    "      --instructions X   take these instructions instead of the best; --info lists them\n"
    "      --force            replace a mask that exists\n"
    "      --quiet            show no progress\n"
    "      --size HxW         --bench: size of the slice in pixels (256x256)\n"
    "      --steps A,B,...    --bench: steps of each level instead of the model's own, for a quick look\n"
    "  -h, --help             this page\n"
    "\n"
    "Examples:\n"
    "  mednca-run hippocampus.safetensors scan.nii.gz -o mask.nii.gz\n"
    "  mednca-run hippocampus.safetensors --bench --size 64x64 --int16\n"
    "\n"
    "Exit status: 0 where all went well, 2 for an error, which is one line. mednca is research software, not a\n"
    "medical device.\n";

/* ---- Errors: one line, and nothing left behind ---- */

static char unfinished[PATH_MAX + 64]; /* the temporary file, while there is one */

static void remove_unfinished(void)
{
    if (unfinished[0])
        unlink(unfinished);
    unfinished[0] = 0;
}

static void stop(int number)
{
    remove_unfinished();
    signal(number, SIG_DFL); /* a shell wants to see what stopped us */
    raise(number);
}

void die(const char *format, ...)
{
    va_list arguments;
    remove_unfinished();
    fflush(stdout);
    fputs("mednca-run: error: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

double megabytes(double bytes)
{
    return bytes / (1 << 20);
}

/* ---- Files ---- */

static int has_ending(const char *path, const char *ending)
{
    size_t length = strlen(path), end = strlen(ending);
    return length > end && path[length - end - 1] != '/' && !strcasecmp(path + length - end, ending);
}

static size_t read_from_file(void *from, void *bytes, size_t count)
{
    return fread(bytes, 1, count, from);
}

static int write_to_file(void *to, const void *bytes, size_t count)
{
    return fwrite(bytes, 1, count, to) != count;
}

static FILE *open_to_read(const char *path, const char *what, uint64_t *size)
{
    struct stat about;
    if (stat(path, &about))
        die(errno == ENOENT ? "%s: expected %s, there is none; check the path"
                            : "%s: %s cannot be read; check the path",
            path, what);
    if (S_ISDIR(about.st_mode))
        die("%s: expected %s, got a folder; name a file in it", path, what);
    if (!S_ISREG(about.st_mode))
        die("%s: expected %s, got something that is no file; copy it to one", path, what);
    FILE *file = fopen(path, "rb");
    if (!file)
        die("%s: cannot be read: %s; check who may read it", path, strerror(errno));
    *size = (uint64_t)about.st_size;
    return file;
}

static void read_image(const char *path, nifti_image *image)
{
    char message[MEDNCA_MESSAGE];
    uint64_t size;
    static const char *const pairs[] = {".hdr", ".img", ".hdr.gz", ".img.gz"};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (has_ending(path, pairs[i]))
            die("%s: a scan must be one .nii or .nii.gz file, got a pair .hdr and .img; join them to one .nii", path);
    if (!has_ending(path, ".nii") && !has_ending(path, ".nii.gz"))
        die("%s: the ending must be .nii or .nii.gz; convert the file", path);
    FILE *file = open_to_read(path, "a scan", &size);
    nifti_source source = {read_from_file, file, size};
    int failed = nifti_read(image, &source, message, sizeof message);
    if (failed && ferror(file))
        die("%s: cannot be read: %s; check the disk", path, strerror(errno));
    fclose(file);
    if (failed)
        die("%s: %s", path, message);
}

/* Path of a model file, or of a run folder -> the opened model. */
static mednca_model *open_model(const settings *set)
{
    char path[PATH_MAX], message[MEDNCA_MESSAGE];
    struct stat about;
    uint64_t size;
    int folder = !stat(set->model, &about) && S_ISDIR(about.st_mode);
    if (snprintf(path, sizeof path, "%s%s", set->model, folder ? "/model.safetensors" : "") >= (int)sizeof path)
        die("%s: the path is too long", set->model);
    if (folder && stat(path, &about))
        die("%s: not a run folder, there is no model.safetensors in it; name the model's file", set->model);
    FILE *file = open_to_read(path, "a model file (.safetensors)", &size);
    char *bytes = size < 1u << 30 ? malloc((size_t)size + 1) : NULL;
    if (!bytes)
        die("%s: not a model of mednca, it has %.0f MB; name a model's file", path, megabytes((double)size));
    if (fread(bytes, 1, (size_t)size, file) != size)
        die("%s: cannot be read to its end; copy it again", path);
    fclose(file);
    mednca_model *model = mednca_open(bytes, (size_t)size, &set->engine, message, sizeof message);
    free(bytes);
    if (!model)
        die("%s: %s", path, message);
    return model;
}

/* Refuses, before anything is computed, what could not be written at the end. */
static void check_out(const settings *set)
{
    const char *out = set->out;
    struct stat there, other;
    char folder[PATH_MAX];
    if (!has_ending(out, ".nii") && !has_ending(out, ".nii.gz"))
        die("%s: the ending must be .nii or .nii.gz", out);
    if (has_ending(out, ".gz") && !nifti_has_gzip())
        die("%s: this build has no zlib; write .nii", out);
    if (strlen(out) >= sizeof folder)
        die("%s: the path is too long", out);
    if (!stat(out, &there)) {
        if (S_ISDIR(there.st_mode))
            die("%s: cannot be written, it is a folder; choose another name", out);
        const char *inputs[] = {set->model, set->scan};
        for (int i = 0; i < 2; i++)
            if (!stat(inputs[i], &other) && other.st_dev == there.st_dev && other.st_ino == there.st_ino)
                die("%s: the mask would replace an input; choose another name", out);
        if (!set->force)
            die("%s: exists already; choose another name or give --force", out);
    }
    strcpy(folder, out);
    if (access(dirname(folder), W_OK | X_OK))
        die("%s: cannot be written: %s; check the folder", out, strerror(errno));
}

static void sync_folder(const char *folder)
{
    int handle = open(folder, O_RDONLY);
    if (handle >= 0) {
        fsync(handle);
        close(handle);
    }
}

/* Mask -> the file, whole or not at all: under another name first, then renamed. */
static void write_mask(const settings *set, const nifti_image *image, const uint8_t *mask)
{
    char folder[PATH_MAX], name[PATH_MAX], message[MEDNCA_MESSAGE];
    char *directory = dirname(strcpy(folder, set->out)), *base = basename(strcpy(name, set->out));
    sigset_t signals, before;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);

    sigprocmask(SIG_BLOCK, &signals, &before); /* so that no stop falls between making the file and knowing its name */
    snprintf(unfinished, sizeof unfinished, "%s/.part-%s-XXXXXX", directory, base);
    int handle = mkstemp(unfinished);
    if (handle < 0)
        unfinished[0] = 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    FILE *file = handle < 0 ? NULL : fdopen(handle, "wb");
    if (!file)
        die("%s: cannot be written: %s; check the folder", set->out, strerror(errno));
    nifti_sink sink = {write_to_file, file};
    if (nifti_write_mask(image, mask, has_ending(set->out, ".gz"), &sink, message, sizeof message))
        die("%s: %s", set->out, message);
    mode_t mask_of_process = umask(0);
    umask(mask_of_process);
    fchmod(handle, 0666 & ~mask_of_process);
    if (fflush(file) || fsync(handle) || fclose(file))
        die("%s: cannot be written: %s; check the disk", set->out, strerror(errno));

    if (!set->force && link(unfinished, set->out)) { /* never replaces; not every disk can link */
        if (errno == EEXIST || !access(set->out, F_OK))
            die("%s: exists already; choose another name or give --force", set->out);
        if (rename(unfinished, set->out))
            die("%s: cannot be written: %s; check the folder", set->out, strerror(errno));
    } else if (set->force && rename(unfinished, set->out))
        die("%s: cannot be written: %s; check the folder", set->out, strerror(errno));
    remove_unfinished();
    sync_folder(directory);
}

/* ---- What the program does ---- */

static void run_scan(const mednca_model *model, const settings *set)
{
    char message[MEDNCA_MESSAGE];
    nifti_image image;
    mednca_counts counts;
    double start = now();
    read_image(set->scan, &image);
    uint8_t *mask = segment(model, &image, set, &counts, message, sizeof message);
    if (!mask)
        die("%s: %s", set->scan, message);
    write_mask(set, &image, mask);
    int64_t found = 0;
    for (int64_t i = 0; i < image.shape[0] * image.shape[1] * image.shape[2]; i++)
        found += mask[i] != 0;
    if (counts.saturated)
        fprintf(stderr,
                "mednca-run: warning: %s: %" PRId64
                " numbers did not fit the model's int16 range and were cut off; compare "
                "with the mask without --int16\n",
                set->scan, counts.saturated);
    printf("%s: %" PRId64 " foreground voxels, %.1f s", set->out, found, now() - start);
    if (set->engine.patience)
        printf(", %.0f %% of the steps", 100 * (double)counts.steps / (double)counts.all);
    printf("\n");
    free(mask);
    nifti_free(&image);
}

const char *list(char *text, size_t size, const int32_t *values, int32_t count, const char *between)
{
    size_t used = 0;
    text[0] = 0;
    for (int32_t i = 0; i < count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%d", i ? between : "", values[i]);
    return text;
}

static void run_info(const mednca_model *model)
{
    static const char *const axes[] = {"sagittal", "coronal", "axial"};
    char scales[128], steps[128];
    mednca_facts f;
    mednca_about(model, &f);
    printf("scans         %d channel(s), cut into %s", f.modalities, axes[f.axes[0]]);
    for (int32_t i = 1; i < f.views; i++)
        printf(", %s", axes[f.axes[i]]);
    printf(" slices");
    if (f.context)
        printf(" that come with %d on each side", f.context);
    printf("\nclasses       %d, in the mask as", f.classes);
    for (int32_t i = 0; i < f.classes; i++)
        printf(" %d", f.values[i]);
    printf("\nrule          %d parameters, %d channels, %d hidden units, %s perception\n", f.parameters, f.channels,
           f.hidden, f.depthwise ? "depthwise" : "dense");
    printf("levels        downscaled by %s; steps %s\n", list(scales, sizeof scales, f.scales, f.levels, ", "),
           list(steps, sizeof steps, f.steps, f.levels, "+"));
    printf("runs          %d%s%s%s\n", f.ensemble, f.ensemble > 1 ? ", averaged" : "",
           f.smoothing ? "; neighbouring slices are averaged" : "",
           f.largest_component == 2 ? "; only the surest piece is kept"
           : f.largest_component    ? "; only the largest piece is kept"
                                    : "");
    printf("--int16       %s\n", f.has_range ? "possible" : "not possible: the model holds no ranges of its states");
    printf("instructions ");
    for (int32_t i = 0; mednca_instructions(i); i++)
        printf(" %s", mednca_instructions(i));
    printf(" (the first is taken)\ngzip          %s\n",
           nifti_has_gzip() ? "built in" : "not built in: scans and masks must be .nii");
}

/* ---- Arguments ---- */

/* Text -> whole number from low to high. */
static int64_t whole_number(const char *option, const char *text, int64_t low, int64_t high)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < low || value > high)
        die("%s: expected a whole number from %" PRId64 " to %" PRId64 ", got '%s'", option, low, high, text);
    return value;
}

static void read_size(settings *set, const char *text)
{
    char copy[64], *between;
    snprintf(copy, sizeof copy, "%s", text);
    between = strpbrk(copy, "xX");
    if (!between || strlen(text) >= sizeof copy)
        die("--size: expected height and width as 256x256, got '%s'", text);
    *between = 0;
    set->height = whole_number("--size", copy, 2, 16384);
    set->width = whole_number("--size", between + 1, 2, 16384);
}

static void read_steps(settings *set, const char *text)
{
    char copy[256];
    snprintf(copy, sizeof copy, "%s", text);
    set->levels = 0;
    for (char *part = strtok(copy, ","); part; part = strtok(NULL, ",")) {
        if (set->levels == MEDNCA_LEVELS)
            die("--steps: expected at most %d numbers, got '%s'", MEDNCA_LEVELS, text);
        set->engine.steps[set->levels++] = (int32_t)whole_number("--steps", part, 1, 100000);
    }
    if (!set->levels)
        die("--steps: expected a number for each level, as 64,64, got '%s'", text);
}

/* Option and its value -> settings; returns 0 where there is no such option, else how many words it took. */
static int read_option(settings *set, const char *option, const char *value)
{
    static const struct {
        const char *name;
        int valued;
    } known[] = {
        {"--out", 1},     {"--int16", 0},        {"--gate", 1},    {"--seed", 1},  {"--ensemble", 1},
        {"--threads", 1}, {"--force", 0},        {"--quiet", 0},   {"--bench", 0}, {"--info", 0},
        {"--hash", 0},    {"--instructions", 1}, {"--anytime", 1}, {"--size", 1},  {"--steps", 1},
    };
    size_t length = strcspn(option, "="), i = 0, count = sizeof known / sizeof *known;
    if (!strcmp(option, "-o"))
        option = "--out", length = 5;
    while (i < count && (strlen(known[i].name) != length || strncmp(known[i].name, option, length)))
        i++;
    if (i == count)
        return 0;
    const char *name = known[i].name;
    int words = 1;
    if (known[i].valued) {
        if (option[length] == '=')
            value = option + length + 1;
        else
            words = 2;
        if (!value)
            die("%s: a value must follow; see mednca-run --help", name);
    } else if (option[length])
        die("%s: takes no value, got '%s'", name, option + length + 1);

    if (!strcmp(name, "--out"))
        set->out = value;
    else if (!strcmp(name, "--int16"))
        set->engine.numbers = MEDNCA_INT16;
    else if (!strcmp(name, "--gate"))
        set->engine.gate = (int32_t)whole_number(name, value, 0, 10000);
    else if (!strcmp(name, "--anytime"))
        set->engine.patience = (int32_t)whole_number(name, value, 1, 100000);
    else if (!strcmp(name, "--seed"))
        set->engine.seed = (uint32_t)whole_number(name, value, INT64_MIN, INT64_MAX);
    else if (!strcmp(name, "--ensemble"))
        set->engine.ensemble = (int32_t)whole_number(name, value, 1, 10000);
    else if (!strcmp(name, "--threads"))
        set->threads = (int32_t)whole_number(name, value, 1, THREADS);
    else if (!strcmp(name, "--instructions"))
        set->engine.instructions = value;
    else if (!strcmp(name, "--size"))
        read_size(set, value);
    else if (!strcmp(name, "--steps"))
        read_steps(set, value);
    else if (!strcmp(name, "--force"))
        set->force = 1;
    else if (!strcmp(name, "--quiet"))
        set->quiet = 1;
    else if (!strcmp(name, "--bench"))
        set->bench = 1;
    else if (!strcmp(name, "--info"))
        set->info = 1;
    else
        set->bench = set->hash = 1;
    return words;
}

static void check_settings(settings *set)
{
    if (!set->model)
        die("expected MODEL and SCAN; see mednca-run --help");
    if (set->bench && set->info)
        die("--bench, --info: give one of them");
    if (set->bench || set->info) {
        if (set->scan || set->out)
            die("%s: no scan and no mask go with %s; leave it out", set->scan ? set->scan : set->out,
                set->bench ? "--bench" : "--info");
    } else if (!set->scan)
        die("expected a scan after the model; see mednca-run --help");
    else if (!set->out)
        die("-o: name the mask to write, as -o mask.nii.gz");
    else if (set->levels)
        die("--steps: a rule knows only the number of steps that it was trained for; --steps goes with --bench");
#ifdef MEDNCA_NO_THREADS
    if (set->threads > 1)
        die("--threads: this build has one thread, got %d; leave it out", set->threads);
#endif
    const char *wanted = set->engine.instructions;
    if (wanted) {
        char all[256] = "";
        for (int32_t i = 0; mednca_instructions(i); i++) {
            if (!strcmp(wanted, mednca_instructions(i)))
                return;
            snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", mednca_instructions(i));
        }
        die("--instructions: this machine and this build have %s; got '%s'", all, wanted);
    }
}

int main(int count, char **words)
{
    settings set = {.engine = {.numbers = MEDNCA_FP32, .gauge = 1, .gate = -1},
                    .threads = processors(),
                    .height = 256,
                    .width = 256};
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    int only_names = 0;
    for (int i = 0; i < 3; i++)
        signal(signals[i], stop);
    signal(SIGXFSZ, SIG_IGN); /* a file that grows too large is an error like others */
    for (int i = 1; i < count; i++) {
        const char *word = words[i];
        if (!only_names && (!strcmp(word, "-h") || !strcmp(word, "--help"))) {
            fputs(HELP, stdout);
            return fflush(stdout) ? 2 : 0;
        }
        if (!only_names && !strcmp(word, "--")) {
            only_names = 1;
        } else if (!only_names && word[0] == '-' && word[1]) {
            int taken = read_option(&set, word, words[i + 1]);
            if (!taken)
                die("%s: there is no such option; see mednca-run --help", word);
            i += taken - 1;
        } else if (!set.model)
            set.model = word;
        else if (!set.scan)
            set.scan = word;
        else
            die("%s: one scan at a time; the mask goes to -o", word);
    }
    if (count < 2) {
        fputs(HELP, stdout);
        return 0;
    }
    check_settings(&set);
    if (set.scan)
        check_out(&set);
    mednca_model *model = open_model(&set);
    if (set.bench)
        run_bench(model, &set);
    else if (set.info)
        run_info(model);
    else
        run_scan(model, &set);
    mednca_close(model);
    if (fflush(stdout))
        die("the standard output cannot be written to");
    return 0;
}
