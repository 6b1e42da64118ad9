/* For the tests: what nifti.c makes of a file.
 *
 *     show_scan SCAN MASK     prints one line, "channels X Y Z mm mm mm" in RAS+, and then the values as float32, z
 * fastest; writes a mask whose voxels count up from 0 to 250 again and again, x fastest in the file
 */
#include "nifti.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t read_file(void *from, void *bytes, size_t count)
{
    return fread(bytes, 1, count, from);
}

static int write_file(void *to, const void *bytes, size_t count)
{
    return fwrite(bytes, 1, count, to) != count;
}

static double value(const mednca_scan *s, const char *at)
{
    switch (s->type) {
    case MEDNCA_I8: return *(const int8_t *)at;
    case MEDNCA_U8: return *(const uint8_t *)at;
    case MEDNCA_I16: return *(const int16_t *)at;
    case MEDNCA_U16: return *(const uint16_t *)at;
    case MEDNCA_I32: return *(const int32_t *)at;
    case MEDNCA_U32: return *(const uint32_t *)at;
    case MEDNCA_F32: return (double)*(const float *)at;
    default: return *(const double *)at;
    }
}

static int show(const mednca_scan *s)
{
    const int64_t *n = s->shape, *step = s->strides;
    printf("%lld %lld %lld %lld %.17g %.17g %.17g\n", (long long)n[0], (long long)n[1], (long long)n[2],
           (long long)n[3], s->spacing[0], s->spacing[1], s->spacing[2]);
    for (int64_t c = 0; c < n[0]; c++)
        for (int64_t x = 0; x < n[1]; x++)
            for (int64_t y = 0; y < n[2]; y++)
                for (int64_t z = 0; z < n[3]; z++) {
                    const char *at = s->voxels;
                    double scaled = value(s, at + c * step[0] + x * step[1] + y * step[2] + z * step[3]) * s->slope;
                    float number = (float)(scaled + s->intercept);
                    fwrite(&number, sizeof number, 1, stdout);
                }
    return fflush(stdout);
}

static int count_up(const nifti_image *image, const char *path, char *message, size_t size)
{
    size_t voxels = (size_t)(image->shape[0] * image->shape[1] * image->shape[2]), length = strlen(path);
    uint8_t *mask = malloc(voxels);
    FILE *file = fopen(path, "wb");
    nifti_sink sink = {write_file, file};
    for (size_t i = 0; i < voxels; i++)
        mask[i] = (uint8_t)(i % 251);
    int failed = !file || nifti_write_mask(image, mask, path[length - 1] == 'z', &sink, message, size) || fclose(file);
    free(mask);
    return failed;
}

int main(int count, char **words)
{
    char message[MEDNCA_MESSAGE] = "expected SCAN MASK";
    nifti_image image;
    mednca_scan scan;
    FILE *file = count == 3 ? fopen(words[1], "rb") : NULL;
    if (file && !fseek(file, 0, SEEK_END)) {
        nifti_source source = {read_file, file, (uint64_t)ftell(file)};
        rewind(file);
        if (!nifti_read(&image, &source, message, sizeof message)) {
            nifti_scan(&image, &scan);
            int failed = show(&scan) || count_up(&image, words[2], message, sizeof message);
            nifti_free(&image);
            fclose(file);
            return failed;
        }
        fclose(file);
    }
    fprintf(stderr, "%s\n", message);
    return 2;
}
