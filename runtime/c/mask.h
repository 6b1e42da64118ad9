/* What is done to a mask when all of its slices are there. Part of mednca.c. */

/* Probabilities of a voxel, `step` bytes apart -> its value in the mask. */
static uint8_t value_of(const mednca_model *m, const char *shares, int64_t step)
{
    float sum = 0, most = 0;
    int64_t best = 0;
    for (int64_t k = 0; k < m->facts.classes; k++) {
        float share;
        memcpy(&share, shares + k * step, 4);
        sum += share;
        best = k && share > most ? k : best;
        most = k && !(share > most) ? most : share;
    }
    return sum > (float)m->threshold ? m->facts.values[best] : 0;
}

/* ---- Smooth ---- */

void mednca_smooth(const mednca_job *job, uint8_t *mask, const int64_t *mask_strides, float *probability,
                   const int64_t *probability_strides)
{
    const mednca_model *m = job->model;
    const mednca_facts *f = &m->facts;
    const int axis = f->axes[0], rows = axis == 0 ? 1 : 0, columns = axis == 2 ? 1 : 2;
    const int64_t *first = job->first, *size = job->scan.shape + 1, step = probability_strides[1 + axis];
    if (!f->smoothing)
        return;
    for (int64_t y = first[rows]; y < first[rows] + size[rows]; y++)
        for (int64_t x = first[columns]; x < first[columns] + size[columns]; x++) {
            char *line = (char *)probability + first[axis] * step + y * probability_strides[1 + rows] +
                         x * probability_strides[1 + columns];
            uint8_t *out = mask + first[axis] * mask_strides[axis] + y * mask_strides[rows] + x * mask_strides[columns];
            for (int64_t k = 0; k < f->classes; k++)
                for (int32_t time = 0; time < f->smoothing; time++) {
                    char *at = line + k * probability_strides[0];
                    float before, here, after;
                    memcpy(&before, at, 4);
                    here = before;
                    for (int64_t i = 0; i < size[axis]; i++, at += step) {
                        after = here;
                        if (i + 1 < size[axis])
                            memcpy(&after, at + step, 4);
                        const float mean = 0.25f * (before + after) + 0.5f * here;
                        memcpy(at, &mean, 4);
                        before = here;
                        here = after;
                    }
                }
            for (int64_t i = 0; i < size[axis]; i++)
                out[i * mask_strides[axis]] = value_of(m, line + i * step, probability_strides[0]);
        }
}

/* ---- One piece ---- */

/* Voxels of the piece of which voxel i is the first; 0 where it is of none, or not the first. */
static int64_t size_of(const int32_t *memory, int64_t i)
{
    return memory[i] == i ? 1 : memory[i] < -1 ? -1 - (int64_t)memory[i] : 0;
}

static int32_t root_of(int32_t *memory, int32_t i)
{
    while (memory[i] != i)
        i = memory[i] = memory[memory[i]];
    return i;
}

#define MASK(x, y, z) mask[(x) * strides[0] + (y) * strides[1] + (z) * strides[2]]
#define EVERY_VOXEL for (at[0] = 0; at[0] < X; at[0]++) for (at[1] = 0; at[1] < Y; at[1]++) for (at[2] = 0; at[2] < Z; at[2]++)

/* Every voxel of the foreground -> its piece, named by its first voxel; -1 elsewhere. In the place of each first voxel stands
 * -1 - size instead where there are more voxels than that one. Returns the size of the largest. */
static int64_t find_pieces(const uint8_t *mask, const int64_t *shape, const int64_t *strides, int32_t *memory)
{
    const int64_t X = shape[0], Y = shape[1], Z = shape[2], voxels = X * Y * Z;
    int64_t at[3], most = 0;
    EVERY_VOXEL {
        const int64_t steps[3] = {Y * Z, Z, 1};
        int32_t here = (int32_t)((at[0] * Y + at[1]) * Z + at[2]);
        memory[here] = here;
        if (!MASK(at[0], at[1], at[2])) {
            memory[here] = -1;
            continue;
        }
        for (int i = 0; i < 3; i++)
            if (at[i] && memory[here - steps[i]] >= 0) {
                int32_t a = root_of(memory, (int32_t)(here - steps[i])), b = root_of(memory, here);
                memory[a > b ? a : b] = a < b ? a : b;
            }
    }
    for (int64_t i = 0; i < voxels; i++)
        if (memory[i] >= 0)
            memory[i] = root_of(memory, (int32_t)i);
    for (int64_t i = voxels - 1; i >= 0; i--) /* from the back, so that names stay readable */
        if (memory[i] >= 0 && memory[i] != i) {
            int32_t *first = &memory[memory[i]];
            *first = *first >= 0 ? -3 : *first - 1;
        }
    for (int64_t i = 0; i < voxels; i++)
        most = size_of(memory, i) > most ? size_of(memory, i) : most;
    return most;
}

/* All but one piece removed. */
static void keep_piece(uint8_t *mask, const int64_t *shape, const int64_t *strides, const int32_t *memory, int64_t kept)
{
    const int64_t X = shape[0], Y = shape[1], Z = shape[2];
    int64_t at[3];
    EVERY_VOXEL {
        const int64_t here = (at[0] * Y + at[1]) * Z + at[2];
        if (here != kept && memory[here] != kept)
            MASK(at[0], at[1], at[2]) = 0;
    }
}

void mednca_largest_component(uint8_t *mask, const int64_t *shape, const int64_t *strides, int32_t *memory)
{
    const int64_t voxels = shape[0] * shape[1] * shape[2], most = find_pieces(mask, shape, strides, memory);
    int64_t best = 0;
    while (best < voxels && size_of(memory, best) < most)
        best++;
    keep_piece(mask, shape, strides, memory, most ? best : -2);
}

void mednca_surest_component(uint8_t *mask, const int64_t *shape, const int64_t *strides, const float *probability,
                             const int64_t *probability_strides, int32_t classes, double *memory)
{
    const int64_t X = shape[0], Y = shape[1], Z = shape[2], voxels = X * Y * Z;
    int32_t *pieces = (int32_t *)(memory + voxels);
    const int64_t most = find_pieces(mask, shape, strides, pieces);
    int64_t at[3], best = -2;
    double surest = -1;
    memset(memory, 0, (size_t)voxels * sizeof(double));
    EVERY_VOXEL {
        const int64_t here = (at[0] * Y + at[1]) * Z + at[2];
        if (!MASK(at[0], at[1], at[2]))
            continue;
        for (int32_t k = 0; k < classes; k++) {
            float share;
            memcpy(&share, (const char *)probability + k * probability_strides[0] + at[0] * probability_strides[1] +
                               at[1] * probability_strides[2] + at[2] * probability_strides[3], 4);
            memory[size_of(pieces, here) ? here : pieces[here]] += (double)share;
        }
    }
    for (int64_t i = 0; i < voxels; i++) {
        const int64_t size = size_of(pieces, i);
        if (size && 4 * size >= most && memory[i] / (double)size > surest) {
            surest = memory[i] / (double)size;
            best = i;
        }
    }
    keep_piece(mask, shape, strides, pieces, best);
}
#undef MASK
#undef EVERY_VOXEL
