/* mednca: from the voxels of a scan to its mask, and the training of what does it. One C99 library, no dependency.
 *
 * A model is opened once from the bytes of its .safetensors file and then never changes: any number of threads may use
 * it. Nothing is allocated after that; the caller hands in the memory to work in. The library starts no thread: to use
 * several, call the same function from each, either for different slices, each with working memory of its own, or as a
 * team that shares the memory of one slice (rank 0 .. team - 1, all of them must call). Results never depend on that.
 *
 *     model = mednca_open(bytes, size, &options, message, sizeof message);
 *     work = calloc(1, mednca_work_size(model, &scan, 1, message, sizeof message));
 *     mednca_begin(model, &scan, work, &job, message, sizeof message);
 *     for (i = 0; i < job.slices; i++)
 *         mednca_slice(&job, i, work, 0, 1, mask, mask_strides, NULL, NULL, &counts);
 *
 * Of a model of several axes (facts.views), all slices along one are run before mednca_turn(&job, view) and those along the
 * next, and mednca_slice() needs memory for the probabilities, in which they are added up. So does a model that smooths
 * (facts.smoothing): after its last slice comes mednca_smooth(). A model that bears usual bias fields only, for which
 * mednca_field_size() is not 0, wants mednca_field() after mednca_begin(). Of one that knows the usual sizes of its organ
 * (facts.second_look), mednca_unusual() says whether to look again at the scan, resampled. Of one that knows what lines of
 * k-space are usual, for which mednca_mend_size() is not 0, mednca_mend() brings back the others in a scan, and
 * mednca_overlap() says whether the model is surer then. Of one that bears coarse voxels, for which mednca_draw_size() is not
 * 0, mednca_finer() says whether a scan is to be drawn on before all this; mednca_redraw() draws others on that once were.
 *
 * Functions that can fail return null, 0 bytes or a status other than 0, and put one line for a person into message.
 */
#ifndef MEDNCA_H
#define MEDNCA_H

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define MEDNCA_API __declspec(dllexport)
#elif defined(__GNUC__)
#define MEDNCA_API __attribute__((visibility("default")))
#else
#define MEDNCA_API
#endif

/* MEDNCA_VERSION: the newest model format that is read; MEDNCA_ABI: rises when a structure or a function here changes. */
enum { MEDNCA_VERSION = 7, MEDNCA_ABI = 8, MEDNCA_LEVELS = 8, MEDNCA_MODALITIES = 16, MEDNCA_CLASSES = 255, MEDNCA_MESSAGE = 256 };

/* Arithmetic of the cells. */
enum {
    MEDNCA_FP32, /* as PyTorch has it, to rounding */
    MEDNCA_INT16 /* the same bits on every machine; needs a model file that holds the ranges of its states */
};

/* Number types of voxels. */
enum {
    MEDNCA_I8, MEDNCA_U8, MEDNCA_I16, MEDNCA_U16, MEDNCA_I32, MEDNCA_U32, MEDNCA_F32, MEDNCA_F64
};

typedef struct mednca_model mednca_model;

typedef struct {
    int32_t numbers;              /* MEDNCA_FP32 or MEDNCA_INT16 */
    int32_t gauge;                /* 1: rewrite the rule with fewer multiplications where that is well conditioned; 0: do not */
    int32_t gate;                 /* >= 0: finer levels only where the coarse foreground, dilated by so many pixels, lies; -1: everywhere */
    int32_t ensemble;             /* runs with other fire masks to average; 0: the model's own number */
    int32_t patience;             /* > 0: a level of a slice ends when no pixel of its mask has flipped for so many steps, and, where
                                   * the mask is empty or full, half of its steps have been run; 0: all steps are run */
    int32_t signals;              /* 1: mednca_slice() also tells how sure the model is, see mednca_counts and mednca_job.spread */
    uint32_t seed;                /* names the random stream of the fire masks */
    int32_t steps[MEDNCA_LEVELS]; /* steps of each level; 0: the model's own number */
    const char *instructions;     /* one of mednca_instructions(); null: the best */
} mednca_options;

/* What a model is. */
typedef struct {
    int32_t modalities, context;                                            /* its input */
    int32_t views, axes[3];                                                 /* how many axes slices are cut across; which */
    int32_t image_channels, classes, channels, hidden, depthwise, levels;   /* its rule */
    int32_t scales[MEDNCA_LEVELS], steps[MEDNCA_LEVELS];
    int32_t ensemble, smoothing, largest_component, parameters;             /* largest_component: 2 for the surest one */
    uint8_t values[MEDNCA_CLASSES];                                         /* of each class, in the mask */
    int32_t second_look;                                                    /* whether mednca_unusual() can tell */
    int32_t numbers, has_range;                                             /* has_range: int16 is possible */
    double condition[MEDNCA_LEVELS];                                        /* of the rewrite; 0 where it is not used */
    char instructions[16];
} mednca_facts;

