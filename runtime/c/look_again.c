/* See run.h: a second look at a scan whose organ has another size than in training. mednca/second_look.py says what for. */
#include "run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOKS = 4 };

/* Values (x, y, z), x running fastest -> resampled to another shape, in memory to be freed; values are freed. Null where there
 * is too little memory. */
static float *resampled(float *values, const int64_t from[3], const int64_t to[3])
{
    int64_t shape[3];
    memcpy(shape, from, sizeof shape);
    for (int axis = 0; axis < 3 && values; axis++) {
        if (shape[axis] == to[axis])
            continue;
        const int64_t others = shape[0] * shape[1] * shape[2] / shape[axis];
        float *next = allocate(sizeof(float) * (size_t)(others * to[axis]), 0);
        if (next)
            mednca_resize(values, shape, axis, to[axis], next);
        shape[axis] = to[axis];
        free(values);
        values = next;
    }
    return values;
}

mednca_scan in_memory(const mednca_scan *scan, const float *voxels, const int64_t shape[3])
{
    const int64_t x = sizeof(float), y = x * shape[0], z = y * shape[1];
    mednca_scan other = {.voxels = voxels, .type = MEDNCA_F32, .slope = 1,
                         .shape = {scan->shape[0], shape[0], shape[1], shape[2]}, .strides = {z * shape[2], x, y, z}};
    memcpy(other.spacing, scan->spacing, sizeof other.spacing);
    return other;
}

/* Scan, and by what its axes are to be stretched -> other, a scan in memory that `voxels` is to be freed of. Returns 1 where
 * there is too little. */
static int stretch(const mednca_scan *scan, const double by[3], mednca_scan *other, float **voxels)
{
    const int64_t *shape = scan->shape + 1, x = sizeof(float), old = shape[0] * shape[1] * shape[2];
    int64_t to[3];
    for (int axis = 0; axis < 3; axis++)
        to[axis] = mednca_stretched(shape[axis], by[axis]);
    const int64_t many = to[0] * to[1] * to[2];
    *voxels = allocate((size_t)(scan->shape[0] * many * x), 0);
    for (int64_t c = 0; c < scan->shape[0] && *voxels; c++) {
        float *values = allocate((size_t)(old * x), 0);
        if (values)
            mednca_values(scan, c, values);
        values = resampled(values, shape, to);
        if (values)
            memcpy(*voxels + c * many, values, (size_t)(many * x));
        else {
            free(*voxels);
            *voxels = NULL;
        }
        free(values);
    }
    *other = in_memory(scan, *voxels, to);
    return !*voxels;
}

int bring_back(const mednca_model *model, const answer *seen, const int64_t seen_shape[3], Resample *how,
               const mednca_scan *scan, const nifti_image *image, answer *a)
{
    mednca_facts facts;
    const int64_t *shape = scan->shape + 1, n = shape[0] * shape[1] * shape[2];
    const int64_t many = seen_shape[0] * seen_shape[1] * seen_shape[2];
    mednca_about(model, &facts);
    void *four = allocate(4 * (size_t)n * (size_t)(3 + facts.classes), 0);
    float *shares = four ? (float *)four + 3 * n : NULL; /* laid out as the mask of the file */
    const int64_t first = a->first - a->mask;
    for (int64_t k = 0; k < facts.classes && shares; k++) {
        float *values = allocate(sizeof(float) * (size_t)many, 0);
        if (values)
            memcpy(values, seen->shares + k * many, sizeof(float) * (size_t)many);
        values = values ? how(values, seen_shape, shape) : NULL;
        const float *from = values;
        for (int64_t z = 0; z < shape[2] && values; z++)
            for (int64_t y = 0; y < shape[1]; y++)
                for (int64_t x = 0; x < shape[0]; x++)
                    shares[k * n + first + x * a->strides[0] + y * a->strides[1] + z * a->strides[2]] = *from++;
        shares = values ? shares : NULL;
        free(values);
    }
    if (!shares) {
        free(four);
        return 1;
    }
    const int64_t apart[4] = {4 * n, 4 * a->strides[0], 4 * a->strides[1], 4 * a->strides[2]};
    mednca_decide(model, shape, shares + first, apart, a->first, a->strides);
    free(a->four);
    a->four = four;
    a->shares = shares + first;
    a->at_border = seen->at_border;
    one_piece(&facts, a, image ? image->shape : shape);
    return 0;
}

int look_again(const mednca_model *model, const mednca_scan *scan, const nifti_image *image, const settings *set,
               answer *a, mednca_counts *counts, char *message, size_t message_size)
{
    answer seen = *a;
    int64_t shape[3];
    double all[3] = {1, 1, 1}, next[3] = {1, 1, 1}, strange;
    int failed = 0, looks = 1;
    memcpy(shape, scan->shape + 1, sizeof shape);
    for (; looks < LOOKS && mednca_unusual(model, seen.first, shape, seen.strides, scan->spacing, next, &strange); looks++) {
        double after[3], found;
        mednca_scan other;
        float *voxels;
        answer again;
        if (stretch(scan, next, &other, &voxels)) {
            snprintf(message, message_size, "too little memory for a second look at the scan");
            failed = 1;
            break;
        }
        failed = look(model, &other, NULL, set, 1, &again, counts, message, message_size);
        free(voxels);
        if (failed)
            break;
        memcpy(after, next, sizeof after);
        mednca_unusual(model, again.first, other.shape + 1, again.strides, scan->spacing, after, &found);
        if (found < 0 || !(found < strange)) {
            forget(&again);
            break;
        }
        if (seen.mask != a->mask)
            forget(&seen);
        seen = again;
        memcpy(all, next, sizeof all);
        memcpy(shape, other.shape + 1, sizeof shape);
    }
    if (seen.mask == a->mask)
        return failed;
    if (!failed && bring_back(model, &seen, shape, resampled, scan, image, a)) {
        snprintf(message, message_size, "too little memory for the mask of a second look");
        failed = 1;
    }
    forget(&seen);
    if (!failed)
        fprintf(stderr,
                "mednca-run: warning: %s: the organ is larger or smaller here than in any training scan; the scan was "
                "stretched by %.2g x %.2g x %.2g (axes R, A, S) to its usual size and looked at again; check that the "
                "header tells the true spacing\n",
                set->scan, all[0], all[1], all[2]);
    return failed;
}
