/* What the files of mednca-run share. mednca-run.c has arguments, files and errors, segment.c threads and progress,
 * look_finer.c looks at scans of coarse voxels, look_lines.c at those with unusual lines of k-space, look_again.c has the
 * second look, bench.c the benchmark, nifti.c
 * scans and masks, mednca.c the engine. */
#ifndef MEDNCA_RUN_H
#define MEDNCA_RUN_H

#include "mednca.h"
#include "nifti.h"

enum { THREADS = 64 };

/* What was asked for. */
typedef struct {
    const char *model, *scan, *out;
    mednca_options engine;
    int32_t threads, force, quiet, bench, info, hash;
    int64_t height, width; /* of the slice of --bench */
    int32_t levels;        /* that --steps names */
} settings;

/* ---- mednca-run.c ---- */

/* Prints one line and ends the program with status 2; nothing half-written stays. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);

double megabytes(double bytes);

/* 64, 64 -> "64+64" in text. */
const char *list(char *text, size_t size, const int32_t *values, int32_t count, const char *between);

/* ---- segment.c ---- */

/* Seconds since some moment. */
double now(void);

/* What a thread does: rank 0 .. threads - 1. */
typedef void Work(void *what, int32_t rank, mednca_counts *counts);

/* Calls work(what, rank) for all ranks at the same time, returns when all are done, and adds up what they count. */
void in_parallel(int32_t count, Work *work, void *what, mednca_counts *counts);

int32_t processors(void);

/* Shows on stderr, from two seconds on and until the end, how much of total the threads have counted. 0: shows nothing.
 */
void begin_progress(int64_t total);
void end_progress(void);

/* Zeroed memory, or null where this machine does not have so much beside the bytes that are taken already. */
void *allocate(size_t size, size_t taken);

/* What a slice costs at most, in the unit of counts.all. */
int64_t cells_of_slice(const mednca_job *job);

/* The same of all slices along all axes of the model. */
int64_t cells_of_scan(const mednca_job *job);

/* Scan -> mask (X, Y, Z) in new memory, x fastest; or null and a line in message. */
uint8_t *segment(const mednca_model *model, const nifti_image *image, const settings *set, mednca_counts *counts,
                 char *message, size_t message_size);

/* What a model says of a scan that it has looked at once. */
typedef struct {
    uint8_t *mask, *first; /* first: of the voxel (0, 0, 0) on RAS+ axes */
    void *four;            /* where probabilities and pieces lie */
    float *shares;         /* the probabilities, laid out as the mask; null where nobody wanted them */
    int64_t strides[3], share_strides[4];
    int64_t at_border; /* voxels of the mask where the part of the scan ends that the model looks at */
} answer;

void forget(answer *a);

/* All but one piece of a mask removed, of a model that wants that. In the axes of the mask's memory, whose order decides
 * between pieces of one size: shape is along these. */
void one_piece(const mednca_facts *facts, const answer *a, const int64_t *shape);

/* Scan, and the file that it comes from, whose axes the mask has, or null: then those of the scan -> what the model says.
 * wanted: probabilities, too. */
int look(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set, int wanted,
         answer *a, mednca_counts *counts, char *message, size_t message_size);

/* ---- look_finer.c ---- */

/* Looks at a scan, drawn on between its slices where these are far apart, in all the ways that follow. Status 0 or 1. */
int look_closely(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set, answer *a,
                 mednca_counts *counts, char *message, size_t message_size);

/* ---- look_lines.c ---- */

/* Looks at a scan and, where lines of its k-space are stronger or weaker than in training, also with these brought back to
 * the usual: a becomes what the model is surest of, scan what it then sees, which voxels is to be freed of in the end, also
 * where this fails. wanted as in look(). Status 0 or 1. */
int look_at_lines(const mednca_model *model, mednca_scan *scan, const nifti_image *image, const settings *set, int wanted,
                  answer *a, float **voxels, mednca_counts *counts, char *message, size_t message_size);

/* ---- look_again.c ---- */

/* A scan, and voxels (c, x, y, z), x fastest, of another with the same spacing -> that one. */
mednca_scan in_memory(const mednca_scan *scan, const float *voxels, const int64_t shape[3]);

/* Values of one shape, x running fastest -> of another, in memory to be freed; those are freed. Null where there is too little. */
typedef float *Resample(float *values, const int64_t from[3], const int64_t to[3]);

/* What was said of a scan on another grid -> that of the scan itself: a, whose mask is there and laid out. image as in look().
 * Status 0, or 1 where there is too little memory. */
int bring_back(const mednca_model *model, const answer *seen, const int64_t seen_shape[3], Resample *how,
               const mednca_scan *scan, const nifti_image *image, answer *a);

/* Looks again, on the scan stretched to where its organ has the usual size, as long as that makes it more usual: a, what was
 * said at first, becomes what counts. Status 0 or 1. */
int look_again(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set, answer *a,
               mednca_counts *counts, char *message, size_t message_size);

/* ---- bench.c ---- */

void run_bench(const mednca_model *model, const settings *set);

#endif