/* A scan: voxel (c, x, y, z) is at voxels + c strides[0] + x strides[1] + y strides[2] + z strides[3] bytes, and its value
 * is slope * number + intercept. Axes run to the right, to the front and up (RAS+); strides may be negative. */
typedef struct {
    const void *voxels;
    int32_t type;
    double slope, intercept;
    int64_t shape[4], strides[4];
    double spacing[3]; /* mm */
} mednca_scan;

/* A scan that has been measured; see mednca_begin(). Slices are cut across axis facts.axes[view]. */
typedef struct {
    const mednca_model *model;
    mednca_scan scan;
    int64_t first[3];                         /* where the part that the model looks at begins in the whole scan, see mednca_begin() */
    int64_t view;
    int64_t slices, rows, columns;            /* of that part */
    int64_t height, width;                    /* of a slice after resampling */
    int64_t grid_rows, grid_columns;          /* and after padding */
    int64_t top, left;                        /* where the slice lies in that */
    double low[MEDNCA_MODALITIES], high[MEDNCA_MODALITIES]; /* normalisation */
    int64_t field;                            /* 1 once mednca_field() has been called */
    /* Set by the caller after mednca_begin(), with options.signals: floats, (x, y, z) at spread_strides[1 .. 3] bytes. There is
     * written how far the samples of the foreground's probability lie apart (standard deviation): the ends of all runs, with
     * other fire masks and along other axes; of a model with one run, up to four states of the last quarter of its steps.
     * With several axes there must be two such arrays, spread_strides[0] bytes apart, for mednca_slice() to count spread: the
     * second is for the means of the axes. Else null will do. */
    float *spread;
    int64_t spread_strides[4];
} mednca_job;

typedef struct {
    int64_t cells;     /* updates of cells that were computed */
    int64_t all;       /* cells times steps: what would have been looked at without fire masks, gate and patience */
    int64_t steps;     /* of these, those of steps that were run: less than all where levels ended early */
    int64_t saturated; /* int16: numbers that did not fit their range; 0 in fp32 */
    int64_t broken;    /* logits that are not finite: the model does not work on this scan, the mask is worthless */
    /* With options.signals, of all runs and slices. Pixels are those of the slices as the model sees them: */
    int64_t flips;     /* how often a pixel's value in the mask changed in the last quarter of the finest level's steps */
    int64_t fine;      /* pixels of the foreground in the end */
    int64_t coarse;    /* and at the end of the level before; 0 where there is none */
    int64_t agree;     /* in both, and of the same class */
    /* and over the scan's voxels, in units of 2^-24: */
    int64_t mean;      /* the probability of the foreground */
    int64_t spread;    /* how far its samples lie apart; see mednca_job.spread */
    int64_t axes;      /* and its means along each axis */
} mednca_counts;

/* MEDNCA_ABI of the library. */
MEDNCA_API int32_t mednca_abi(void);

/* Names of the instruction sets that this library has and this machine runs, best first; null after the last. */
MEDNCA_API const char *mednca_instructions(int32_t index);

/* Contents of a model file -> model, or null. The bytes are not needed afterwards. options may be null: fp32, rewritten,
 * no gate, seed 0, all else the model's own. */
MEDNCA_API mednca_model *mednca_open(const void *bytes, size_t size, const mednca_options *options, char *message,
                                     size_t message_size);
MEDNCA_API void mednca_close(mednca_model *model);
MEDNCA_API void mednca_about(const mednca_model *model, mednca_facts *facts);

/* Bytes that a team of so many works in for this scan, along whatever axis; 0 where the model cannot take it. Zero them
 * before the first use, and where the job has been turned since the last. */
MEDNCA_API size_t mednca_work_size(const mednca_model *model, const mednca_scan *scan, int32_t team, char *message,
                                   size_t message_size);

/* Measures a scan: sizes along the first axis, and what its values are normalised with. Status 0 or 1.
 *
 * Of a model with a region of interest that part of the scan alone is measured, cut and segmented. Mask and probabilities
 * are those of the whole scan all the same; outside of that part nothing is ever written, so zero them first. */
MEDNCA_API int mednca_begin(const mednca_model *model, const mednca_scan *scan, void *work, mednca_job *job, char *message,
                            size_t message_size);

