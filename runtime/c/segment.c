/* See run.h: from a scan in memory to its mask, on several threads, with progress. */
#include "run.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#ifndef MEDNCA_NO_THREADS
#include <pthread.h>
#endif

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Progress: written from a timer's signal, so that it also moves inside a slice ---- */

static mednca_counts counted[THREADS]; /* by each thread that runs now */

static struct {
    volatile int64_t total, done; /* of counts.all; done: by threads that have ended */
    double start;
    int terminal, shown, tenth;
} progress;

static char *put_text(char *to, const char *text)
{
    while (*text)
        *to++ = *text++;
    return to;
}

static char *put_number(char *to, int64_t value, int least_digits)
{
    char reversed[24];
    int count = 0;
    do
        reversed[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count < least_digits)
        reversed[count++] = '0';
    while (count)
        *to++ = reversed[--count];
    return to;
}

/* Calls only what a signal handler may. */
static void show_progress(int number)
{
    (void)number;
    int64_t done = progress.done, total = progress.total;
    for (int i = 0; i < THREADS; i++)
        done += ((volatile mednca_counts *)counted)[i].all;
    double passed = now() - progress.start;
    if (total <= 0 || done <= 0 || done > total || passed < 2)
        return;
    int percent = (int)(100 * (double)done / (double)total), tenth = percent / 10;
    if (!progress.terminal && tenth == progress.tenth) /* a log wants few lines */
        return;
    progress.tenth = tenth;
    int64_t left = (int64_t)(passed * (double)(total - done) / (double)done + 0.5);
    char line[128], *to = put_text(line, progress.terminal ? "\rmednca-run: " : "mednca-run: ");
    to = put_number(to, percent, 1);
    to = put_number(put_text(to, " %, about "), left / 60, 1);
    to = put_number(put_text(to, ":"), left % 60, 2);
    to = put_text(to, progress.terminal ? " min left   " : " min left\n");
    progress.shown = 1;
    if (write(STDERR_FILENO, line, (size_t)(to - line)) < 0)
        progress.total = 0; /* nobody listens */
}

void begin_progress(int64_t total)
{
    progress.start = now();
    progress.terminal = isatty(STDERR_FILENO);
    progress.shown = progress.tenth = 0;
    progress.done = 0;
    progress.total = total;
    struct sigaction action = {.sa_handler = show_progress, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval every = {{1, 0}, {1, 0}};
    if (total)
        setitimer(ITIMER_REAL, &every, NULL);
}

void end_progress(void)
{
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
    progress.total = 0;
    if (progress.shown && progress.terminal)
        fputs("\r                                          \r", stderr);
}

/* ---- Threads ---- */

#ifndef MEDNCA_NO_THREADS
typedef struct {
    Work *work;
    void *what;
    int32_t rank;
} errand;

static void *run_errand(void *from)
{
    errand *e = from;
    e->work(e->what, e->rank, &counted[e->rank]);
    return NULL;
}
#endif

void in_parallel(int32_t count, Work *work, void *what, mednca_counts *counts)
{
#ifndef MEDNCA_NO_THREADS
    errand errands[THREADS];
    pthread_t threads[THREADS];
    for (int32_t i = 1; i < count; i++) { /* a team waits for all of its members, so that none can be missing */
        errands[i] = (errand){work, what, i};
        if (pthread_create(&threads[i], NULL, run_errand, &errands[i]))
            die("--threads: this machine did not start %d threads; give fewer", count);
    }
#endif
    work(what, 0, &counted[0]);
#ifndef MEDNCA_NO_THREADS
    for (int32_t i = 1; i < count; i++)
        pthread_join(threads[i], NULL);
#endif
    for (int32_t i = 0; i < count; i++) {
        counts->cells += counted[i].cells;
        counts->all += counted[i].all;
        counts->steps += counted[i].steps;
        counts->saturated += counted[i].saturated;
        counts->broken += counted[i].broken;
        progress.done += counted[i].all;
        memset(&counted[i], 0, sizeof counted[i]);
    }
}

int32_t processors(void)
{
#ifdef MEDNCA_NO_THREADS
    return 1;
#else
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > THREADS ? THREADS : (int32_t)count;
#endif
}

/* ---- Segmenting ---- */

void *allocate(size_t size, size_t taken)
{
    double there = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    return (double)size + (double)taken > there ? NULL : calloc(1, size);
}

int64_t cells_of_slice(const mednca_job *job)
{
    mednca_facts facts;
    mednca_about(job->model, &facts);
    int64_t cells = 0;
    for (int32_t i = 0; i < facts.levels; i++)
        cells += job->grid_rows / facts.scales[i] * (job->grid_columns / facts.scales[i]) * facts.steps[i];
    return cells * facts.ensemble;
}

/* A scan on its way to a mask. While there are slices enough, each thread takes its own; the rest they do together. */
typedef struct {
    const mednca_job *job;
    void *memory[THREADS]; /* of each thread; null where it has no slices of its own */
    int32_t threads;
    size_t alone, next; /* slices up to alone are taken one by one */
    int64_t together;   /* the one that all work on */
    size_t sizes[THREADS];
    uint8_t *mask;
    void *even;    /* where the scan lies without its field, for a model that wants it so; else null */
    int64_t at_border; /* voxels of the mask where the part ends that the model looks at */
    float *shares; /* the probabilities, of a model that needs them: of several views, or one that smooths; else null */
    int64_t strides[3], share_strides[4];
} labour;

static void take_slices(void *what, int32_t rank, mednca_counts *counts)
{
    labour *l = what;
    size_t i;
    while ((i = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED)) < l->alone)
        mednca_slice(l->job, (int64_t)i, l->memory[rank], 0, 1, l->mask, l->strides, l->shares, l->share_strides, counts);
}

