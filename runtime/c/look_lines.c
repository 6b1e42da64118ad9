/* See run.h: looks at a scan with lines of k-space that no training scan has. mednca/spectrum.py says what for. */
#include "run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* By how much the overlap to be expected must be better for a mended scan to count. */
#define GAIN 0.02

/* Scan -> other, the same with its unusual lines brought back, and turned over where sign is -1, in memory that `voxels` is to
 * be freed of. Returns how many there were, or -1 where there is too little memory. */
static int64_t mend(const mednca_model *model, const mednca_scan *scan, int32_t sign, mednca_scan *other, float **voxels)
{
    const int64_t *shape = scan->shape + 1, many = shape[0] * shape[1] * shape[2];
    const double bytes = (double)sizeof(float) * (double)scan->shape[0] * (double)many;
    *voxels = bytes < (double)(SIZE_MAX / 2) ? allocate((size_t)bytes, 0) : NULL;
    void *memory = *voxels ? allocate(mednca_mend_size(model, scan), (size_t)bytes) : NULL;
    int64_t lines = memory ? 0 : -1;
    for (int64_t c = 0; c < scan->shape[0] && memory; c++) {
        mednca_values(scan, c, *voxels + c * many);
        lines += mednca_mend(model, c, *voxels + c * many, shape, sign, memory);
    }
    free(memory);
    *other = in_memory(scan, *voxels, shape);
    return lines;
}

int look_at_lines(const mednca_model *model, mednca_scan *scan, const nifti_image *image, const settings *set, int wanted,
                  answer *a, float **voxels, mednca_counts *counts, char *message, size_t message_size)
{
    const mednca_scan whole = *scan;
    const int64_t *shape = whole.shape + 1;
    mednca_scan other;
    float *mended = NULL;
    int64_t lines = 0, changed = 0;
    memset(a, 0, sizeof *a);
    *voxels = NULL;
    /* of a scan that is too large for the model look() tells */
    if (mednca_mend_size(model, &whole) && mednca_work_size(model, &whole, 1, message, message_size))
        lines = mend(model, &whole, 1, &other, &mended);
    int failed = lines >= 0 && look(model, &whole, image, set, wanted || lines > 0, a, counts, message, message_size);
    const int all_usual = failed || lines <= 0;
    double least = all_usual ? 0 : mednca_overlap(model, shape, a->shares, a->share_strides) + GAIN;
    for (int32_t sign = 1; sign >= -1 && !failed && !all_usual; sign -= 2) {
        answer again;
        if (sign < 0)
            lines = mend(model, &whole, sign, &other, &mended);
        if (lines < 0)
            break;
        failed = look(model, &other, image, set, 1, &again, counts, message, message_size);
        const double overlap = failed ? 0 : mednca_overlap(model, shape, again.shares, again.share_strides);
        if (overlap > least) {
            forget(a);
            free(*voxels);
            *a = again;
            *voxels = mended;
            *scan = other;
            mended = NULL;
            changed = lines;
            least = overlap;
        } else if (!failed)
            forget(&again);
        free(mended);
        mended = NULL;
    }
    free(mended);
    if (lines < 0) {
        snprintf(message, message_size, "too little memory for the scan with its lines of k-space brought back");
        failed = 1;
    }
    if (!failed && changed)
        fprintf(stderr,
                "mednca-run: warning: %s: %" PRId64 " line(s) of k-space are stronger or weaker here than in training scans, as "
                "with ghosts or stripes; the scan was looked at with them brought back to the usual, which makes the model "
                "surer\n",
                set->scan, changed);
    return failed;
}