/* Bytes that mednca_field() works in, and that the job then needs to the end; 0 where the model needs no such call. */
MEDNCA_API size_t mednca_field_size(const mednca_model *model, const mednca_scan *scan);

/* After mednca_begin(): a bias field that is beyond the usual is brought back to it, for a model that knows it (field.h); for
 * others nothing happens. Without it mednca_slice() counts every pixel of such a model as broken. */
MEDNCA_API void mednca_field(mednca_job *job, void *memory);

/* The same scan cut across another axis of the model: view 0 .. facts.views - 1. spread stays. */
MEDNCA_API void mednca_turn(mednca_job *job, int32_t view);

/* One slice. Its part of the mask, and of the probabilities of the classes unless null, is written: mask voxel (x, y, z)
 * at mask_strides[0 .. 2] bytes, probability (k, x, y, z) at probability_strides[0 .. 3] bytes. counts are added to.
 * smoothing is left to mednca_smooth(), largest_component, after that, to mednca_largest_component() or
 * mednca_surest_component().
 *
 * With several views probability must not be null: view 0 writes its share of the average there, later ones add theirs, so
 * they come in order, each with all of its slices. The last one writes the mask. */
MEDNCA_API void mednca_slice(const mednca_job *job, int64_t slice, void *work, int32_t rank, int32_t team, uint8_t *mask,
                             const int64_t *mask_strides, float *probability, const int64_t *probability_strides,
                             mednca_counts *counts);

/* Mask and probabilities, as mednca_slice() has left them -> those of the averages of neighbouring slices along the model's
 * first axis, with weights 1, 2 and 1, facts.smoothing times. A slice at an end is its own neighbour there. */
MEDNCA_API void mednca_smooth(const mednca_job *job, uint8_t *mask, const int64_t *mask_strides, float *probability,
                              const int64_t *probability_strides);

/* Mask (X, Y, Z) -> the same with all but the largest piece of its foreground (joined by faces) removed.
 * memory: 4 bytes for each voxel, zeroed or not. */
MEDNCA_API void mednca_largest_component(uint8_t *mask, const int64_t *shape, const int64_t *strides, int32_t *memory);

/* The same for the surest piece: that of the highest mean probability of the foreground, among those that are at least a
 * quarter as large as the largest. probability: (classes, X, Y, Z) at probability_strides[0 .. 3] bytes.
 * memory: 12 bytes for each voxel, zeroed or not. */
MEDNCA_API void mednca_surest_component(uint8_t *mask, const int64_t *shape, const int64_t *strides, const float *probability,
                                        const int64_t *probability_strides, int32_t classes, double *memory);

/* ---- A second look: see sizes.h ---- */

/* Mask (X, Y, Z) of a scan with this spacing (mm) -> 1 where its organ is larger or smaller than any in training; else 0.
 * stretch: by what each axis of the scan has been stretched -> by what it is to be, for the organ to have the usual size.
 * strangeness: of the size, 1 is at the limit; -1 where it cannot be told. */
MEDNCA_API int mednca_unusual(const mednca_model *model, const uint8_t *mask, const int64_t *shape, const int64_t *strides,
                              const double *spacing, double stretch[3], double *strangeness);

/* Voxels along an axis, and by what it is stretched -> voxels then. */
MEDNCA_API int64_t mednca_stretched(int64_t length, double by);

/* Values of a channel of a scan -> out, x running fastest. */
MEDNCA_API void mednca_values(const mednca_scan *scan, int64_t channel, float *out);

/* from: (X, Y, Z), x running fastest -> to: the same with `length` values along an axis, at most some four times fewer, between
 * which is drawn straight; the ends stay where they are. */
MEDNCA_API void mednca_resize(const float *from, const int64_t shape[3], int32_t axis, int64_t length, float *to);

/* Probabilities of the classes (k, x, y, z) at probability_strides[0 .. 3] bytes -> the mask that they make. */
MEDNCA_API void mednca_decide(const mednca_model *model, const int64_t *shape, const float *probability,
                              const int64_t *probability_strides, uint8_t *mask, const int64_t *mask_strides);

/* ---- Lines of k-space: see spectrum.h ---- */

/* Bytes that mednca_mend() works in for this scan; 0 where the model does not know what lines are usual. */
MEDNCA_API size_t mednca_mend_size(const mednca_model *model, const mednca_scan *scan);

/* Values of a channel of a whole scan, (X, Y, Z), x running fastest -> the same with lines of k-space that are stronger or
 * weaker than in any training scan brought back to the usual; sign: 1, or -1 to turn them over, too. Returns how many there
 * were; where there are none, all stay as they are. */