static void share_slice(void *what, int32_t rank, mednca_counts *counts)
{
    labour *l = what;
    mednca_slice(l->job, l->together, l->memory[0], rank, l->threads, l->mask, l->strides, l->shares, l->share_strides,
                 counts);
}

static int reserve(labour *l, const mednca_model *model, const mednca_scan *scan, size_t taken, char *message,
                   size_t message_size)
{
    size_t sizes[2] = {mednca_work_size(model, scan, 1, message, message_size),
                       mednca_work_size(model, scan, l->threads, message, message_size)};
    if (!sizes[0] || !sizes[1])
        return 1;
    for (int32_t i = 0; i < (l->alone ? l->threads : 1); i++) {
        size_t size = i ? sizes[0] : sizes[1];
        l->memory[i] = allocate(size, taken);
        l->sizes[i] = size;
        taken += size;
        if (!l->memory[i]) {
            snprintf(message, message_size, "%.0f MB of memory are needed, which this machine does not have%s",
                     megabytes((double)taken), l->threads > 1 ? "; give --threads 1" : "");
            return 1;
        }
    }
    return 0;
}

/* Slices that threads take one by one; what is left over they share. */
static size_t slices_alone(int64_t slices, int32_t threads)
{
    return (size_t)(slices - slices % threads);
}

int64_t cells_of_scan(const mednca_job *job)
{
    mednca_facts facts;
    mednca_about(job->model, &facts);
    int64_t cells = 0;
    for (int32_t view = 0; view < facts.views; view++) {
        mednca_job turned = *job;
        mednca_turn(&turned, view);
        cells += turned.slices * cells_of_slice(&turned);
    }
    return cells;
}

/* Voxels of the mask where it ends only because the part of the scan ends that the model looks at. */
static int64_t count_at_border(const labour *l, const mednca_scan *whole)
{
    const mednca_job *j = l->job;
    const int64_t *first = j->first, *size = j->scan.shape + 1;
    int64_t found = 0;
    for (int axis = 0; axis < 3; axis++)
        for (int end = 0; end < 2; end++) {
            const int a = axis == 0 ? 1 : 0, b = axis == 2 ? 1 : 2;
            const int64_t at = first[axis] + (end ? size[axis] - 1 : 0);
            if (at == (end ? whole->shape[1 + axis] - 1 : 0))
                continue; /* the scan ends there too */
            for (int64_t y = first[a]; y < first[a] + size[a]; y++)
                for (int64_t x = first[b]; x < first[b] + size[b]; x++)
                    found += l->mask[at * l->strides[axis] + y * l->strides[a] + x * l->strides[b]] != 0;
        }
    return found;
}

static int run_slices(labour *l, const mednca_model *model, const mednca_scan *scan, int32_t views, const settings *set,
                      mednca_counts *counts, char *message, size_t message_size)
{
    mednca_job job;
    if (mednca_begin(model, scan, l->memory[0], &job, message, message_size))
        return 1;
    if (l->even)
        mednca_field(&job, l->even);
    l->job = &job;
    begin_progress(set->quiet ? 0 : cells_of_scan(&job));
    for (int32_t view = 0; view < views; view++) {
        if (view) {
            mednca_turn(&job, view);
            for (int32_t i = 0; i < l->threads && l->memory[i]; i++)
                memset(l->memory[i], 0, l->sizes[i]);
        }
        l->next = 0;
        l->alone = slices_alone(job.slices, l->threads);
        if (l->alone)
            in_parallel(l->threads, take_slices, l, counts);
        for (l->together = (int64_t)l->alone; l->together < job.slices; l->together++)
            in_parallel(l->threads, share_slice, l, counts);
    }
    end_progress();
    if (!counts->broken) {
        if (l->shares)
            mednca_smooth(&job, l->mask, l->strides, l->shares, l->share_strides);
        l->at_border = count_at_border(l, scan);
        return 0;
    }
    snprintf(message, message_size,
             "the model's answer is not finite for %" PRId64
             " pixels, so there is no mask; is it the kind of scan that "
             "it was trained on?",
             counts->broken);
    return 1;
}

