/* NIfTI-1 and NIfTI-2 in one file (.nii, and .nii.gz where zlib is built in): scans in, masks out.
 *
 * Everything goes through the two small interfaces below, so that a file on a disk and bytes in memory are read by the
 * same code. What is read, and what a mask takes over from its scan, is what src/mednca/formats.py does through
 * nibabel; tests/runtime holds this file to it. Functions return 0, or 1 with one line for a person in message.
 */
#ifndef MEDNCA_NIFTI_H
#define MEDNCA_NIFTI_H

#include "mednca.h"

/* Where a file's bytes come from. read() returns how many it gave: fewer than asked for only at the end. */
typedef struct {
    size_t (*read)(void *from, void *bytes, size_t count);
    void *from;
    uint64_t size; /* bytes in all */
} nifti_source;

/* Where they go. write() returns 0 where it took all of them. */
typedef struct {
    int (*write)(void *to, const void *bytes, size_t count);
    void *to;
} nifti_sink;

/* A scan in memory. Voxels stay in the number type of the file, in the byte order of this machine; axes are the file's.
 */
typedef struct {
    void *voxels;            /* of nifti_free() */
    int32_t type;            /* as mednca_scan has it */
    int32_t axes;            /* of the grid as stored, 2 or 3 */
    int64_t shape[4];        /* X, Y, Z, channels */
    double slope, intercept; /* value = slope * number + intercept */
    double affine[3][4];     /* voxel index -> RAS+ mm */
    int32_t target[3];       /* of each axis: the axis of the world that it runs along, ... */
    int32_t sign[3];         /* ... and 1, or -1 where it runs against it */

    int32_t version, qform_code, sform_code, units; /* of the header, for the mask's */
    double pixdim[4], quatern[3], offset[3], rows[3][4];
} nifti_image;

/* 1 where .nii.gz can be read and written. */
int nifti_has_gzip(void);

int nifti_read(nifti_image *image, const nifti_source *source, char *message, size_t message_size);
void nifti_free(nifti_image *image);

/* The image as the engine wants it: channels first, axes turned and flipped to RAS+ by strides alone. */
void nifti_scan(const nifti_image *image, mednca_scan *scan);

/* Mask (X, Y, Z) in the file's axes, x fastest -> its first voxel and its strides in RAS+. */
uint8_t *nifti_turn_mask(const nifti_image *image, uint8_t *mask, int64_t strides[3]);

/* Mask (X, Y, Z), x fastest -> a file on the image's grid. */
int nifti_write_mask(const nifti_image *image, const uint8_t *mask, int gzip, const nifti_sink *sink, char *message,
                     size_t message_size);

#endif