MEDNCA_API int64_t mednca_mend(const mednca_model *model, int64_t channel, float *values, const int64_t shape[3], int32_t sign,
                               void *memory);

/* Probabilities of the classes (k, x, y, z) at probability_strides[0 .. 3] bytes -> the largest Dice that a mask can be
 * expected to have, if they are right. */
MEDNCA_API double mednca_overlap(const mednca_model *model, const int64_t *shape, const float *probability,
                                 const int64_t *probability_strides);

/* ---- Coarse voxels: see coarse.h ---- */

/* Scan -> the axis along which it is coarse for the model by its spacing, or -1, and how many voxels it is to have along it, or
 * 0: those of mednca_draw(), with a spacing that keeps the field of view. */
MEDNCA_API int64_t mednca_finer(const mednca_model *model, const mednca_scan *scan, int32_t *axis);

/* Bytes that mednca_draw() and mednca_redraw() work in for this scan; 0 where the model sees coarse scans as they are. */
MEDNCA_API size_t mednca_draw_size(const mednca_model *model, const mednca_scan *scan);

/* Values of a channel (X, Y, Z), x running fastest -> drawn on along an axis to so many voxels. */
MEDNCA_API void mednca_draw(const float *from, const int64_t shape[3], int32_t axis, int64_t length, float *to, void *memory);

/* The way back, for probabilities: values at so many places along an axis, each in the middle of a slice. */
MEDNCA_API void mednca_middles(const float *from, const int64_t shape[3], int32_t axis, int64_t length, float *to);

/* Values of a channel (X, Y, Z), x running fastest, of a scan that is not coarse by its spacing -> drawn on between the slices
 * that it was interpolated from, where these are far apart. Returns how many there are; 0 where it stays as it is. */
MEDNCA_API int64_t mednca_redraw(const mednca_model *model, const mednca_scan *scan, float *values, void *memory);

/* ---- Single levels: for tests, benchmarks and calibration ---- */

/* Bytes that a team of so many works in for a grid of this size. Zero them before the first use. */
MEDNCA_API size_t mednca_level_size(const mednca_model *model, int64_t height, int64_t width, int32_t team);

/* State float32 (H, W, channels), in place -> after the steps first .. first + steps - 1 of a level. gate: bytes (H, W),
 * cells that may fire, or null. In int16 the state is rounded to the model's units before the first step. */
MEDNCA_API void mednca_level(const mednca_model *model, int32_t level, float *state, int64_t height, int64_t width,
                             int32_t first, int32_t steps, uint32_t seed, int64_t item, const uint8_t *gate, void *work,
                             int32_t rank, int32_t team, mednca_counts *counts);

/* ---- Training: see train.h ---- */

typedef struct {
    int64_t batch, height, width, channels, hidden, steps, depthwise;
} mednca_shape;

MEDNCA_API void mednca_fires(int64_t batch, int64_t height, int64_t width, int64_t steps, int64_t seed, int64_t level,
                             uint32_t threshold, const int64_t *items, const int64_t *rows, const int64_t *columns,
                             uint8_t *fires, int64_t *counts);
MEDNCA_API int mednca_forward(const mednca_shape *shape, float *state, const uint8_t *fires, const float *filters,
                              const float *views, const float *w1, const float *b1, const float *w2, float *kept);
MEDNCA_API int mednca_backward(const mednca_shape *shape, float *state, float *d_state, const uint8_t *fires,
                               const int64_t *counts, const float *kept, const float *filters_t, const float *w1,
                               const float *b1, const float *w1_t, const float *w2_t, float *d_filters, float *d_views,
                               float *d_w1, float *d_b1, float *d_w2);

/* The same with products of bfloat16 numbers, see train16.h; kept is of such numbers. Where the machine has no instructions
 * for them, mednca_has_bfloat16() is 0 and these return 2. */
MEDNCA_API int mednca_has_bfloat16(void);
MEDNCA_API int mednca_forward16(const mednca_shape *shape, float *state, const uint8_t *fires, const float *filters,
                                const float *views, const float *w1, const float *b1, const float *w2, uint16_t *kept);
MEDNCA_API int mednca_backward16(const mednca_shape *shape, float *state, float *d_state, const uint8_t *fires,
                                 const int64_t *counts, const uint16_t *kept, const float *filters_t, const float *w1,
                                 const float *b1, const float *w1_t, const float *w2_t, float *d_filters, float *d_views,
                                 float *d_w1, float *d_b1, float *d_w2);

#endif