void forget(answer *a)
{
    free(a->mask);
    free(a->four);
    memset(a, 0, sizeof *a);
}

void one_piece(const mednca_facts *facts, const answer *a, const int64_t *shape)
{
    const int64_t strides[3] = {1, shape[0], shape[0] * shape[1]}, n = strides[2] * shape[2];
    const int64_t apart[4] = {4 * n, 4 * strides[0], 4 * strides[1], 4 * strides[2]};
    if (facts->largest_component == 2) /* doubles for 3 n numbers come first */
        mednca_surest_component(a->mask, shape, strides, (float *)a->four + 3 * n, apart, facts->classes, a->four);
    else if (facts->largest_component)
        mednca_largest_component(a->mask, shape, strides, a->four);
}

int look(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set, int wanted,
                answer *a, mednca_counts *counts, char *message, size_t message_size)
{
    mednca_facts facts;
    const int64_t *shape = image ? image->shape : scan->shape + 1;
    const int64_t strides[3] = {1, shape[0], shape[0] * shape[1]};
    const size_t voxels = (size_t)(strides[2] * shape[2]);
    mednca_about(model, &facts);
    memset(a, 0, sizeof *a);
    labour l = {.threads = set->threads};
    for (int32_t view = 0; view < facts.views; view++) {
        size_t alone = slices_alone(scan->shape[1 + facts.axes[view]], set->threads);
        l.alone = alone > l.alone ? alone : l.alone;
    }
    /* 4 bytes of each voxel: its piece, or its probabilities, which are not needed any more when the largest is looked for,
     * if nobody else wants them; for the surest they are, and 12 more */
    const int surest = facts.largest_component == 2, shares = facts.views > 1 || facts.smoothing || surest || wanted;
    const size_t before = surest ? 3 : wanted && facts.largest_component ? 1 : 0;
    const size_t numbers = before + (shares ? (size_t)facts.classes : facts.largest_component ? 1 : 0);
    a->mask = allocate(voxels, 0);
    const int fits = 4.0 * (double)voxels * (double)numbers < (double)SIZE_MAX / 2;
    a->four = a->mask && numbers && fits ? allocate(4 * voxels * numbers, voxels) : NULL;
    const size_t bytes = mednca_field_size(model, scan);
    l.even = bytes ? allocate(bytes, voxels + 4 * voxels * numbers) : NULL;
    int failed = !a->mask || (numbers && !a->four) || (bytes && !l.even);
    if (failed)
        snprintf(message, message_size, "too little memory for the mask%s", bytes ? " and the scan without its field" : "");
    failed = failed || reserve(&l, model, scan, voxels + 4 * voxels * numbers + bytes, message, message_size);
    if (!failed) {
        memcpy(l.strides, strides, sizeof strides);
        l.mask = image ? nifti_turn_mask(image, a->mask, l.strides) : a->mask;
        if (shares)
            l.shares = (float *)a->four + before * voxels + (l.mask - a->mask);
        l.share_strides[0] = 4 * (int64_t)voxels;
        for (int i = 0; i < 3; i++)
            l.share_strides[1 + i] = 4 * l.strides[i];
        failed = run_slices(&l, model, scan, facts.views, set, counts, message, message_size);
        a->first = l.mask;
        a->at_border = l.at_border;
        a->shares = l.shares;
        memcpy(a->strides, l.strides, sizeof a->strides);
        memcpy(a->share_strides, l.share_strides, sizeof a->share_strides);
    }
    if (!failed)
        one_piece(&facts, a, shape);
    for (int32_t i = 0; i < l.threads; i++)
        free(l.memory[i]);
    free(l.even);
    if (failed)
        forget(a);
    return failed;
}

uint8_t *segment(const mednca_model *model, const nifti_image *image, const settings *set, mednca_counts *counts,
                 char *message, size_t message_size)
{
    mednca_scan scan;
    mednca_facts facts;
    answer a;
    memset(counts, 0, sizeof *counts);
    nifti_scan(image, &scan);
    mednca_about(model, &facts);
    if (scan.shape[0] != facts.modalities) {
        snprintf(message, message_size, "this model takes scans of %d channel(s), got %" PRId64 "%s", facts.modalities,
                 scan.shape[0], facts.modalities > 1 ? "; join them along the fourth axis of one file" : "");
        return NULL;
    }
    const int failed = look_closely(model, &scan, image, set, &a, counts, message, message_size);
    free(a.four);
    if (failed)
        free(a.mask);
    else if (a.at_border)
        fprintf(stderr,
                "mednca-run: warning: %s: the mask reaches the border of the part of the scan that the model looks at; "
                "the organ may go on beyond it\n",
                set->scan);
    return failed ? NULL : a.mask;
}
