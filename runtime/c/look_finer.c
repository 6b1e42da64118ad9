/* See run.h: looks at a scan of coarse voxels, drawn on between its slices. mednca/coarse.py says what for. */
#include "run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The lines of the scan, and then the size of its organ. */
static int look_at(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set, int wanted,
                   answer *a, mednca_counts *counts, char *message, size_t message_size)
{
    mednca_facts facts;
    mednca_scan shown = *scan;
    float *mended;
    mednca_about(model, &facts);
    int failed = look_at_lines(model, &shown, image, set, wanted, a, &mended, counts, message, message_size);
    if (!failed && facts.second_look)
        failed = look_again(model, &shown, image, set, a, counts, message, message_size);
    free(mended);
    return failed;
}

/* Memory for the channels of a scan of that shape, and some to work in; null where there is too little for both. */
static float *channels_of(const mednca_scan *scan, const int64_t shape[3], size_t work, void **memory)
{
    const double voxels = (double)scan->shape[0] * (double)shape[0] * (double)shape[1] * (double)shape[2];
    const size_t bytes = voxels < (double)(SIZE_MAX / 16) ? sizeof(float) * (size_t)voxels : SIZE_MAX / 4;
    float *found = allocate(bytes, 0);
    *memory = found && work < SIZE_MAX / 4 ? allocate(work, bytes) : NULL;
    if (*memory)
        return found;
    free(found);
    return NULL;
}

/* Scan -> other, the same drawn on along an axis to so many voxels, in memory that is to be freed; null where there is too
 * little. */
static float *draw(const mednca_model *model, const mednca_scan *scan, int32_t axis, int64_t length, mednca_scan *other)
{
    const int64_t *shape = scan->shape + 1, voxels = shape[0] * shape[1] * shape[2];
    const size_t work = (mednca_draw_size(model, scan) + 63) & ~(size_t)63;
    int64_t finer[3];
    void *memory;
    memcpy(finer, shape, sizeof finer);
    finer[axis] = length;
    float *found = channels_of(scan, finer, work + sizeof(float) * (size_t)voxels, &memory);
    if (!found)
        return NULL;
    const int64_t many = finer[0] * finer[1] * finer[2];
    float *values = (float *)((char *)memory + work);
    for (int64_t c = 0; c < scan->shape[0]; c++) {
        mednca_values(scan, c, values);
        mednca_draw(values, shape, axis, length, found + c * many, memory);
    }
    free(memory);
    *other = in_memory(scan, found, finer);
    other->spacing[axis] *= (double)shape[axis] / (double)length;
    return found;
}

/* Probabilities on the finer grid -> on that of the scan, in memory to be freed; the others are freed. */
static float *at_middles(float *values, const int64_t from[3], const int64_t to[3])
{
    const size_t many = (size_t)(to[0] * to[1] * to[2]);
    int32_t axis = 0;
    while (axis < 2 && from[axis] == to[axis])
        axis++;
    float *found = allocate(sizeof *found * many, 0);
    if (found)
        mednca_middles(values, from, axis, to[axis], found);
    free(values);
    return found;
}

/* A scan that is coarse along an axis by its spacing. */
static int look_between(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set,
                        int32_t axis, int64_t length, answer *a, mednca_counts *counts, char *message, size_t message_size)
{
    static const char *const names[] = {"R", "A", "S"};
    mednca_scan other;
    answer seen;
    memset(a, 0, sizeof *a);
    float *voxels = draw(model, scan, axis, length, &other);
    if (!voxels) {
        snprintf(message, message_size, "too little memory for the scan drawn on between its slices");
        return 1;
    }
    int failed = look_at(model, &other, NULL, set, 1, &seen, counts, message, message_size);
    free(voxels);
    if (failed) {
        forget(&seen);
        return 1;
    }
    a->strides[0] = 1;
    a->strides[1] = image->shape[0];
    a->strides[2] = image->shape[0] * image->shape[1];
    a->mask = allocate((size_t)(a->strides[2] * image->shape[2]), 0);
    a->first = a->mask ? nifti_turn_mask(image, a->mask, a->strides) : NULL;
    if (!a->mask || bring_back(model, &seen, other.shape + 1, at_middles, scan, image, a)) {
        snprintf(message, message_size, "too little memory for the mask of the scan that was drawn on");
        forget(a);
        failed = 1;
    }
    forget(&seen);
    if (!failed)
        fprintf(stderr,
                "mednca-run: warning: %s: the %" PRId64 " slices are %.3g mm apart (axis %s), which is coarse for this model; the "
                "scan was drawn on between them along what moves, as it does not show what lies there\n",
                set->scan, scan->shape[1 + axis], scan->spacing[axis], names[axis]);
    return failed;
}

int look_closely(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set, answer *a,
                 mednca_counts *counts, char *message, size_t message_size)
{
    const int64_t *shape = scan->shape + 1, many = shape[0] * shape[1] * shape[2];
    const size_t work = mednca_draw_size(model, scan);
    int32_t axis = -1;
    int64_t slices = 0;
    /* of a scan that is too large for the model look() tells */
    const int bears = work && mednca_work_size(model, scan, 1, message, message_size);
    const int64_t length = bears ? mednca_finer(model, scan, &axis) : 0;
    if (axis >= 0)
        return look_between(model, scan, image, set, axis, length, a, counts, message, message_size);
    mednca_scan other = *scan;
    void *memory;
    float *voxels = bears ? channels_of(scan, shape, work, &memory) : NULL;
    if (bears && !voxels) {
        snprintf(message, message_size, "too little memory to see whether the scan was interpolated");
        memset(a, 0, sizeof *a);
        return 1;
    }
    for (int64_t c = 0; c < scan->shape[0] && voxels; c++) {
        mednca_values(scan, c, voxels + c * many);
        const int64_t found = mednca_redraw(model, scan, voxels + c * many, memory);
        slices = found > slices ? found : slices;
    }
    if (voxels)
        free(memory);
    if (slices)
        other = in_memory(scan, voxels, shape);
    else {
        free(voxels);
        voxels = NULL;
    }
    const int failed = look_at(model, &other, image, set, 0, a, counts, message, message_size);
    free(voxels);
    if (!failed && slices)
        fprintf(stderr,
                "mednca-run: warning: %s: the scan was interpolated from %" PRId64 " slices; it was drawn on between them along "
                "what moves, as it does not show what lies there\n",
                set->scan, slices);
    return failed;
}
